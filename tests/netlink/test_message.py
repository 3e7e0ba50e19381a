"""netlink/message.py: the walk against pyroute2, and what it says of damage."""

import ipaddress
import struct
from dataclasses import fields
from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from conntrackd.flow import ABSENT, EventType, Flow, Protocol, Reason
from conntrackd.netlink.constants import CTA_TUPLE_ORIG
from conntrackd.netlink.message import MalformedError, walk
from tests.engine.feed import MESSAGES, RECEIVED_NS
from tests.messages import attribute, build_message, nest


def test_the_corpus_holds_every_type_family_protocol_and_translation() -> None:
    found = [walk(message, RECEIVED_NS) for message in MESSAGES]

    assert {flow.type for flow in found} == {EventType.NEW, EventType.UPDATE, EventType.DESTROY}
    assert {(flow.family, flow.protocol) for flow in found} == {
        *((2, protocol) for protocol in (Protocol.TCP, Protocol.UDP, Protocol.ICMP)),
        *((10, protocol) for protocol in (Protocol.TCP, Protocol.UDP, Protocol.ICMPV6)),
    }
    assert {(flow.mark, flow.zone) for flow in found} >= {(0, 0), (0x10, 7)}


def get_attribute(message: Any, *path: str) -> Any:
    for name in path:
        if message is None:
            return None
        message = message.get_attr(name)
    return message


def by_pyroute2(data: bytes) -> dict[str, Any]:
    """The fields that pyroute2's generic decoder knows too, in the words of Flow."""
    message = nfct_msg(data)
    message.decode()
    found: dict[str, Any] = {"family": message["nfgen_family"]}
    version = "V4" if message["nfgen_family"] == 2 else "V6"
    for tuple_name, prefix in (("CTA_TUPLE_ORIG", ""), ("CTA_TUPLE_REPLY", "reply_")):
        for end, name in (("SRC", "src"), ("DST", "dst")):
            found[prefix + name] = get_attribute(
                message, tuple_name, "CTA_TUPLE_IP", f"CTA_IP_{version}_{end}"
            )
            found[f"{prefix}{name[0]}port"] = get_attribute(
                message, tuple_name, "CTA_TUPLE_PROTO", f"CTA_PROTO_{end}_PORT"
            )
    found["protocol"] = get_attribute(message, "CTA_TUPLE_ORIG", "CTA_TUPLE_PROTO", "CTA_PROTO_NUM")
    found["id"] = get_attribute(message, "CTA_ID")
    found["status"] = get_attribute(message, "CTA_STATUS")
    found["mark"] = get_attribute(message, "CTA_MARK")
    found["state"] = get_attribute(message, "CTA_PROTOINFO", "CTA_PROTOINFO_TCP", "CTA_PROTOINFO_TCP_STATE")
    for name, prefix in (("CTA_COUNTERS_ORIG", "orig"), ("CTA_COUNTERS_REPLY", "reply")):
        found[f"{prefix}_packets"] = get_attribute(message, name, "CTA_COUNTERS_PACKETS")
        found[f"{prefix}_bytes"] = get_attribute(message, name, "CTA_COUNTERS_BYTES")
    found["start"] = get_attribute(message, "CTA_TIMESTAMP", "CTA_TIMESTAMP_START")
    found["stop"] = get_attribute(message, "CTA_TIMESTAMP", "CTA_TIMESTAMP_STOP")
    return {name: value for name, value in found.items() if value is not None}


def in_words_of_pyroute2(flow: Flow) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(Flow):
        value = getattr(flow, field.name)
        if isinstance(value, bytes) and value:
            value = str(ipaddress.ip_address(value))
        if value not in (ABSENT, None, b""):
            found[field.name] = value
    return found


def test_pyroute2_reads_the_same() -> None:
    for message in MESSAGES:
        theirs, ours = by_pyroute2(message), in_words_of_pyroute2(walk(message, RECEIVED_NS))
        # What a message leaves out is 0 with us.
        assert {name: ours.get(name, 0) for name in theirs} == theirs
        assert {"src", "dst", "reply_src", "reply_dst", "protocol", "id"} <= theirs.keys()


def test_the_time_is_that_of_the_event_where_the_kernel_gives_it() -> None:
    with_time = build_message(walk(MESSAGES[0], RECEIVED_NS))
    without = with_time[:-12]  # CTA_TIMESTAMP_EVENT stands last
    without = struct.pack("=I", len(without)) + without[4:]

    flows = [walk(message, RECEIVED_NS) for message in (with_time, without)]
    assert flows[0].time != RECEIVED_NS
    assert flows[1].time == RECEIVED_NS


@pytest.mark.parametrize(
    ("has_reason", "timeout", "reason"),
    [(True, b"", Reason.TIMEOUT), (True, attribute(7, bytes(4)), Reason.CLOSED), (False, b"", ABSENT)],
)
def test_why_a_flow_ended_is_reported_where_the_kernel_reports_it(
    has_reason: bool, timeout: bytes, reason: int
) -> None:
    event = walk(MESSAGES[0], RECEIVED_NS)
    event.type = int(EventType.DESTROY)
    message = build_message(event) + timeout
    message = struct.pack("=I", len(message)) + message[4:]

    assert walk(message, RECEIVED_NS, reports_reason=has_reason).reason == reason


def change(message: bytes, old: bytes, new: bytes) -> bytes:
    """The message with one part of it replaced, and its length put right."""
    assert message.count(old) == 1
    changed = message.replace(old, new)
    return struct.pack("=I", len(changed)) + changed[4:]


WHOLE = build_message(
    Flow(
        1, 5, 2, 17, 7, b"\1\2\3\4", b"\5\6\7\x08", 9, 10, b"\5\6\7\x08", b"\1\2\3\4", 10, 9, mark=0x11223344
    )
)
MARK = attribute(8, bytes.fromhex("11223344"))
ID = attribute(12, struct.pack("!I", 7))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (change(WHOLE, MARK, attribute(8, bytes(3))), "has 3 bytes"),
        (change(WHOLE, MARK, attribute(8, bytes(8))), "has 8 bytes"),
        (change(WHOLE, MARK, attribute(8, b"")), "has 0 bytes"),
        (change(WHOLE, ID, b""), "without id"),
        (change(WHOLE, MARK, struct.pack("=HH", 0, 8) + bytes(4)), "reaches past its end"),
        (change(WHOLE, MARK, struct.pack("=HH", 0xFFFF, 8) + bytes(4)), "reaches past its end"),
        # Over the one behind it, which is then a part of its value.
        (change(WHOLE, ID, struct.pack("=HH", 16, 12) + ID[4:]), "has 12 bytes"),
        (change(WHOLE, MARK, nest(CTA_TUPLE_ORIG, bytes(2))), "bytes after the last attribute"),
        (change(WHOLE, MARK, struct.pack("=HH", 200, 8) + bytes(4)), "reaches past its end"),
        (change(WHOLE, MARK, struct.pack("=HH", 3, 8) + bytes(4)), "reaches past its end"),
        (struct.pack("=I", len(WHOLE) + 2) + WHOLE[4:] + bytes(2), "bytes after the last attribute"),
        (struct.pack("=I", len(WHOLE) - 4) + WHOLE[4:], "nlmsg_len is not the length"),
        (WHOLE[:16] + b"\x0a" + WHOLE[17:], "src has 4 bytes"),
        (WHOLE[:16] + b"\x00" + WHOLE[17:], "the family unknown"),
        (WHOLE[:4] + b"\x03" + WHOLE[5:], "not a conntrack event"),
        (WHOLE[:19], "shorter than its headers"),
    ],
)
def test_each_damage_has_its_reason(damaged: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        walk(damaged, RECEIVED_NS)
