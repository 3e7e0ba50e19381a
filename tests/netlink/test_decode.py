"""netlink/decode.py: layouts against the walk, the walk against pyroute2, both against damage."""

import random
import struct
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from conntrackd.flow import ABSENT, EventType, Flow, Protocol, Reason
from conntrackd.netlink.constants import (
    CTA_TUPLE_ORIG,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
)
from conntrackd.netlink.decode import KEY, MAX_LAYOUTS, Decoder, MalformedError, split, walk
from conntrackd.netlink.recording import read_batches
from conntrackd.stats import Stats
from tests.filter.strategies import flows
from tests.messages import attribute, build_message, nest

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.nl"))
RECEIVED = 1_763_807_683_181_432_081
MUTATIONS = 100_000


def read_messages(path: Path) -> Iterator[bytes]:
    for batch in read_batches(path, RECEIVED):
        for position, length in zip(batch.positions, batch.lengths, strict=True):
            yield bytes(batch.buffer[position : position + length])


MESSAGES = [message for path in CORPUS for message in read_messages(path)]


def decode(decoder: Decoder, *messages: bytes) -> list[Flow]:
    """All messages as one batch."""
    positions, buffer = [], b""
    for message in messages:
        positions.append(len(buffer))
        buffer += message
    buffer += bytes(KEY.size)  # as in a slot, where something always follows
    return decoder.decode(memoryview(buffer), positions, [len(each) for each in messages], RECEIVED)


def try_walk(message: bytes) -> list[Flow]:
    """What a reference decoder makes of a datagram; nothing of what is malformed."""
    found = []
    for each in split(message):
        try:
            found.append(walk(each, RECEIVED))
        except MalformedError:
            continue
    return found


# ---- what is right ----------------------------------------------------------------------------------------


def test_the_corpus_holds_every_type_family_protocol_and_translation() -> None:
    found = [walk(message, RECEIVED) for message in MESSAGES]

    assert {flow.type for flow in found} == {EventType.NEW, EventType.UPDATE, EventType.DESTROY}
    assert {(flow.family, flow.protocol) for flow in found} == {
        *((2, each) for each in (Protocol.TCP, Protocol.UDP, Protocol.ICMP)),
        *((10, each) for each in (Protocol.TCP, Protocol.UDP, Protocol.ICMPV6)),
    }
    assert {(flow.mark, flow.zone) for flow in found} >= {(0, 0), (0x10, 7)}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_learned_layout_reads_what_the_walk_reads(path: Path) -> None:
    messages = list(read_messages(path))
    stats = Stats()
    decoder = Decoder(stats)

    expected = [walk(message, RECEIVED) for message in messages]
    assert decode(decoder, *messages) == expected
    assert decode(decoder, *messages) == expected  # now all of them by layouts
    assert stats.events_malformed_total == 0


@given(st.lists(flows(located=False), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_layouts_of_many_kinds_never_misread_each_other(some: list[Flow]) -> None:
    messages = [build_message(flow) for flow in some]

    assert decode(Decoder(Stats()), *messages, *messages) == [walk(each, RECEIVED) for each in messages] * 2


def find(message: Any, *path: str) -> Any:
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
            found[prefix + name] = find(message, tuple_name, "CTA_TUPLE_IP", f"CTA_IP_{version}_{end}")
            found[f"{prefix}{name[0]}port"] = find(
                message, tuple_name, "CTA_TUPLE_PROTO", f"CTA_PROTO_{end}_PORT"
            )
    found["protocol"] = find(message, "CTA_TUPLE_ORIG", "CTA_TUPLE_PROTO", "CTA_PROTO_NUM")
    found["id"] = find(message, "CTA_ID")
    found["status"] = find(message, "CTA_STATUS")
    found["mark"] = find(message, "CTA_MARK")
    found["state"] = find(message, "CTA_PROTOINFO", "CTA_PROTOINFO_TCP", "CTA_PROTOINFO_TCP_STATE")
    for name, prefix in (("CTA_COUNTERS_ORIG", "orig"), ("CTA_COUNTERS_REPLY", "reply")):
        found[f"{prefix}_packets"] = find(message, name, "CTA_COUNTERS_PACKETS")
        found[f"{prefix}_bytes"] = find(message, name, "CTA_COUNTERS_BYTES")
    found["start"] = find(message, "CTA_TIMESTAMP", "CTA_TIMESTAMP_START")
    found["stop"] = find(message, "CTA_TIMESTAMP", "CTA_TIMESTAMP_STOP")
    return {name: value for name, value in found.items() if value is not None}


def in_words_of_pyroute2(flow: Flow) -> dict[str, Any]:
    import ipaddress  # noqa: PLC0415  # to check with, not to decode with

    found: dict[str, Any] = {}
    for each in fields(Flow):
        value = getattr(flow, each.name)
        if isinstance(value, bytes):
            value = str(ipaddress.ip_address(value))
        if value not in (ABSENT, None):
            found[each.name] = value
    return found


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_pyroute2_reads_the_same(path: Path) -> None:
    for message in read_messages(path):
        theirs, ours = by_pyroute2(message), in_words_of_pyroute2(walk(message, RECEIVED))
        # What a message leaves out is 0 with us.
        assert {name: ours.get(name, 0) for name in theirs} == theirs
        assert {"src", "dst", "reply_src", "reply_dst", "protocol", "id"} <= theirs.keys()


def test_the_time_is_that_of_the_event_where_the_kernel_gives_it() -> None:
    with_time = build_message(walk(MESSAGES[0], RECEIVED))
    without = with_time[:-12]  # CTA_TIMESTAMP_EVENT stands last
    without = struct.pack("=I", len(without)) + without[4:]

    flows = decode(Decoder(Stats()), with_time, without)
    assert flows[0].time != RECEIVED
    assert flows[1].time == RECEIVED


@pytest.mark.parametrize(
    ("tells", "timeout", "reason"),
    [(True, b"", Reason.TIMEOUT), (True, attribute(7, bytes(4)), Reason.CLOSED), (False, b"", ABSENT)],
)
def test_why_a_flow_ended_is_told_where_the_kernel_tells_it(tells: bool, timeout: bytes, reason: int) -> None:
    event = walk(MESSAGES[0], RECEIVED)
    event.type = int(EventType.DESTROY)
    message = build_message(event) + timeout
    message = struct.pack("=I", len(message)) + message[4:]

    assert [flow.reason for flow in decode(Decoder(Stats(), tells_reason=tells), message)] == [reason]


def test_several_messages_in_one_datagram_are_all_read() -> None:
    datagram = MESSAGES[0] + MESSAGES[1] + MESSAGES[2]

    assert decode(Decoder(Stats()), datagram) == [walk(each, RECEIVED) for each in MESSAGES[:3]]


def test_a_multipart_answer_is_its_messages_and_its_end_is_none() -> None:
    parts = [each[:6] + struct.pack("=H", NLM_F_MULTI) + each[8:] for each in MESSAGES[:3]]
    end = struct.pack("=IHHIII", 20, NLMSG_DONE, NLM_F_MULTI, 0, 0, 0)
    stats = Stats()

    assert decode(Decoder(stats), b"".join([*parts, end])) == [walk(each, RECEIVED) for each in parts]
    assert stats.events_malformed_total == 1


# ---- what is wrong ----------------------------------------------------------------------------------------


def check(decoder: Decoder, stats: Stats, damaged: bytes) -> None:
    """A flow or a counted malformed event, and never anything else."""
    before = stats.events_malformed_total
    found = decode(decoder, damaged)

    assert found == try_walk(damaged)
    assert stats.events_malformed_total - before == len(split(damaged)) - len(found)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_every_truncation_is_counted(path: Path) -> None:
    stats = Stats()
    decoder = Decoder(stats)
    for message in read_messages(path):
        decode(decoder, message)  # it has learned the whole one
        for length in range(len(message)):
            check(decoder, stats, message[:length])


def test_mutated_messages_give_a_flow_or_a_counted_malformed_event() -> None:
    random_numbers = random.Random(20251122)
    stats = Stats()
    decoder = Decoder(stats)
    decode(decoder, *MESSAGES)
    for _ in range(MUTATIONS):
        message = bytearray(random_numbers.choice(MESSAGES))
        for _ in range(random_numbers.randint(1, 4)):
            message[random_numbers.randrange(len(message))] = random_numbers.randrange(256)
        check(decoder, stats, bytes(message))

    assert 0 < stats.events_malformed_total < MUTATIONS * 4


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_give_a_flow_or_a_counted_malformed_event(some: bytes) -> None:
    stats = Stats()
    check(Decoder(stats), stats, some)


@pytest.mark.parametrize("kind", [NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN, 0, 0xFFFF, 2 << 8])
def test_messages_that_are_no_events_are_counted(kind: int) -> None:
    stats = Stats()
    other = MESSAGES[0][:4] + struct.pack("=H", kind) + MESSAGES[0][6:]

    assert decode(Decoder(stats), MESSAGES[0], other, MESSAGES[1]) == [
        walk(each, RECEIVED) for each in MESSAGES[:2]
    ]
    assert stats.events_malformed_total == 1


def test_no_sender_can_make_the_layouts_grow_without_end() -> None:
    decoder = Decoder(Stats())
    for number in range(MAX_LAYOUTS + 10):
        padding = attribute(1000 + number % 50, bytes(4 * (number // 50)))
        message = MESSAGES[0] + padding
        decode(decoder, struct.pack("=I", len(message)) + message[4:])

    assert decoder._learned <= MAX_LAYOUTS


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
        (WHOLE[:16] + b"\x0a" + WHOLE[17:], "not of its family"),
        (WHOLE[:16] + b"\x00" + WHOLE[17:], "not of its family"),
        (WHOLE[:4] + b"\x03" + WHOLE[5:], "not a conntrack event"),
        (WHOLE[:19], "shorter than its headers"),
    ],
)
def test_each_damage_has_its_reason(damaged: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        walk(damaged, RECEIVED)
