"""Bytes -> Flow: the plain walk that the core is compared with; nlmsg and nlattr, both ways, for others."""

import struct
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, AF_UNSPEC
from typing import Any, Final, NamedTuple

from conntrackd.flow import ABSENT, EventType, Flow, Reason
from conntrackd.netlink import constants as c

Path = tuple[int, ...]

HEADER: Final = struct.Struct("=IHHII")
ATTRIBUTE: Final = struct.Struct("=HH")
NFGENMSG: Final = struct.Struct("!BBH")
LABEL_BYTES: Final = 16
# Like the core's struct: what is longer than its length can say is cut there.
MAX_HELPER: Final = 255
MAX_SECCTX: Final = 65_535


class Value(NamedTuple):
    """Where an attribute's value goes: the Flow's field, and how many bytes it has; 0 for a text."""

    field: str
    size: int


def _list_tuple(tuple_type: int, prefix: str) -> dict[Path, Value]:
    ip, proto = (tuple_type, c.CTA_TUPLE_IP), (tuple_type, c.CTA_TUPLE_PROTO)
    return {
        (*ip, c.CTA_IP_V4_SRC): Value(f"{prefix}src", 4),
        (*ip, c.CTA_IP_V4_DST): Value(f"{prefix}dst", 4),
        (*ip, c.CTA_IP_V6_SRC): Value(f"{prefix}src", 16),
        (*ip, c.CTA_IP_V6_DST): Value(f"{prefix}dst", 16),
        (*proto, c.CTA_PROTO_SRC_PORT): Value(f"{prefix}sport", 2),
        (*proto, c.CTA_PROTO_DST_PORT): Value(f"{prefix}dport", 2),
    }


def _list_icmp_ids(tuple_type: int, field: str) -> dict[Path, Value]:
    return {
        (tuple_type, c.CTA_TUPLE_PROTO, number): Value(field, 2)
        for number in (c.CTA_PROTO_ICMP_ID, c.CTA_PROTO_ICMPV6_ID)
    }


VALUES: Final[dict[Path, Value]] = {
    **_list_tuple(c.CTA_TUPLE_ORIG, ""),
    **_list_tuple(c.CTA_TUPLE_REPLY, "reply_"),
    **_list_tuple(c.CTA_TUPLE_MASTER, "master_"),
    **_list_icmp_ids(c.CTA_TUPLE_ORIG, "icmp_id"),
    **_list_icmp_ids(c.CTA_TUPLE_REPLY, "reply_icmp_id"),
    (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_PROTO, c.CTA_PROTO_NUM): Value("protocol", 1),
    (c.CTA_TUPLE_MASTER, c.CTA_TUPLE_PROTO, c.CTA_PROTO_NUM): Value("master_protocol", 1),
    (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_PROTO, c.CTA_PROTO_ICMP_TYPE): Value("icmp_type", 1),
    (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_PROTO, c.CTA_PROTO_ICMP_CODE): Value("icmp_code", 1),
    (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_PROTO, c.CTA_PROTO_ICMPV6_TYPE): Value("icmp_type", 1),
    (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_PROTO, c.CTA_PROTO_ICMPV6_CODE): Value("icmp_code", 1),
    (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_ZONE): Value("zone", 2),
    (c.CTA_TUPLE_REPLY, c.CTA_TUPLE_ZONE): Value("reply_zone", 2),
    (c.CTA_ZONE,): Value("zone", 2),
    (c.CTA_ID,): Value("id", 4),
    (c.CTA_STATUS,): Value("status", 4),
    (c.CTA_PROTOINFO, c.CTA_PROTOINFO_TCP, c.CTA_PROTOINFO_TCP_STATE): Value("state", 1),
    (c.CTA_MARK,): Value("mark", 4),
    (c.CTA_TIMEOUT,): Value("timeout", 4),
    (c.CTA_COUNTERS_ORIG, c.CTA_COUNTERS_PACKETS): Value("orig_packets", 8),
    (c.CTA_COUNTERS_ORIG, c.CTA_COUNTERS_BYTES): Value("orig_bytes", 8),
    (c.CTA_COUNTERS_REPLY, c.CTA_COUNTERS_PACKETS): Value("reply_packets", 8),
    (c.CTA_COUNTERS_REPLY, c.CTA_COUNTERS_BYTES): Value("reply_bytes", 8),
    (c.CTA_TIMESTAMP, c.CTA_TIMESTAMP_START): Value("start", 8),
    (c.CTA_TIMESTAMP, c.CTA_TIMESTAMP_STOP): Value("stop", 8),
    (c.CTA_TIMESTAMP_EVENT,): Value("time", 8),
    (c.CTA_HELP, c.CTA_HELP_NAME): Value("helper", 0),
    (c.CTA_SECCTX, c.CTA_SECCTX_NAME): Value("secctx", 0),
}
NESTS: Final = frozenset(path[:depth] for path in VALUES for depth in range(1, len(path)))
BYTES: Final = frozenset(f"{prefix}{end}" for prefix in ("", "reply_", "master_") for end in ("src", "dst"))
REQUIRED: Final = frozenset(("protocol", "id", "src", "dst", "reply_src", "reply_dst"))
ADDRESS_SIZES: Final = {int(AF_INET): 4, int(AF_INET6): 16}


class MalformedError(Exception):
    """The bytes are not one conntrack event. Costs this event, and is counted."""


def walk(message: bytes, received_ns: int, *, reports_reason: bool = True) -> Flow:
    """One message, from nlmsghdr to its end -> Flow. Raises MalformedError.

    `reports_reason`: the kernel gives DESTROY the time that was left, and nothing when none was (Linux 5.10,
    net/netfilter/nf_conntrack_netlink.c, ctnetlink_dump_timeout()).
    """
    if len(message) < c.NLMSG_HDRLEN + c.NFGENMSG_LEN:
        raise MalformedError("shorter than its headers")
    length, message_type, flags, _, _ = HEADER.unpack_from(message)
    family = message[c.NLMSG_HDRLEN]
    if length != len(message) or family not in ADDRESS_SIZES:
        raise MalformedError("nlmsg_len is not the length of the message, or the family unknown")
    event_type = _decode_type(message_type, flags)
    found: dict[str, Any] = {"time": received_ns}
    for path, value in walk_attributes(message[c.NLMSG_HDRLEN + c.NFGENMSG_LEN :], NESTS):
        if path == (c.CTA_LABELS,):
            found["labels"] = _pad_labels(value)
        elif path in VALUES:
            field, size = VALUES[path]
            found[field] = _read_value(field, size, value, ADDRESS_SIZES[family])
    if missing := REQUIRED - found.keys():
        raise MalformedError(f"without {', '.join(sorted(missing))}")
    has_timeout = found.pop("timeout", None) is not None
    if reports_reason and event_type == EventType.DESTROY:
        found["reason"] = int(Reason.CLOSED if has_timeout else Reason.TIMEOUT)
    ports = dict.fromkeys(("sport", "dport", "reply_sport", "reply_dport"), ABSENT)
    return Flow(type=int(event_type), family=family, **{**ports, **found})


def _decode_type(message_type: int, flags: int) -> EventType:
    if message_type == c.NFNL_SUBSYS_CTNETLINK << 8 | c.IPCTNL_MSG_CT_DELETE:
        return EventType.DESTROY
    if message_type != c.NFNL_SUBSYS_CTNETLINK << 8 | c.IPCTNL_MSG_CT_NEW:
        raise MalformedError("not a conntrack event")
    # net/netfilter/nf_conntrack_netlink.c, ctnetlink_conntrack_event(): a new flow has these flags, an
    # update has none.
    return EventType.NEW if flags & (c.NLM_F_CREATE | c.NLM_F_EXCL) else EventType.UPDATE


def _read_value(field: str, size: int, value: bytes, address_size: int) -> int | bytes:
    if not size:
        return value.partition(b"\0")[0][: MAX_HELPER if field == "helper" else MAX_SECCTX]
    if len(value) != size or (field in BYTES and size != address_size):
        raise MalformedError(f"{field} has {len(value)} bytes")
    return value if field in BYTES else int.from_bytes(value, "big")


def _pad_labels(value: bytes) -> bytes:
    """Nothing where none is set."""
    if len(value) > LABEL_BYTES:
        raise MalformedError(f"labels of {len(value)} bytes")
    return value.ljust(LABEL_BYTES, b"\0") if any(value) else b""


def walk_attributes(
    attributes: bytes, nests: frozenset[Path] = frozenset(), nest: Path = ()
) -> Iterator[tuple[Path, bytes]]:
    """Path and value of each attribute, and of those in the nests. Raises MalformedError."""
    offset = 0
    while len(attributes) - offset >= c.NLA_HDRLEN:
        length, attribute_type = ATTRIBUTE.unpack_from(attributes, offset)
        if length < c.NLA_HDRLEN or offset + length > len(attributes):
            raise MalformedError("an attribute reaches past its end")
        path = (*nest, attribute_type & c.NLA_TYPE_MASK)
        value = attributes[offset + c.NLA_HDRLEN : offset + length]
        yield path, value
        if path in nests:
            yield from walk_attributes(value, nests, path)
        offset += (length + 3) & ~3
    if offset < len(attributes):
        raise MalformedError("bytes after the last attribute")


def pack_request(
    kind: int, flags: int, family: int = AF_UNSPEC, attributes: bytes = b"", *, resource: int = 0
) -> bytes:
    """A message to the kernel: nlmsghdr, nfgenmsg (`resource` is its res_id), attributes."""
    body = NFGENMSG.pack(family, c.NFNETLINK_V0, resource) + attributes
    return HEADER.pack(HEADER.size + len(body), kind, c.NLM_F_REQUEST | flags, 1, 0) + body


def pack_attribute(kind: int, value: bytes) -> bytes:
    """With what fills it up to a multiple of four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def pack_number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in the order of the network."""
    return pack_attribute(kind, value.to_bytes(4))


def split(datagram: bytes) -> list[bytes]:
    """The messages of one datagram. The kernel sends events one by one, but netlink allows several.

    What follows a length that cannot be is given as one message, and so is nothing, for the walk to refuse.
    """
    messages, offset = [], 0
    while len(datagram) - offset >= c.NLMSG_HDRLEN:
        length = HEADER.unpack_from(datagram, offset)[0]
        if length < c.NLMSG_HDRLEN or offset + length > len(datagram):
            break
        messages.append(datagram[offset : offset + length])
        offset += (length + 3) & ~3
    rest = datagram[offset:]
    return [*messages, rest] if rest or not messages else messages
