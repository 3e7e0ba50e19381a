"""Bytes -> Flow. The only decoder: a walk over the attributes, and layouts learned from it.

A ctnetlink message of one length, type, family and protocol has its values at the same places every time. So
the first message of a kind is walked attribute by attribute; what was found becomes a Layout, and the next
message of that kind is read with one struct. A mask over all attribute headers makes sure that it is of that
kind; anything else is walked.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from socket import AF_INET, AF_INET6
from typing import Any, Final, NamedTuple

from conntrackd.flow import ABSENT, EventType, Flow, Reason
from conntrackd.generated import define
from conntrackd.netlink.constants import (
    CTA_COUNTERS_BYTES,
    CTA_COUNTERS_ORIG,
    CTA_COUNTERS_PACKETS,
    CTA_COUNTERS_REPLY,
    CTA_ID,
    CTA_IP_V4_DST,
    CTA_IP_V4_SRC,
    CTA_IP_V6_DST,
    CTA_IP_V6_SRC,
    CTA_MARK,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_ICMP_CODE,
    CTA_PROTO_ICMP_TYPE,
    CTA_PROTO_ICMPV6_CODE,
    CTA_PROTO_ICMPV6_TYPE,
    CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT,
    CTA_PROTOINFO,
    CTA_PROTOINFO_TCP,
    CTA_PROTOINFO_TCP_STATE,
    CTA_STATUS,
    CTA_TIMEOUT,
    CTA_TIMESTAMP,
    CTA_TIMESTAMP_EVENT,
    CTA_TIMESTAMP_START,
    CTA_TIMESTAMP_STOP,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    CTA_TUPLE_ZONE,
    CTA_ZONE,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_NEW,
    NFGENMSG_LEN,
    NFNL_SUBSYS_CTNETLINK,
    NLA_HDRLEN,
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLMSG_HDRLEN,
)
from conntrackd.stats import Stats

# A kernel sends a few dozen kinds of messages. The bound only matters if something sends garbage for ever.
MAX_LAYOUTS: Final = 1024

Path = tuple[int, ...]


class Value(NamedTuple):
    """Where one attribute's value goes: the Flow's field, and its form in the message (always big endian)."""

    field: str
    form: str


def _tuple_values(tuple_type: int, prefix: str) -> dict[Path, Value]:
    ip, proto = (tuple_type, CTA_TUPLE_IP), (tuple_type, CTA_TUPLE_PROTO)
    return {
        (*ip, CTA_IP_V4_SRC): Value(f"{prefix}src", "4s"),
        (*ip, CTA_IP_V4_DST): Value(f"{prefix}dst", "4s"),
        (*ip, CTA_IP_V6_SRC): Value(f"{prefix}src", "16s"),
        (*ip, CTA_IP_V6_DST): Value(f"{prefix}dst", "16s"),
        (*proto, CTA_PROTO_SRC_PORT): Value(f"{prefix}sport", "H"),
        (*proto, CTA_PROTO_DST_PORT): Value(f"{prefix}dport", "H"),
    }


VALUES: Final[dict[Path, Value]] = {
    **_tuple_values(CTA_TUPLE_ORIG, ""),
    **_tuple_values(CTA_TUPLE_REPLY, "reply_"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_NUM): Value("protocol", "B"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_ICMP_TYPE): Value("icmp_type", "B"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_ICMP_CODE): Value("icmp_code", "B"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_ICMPV6_TYPE): Value("icmp_type", "B"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_ICMPV6_CODE): Value("icmp_code", "B"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_ZONE): Value("zone", "H"),
    (CTA_ZONE,): Value("zone", "H"),
    (CTA_ID,): Value("id", "I"),
    (CTA_STATUS,): Value("status", "I"),
    (CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE): Value("state", "B"),
    (CTA_MARK,): Value("mark", "I"),
    (CTA_COUNTERS_ORIG, CTA_COUNTERS_PACKETS): Value("orig_packets", "Q"),
    (CTA_COUNTERS_ORIG, CTA_COUNTERS_BYTES): Value("orig_bytes", "Q"),
    (CTA_COUNTERS_REPLY, CTA_COUNTERS_PACKETS): Value("reply_packets", "Q"),
    (CTA_COUNTERS_REPLY, CTA_COUNTERS_BYTES): Value("reply_bytes", "Q"),
    (CTA_TIMESTAMP, CTA_TIMESTAMP_START): Value("start", "Q"),
    (CTA_TIMESTAMP, CTA_TIMESTAMP_STOP): Value("stop", "Q"),
    (CTA_TIMESTAMP_EVENT,): Value("time", "Q"),
}
NESTS: Final = frozenset(path[:depth] for path in VALUES for depth in range(1, len(path)))

FLOW_FIELDS: Final = tuple(each.name for each in fields(Flow))
DEFAULTS: Final = {each.name: each.default for each in fields(Flow)}
REQUIRED: Final = frozenset(("protocol", "id", "src", "dst", "reply_src", "reply_dst"))
# Fields that a message may leave out though Flow has no default for them: protocols without ports.
OPTIONAL: Final = dict.fromkeys(("sport", "dport", "reply_sport", "reply_dport"), ABSENT)
ADDRESS_FORMS: Final[dict[int, str]] = {AF_INET: "4s", AF_INET6: "16s"}

HEADER: Final = struct.Struct("=IHHII")
ATTRIBUTE: Final = struct.Struct("=HH")
# Length, type and flags in one integer: what a Layout is looked up by.
KEY: Final = struct.Struct("=Q")


class MalformedError(Exception):
    """The bytes are not one conntrack event. Costs this event, and is counted."""


class Anatomy(NamedTuple):
    """What a walk over one message finds."""

    type: EventType
    values: dict[str, tuple[int, str]]
    """Flow field -> offset in the message and form."""
    headers: list[tuple[int, int]]
    """Offset and length of all bytes that must be the same in every message of this kind."""
    has_timeout: bool


def dissect(message: bytes) -> Anatomy:
    """Walk over one message, from nlmsghdr to its end. Raises MalformedError."""
    if len(message) < NLMSG_HDRLEN + NFGENMSG_LEN:
        raise MalformedError("shorter than its headers")
    length, message_type, flags, _, _ = HEADER.unpack_from(message)
    if length != len(message):
        raise MalformedError("nlmsg_len is not the length of the message")
    anatomy = Anatomy(_find_type(message_type, flags), {}, [(0, 8), (NLMSG_HDRLEN, 2)], has_timeout=False)
    for path, offset, size in _walk_attributes(message, NLMSG_HDRLEN + NFGENMSG_LEN, length, ()):
        anatomy.headers.append((offset - NLA_HDRLEN, NLA_HDRLEN))
        if path == (CTA_TIMEOUT,):
            anatomy = anatomy._replace(has_timeout=True)
        elif path in VALUES:
            field, form = VALUES[path]
            if size != struct.calcsize(form):
                raise MalformedError(f"attribute {path} has {size} bytes")
            anatomy.values[field] = (offset, form)
    _check(message, anatomy)
    # The protocol is a value as well as a part of the kind: a layout holds for one protocol.
    anatomy.headers.append((anatomy.values["protocol"][0], 1))
    return anatomy


def _find_type(message_type: int, flags: int) -> EventType:
    if message_type == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE:
        return EventType.DESTROY
    if message_type != NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW:
        raise MalformedError("not a conntrack event")
    # net/netfilter/nf_conntrack_netlink.c, ctnetlink_conntrack_event(): a new flow has these flags, an
    # update has none.
    return EventType.NEW if flags & (NLM_F_CREATE | NLM_F_EXCL) else EventType.UPDATE


def _walk_attributes(message: bytes, offset: int, end: int, nest: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, offset of the value and its length, of each attribute between two offsets, and of those in it."""
    while end - offset >= NLA_HDRLEN:
        length, attribute_type = ATTRIBUTE.unpack_from(message, offset)
        if length < NLA_HDRLEN or offset + length > end:
            raise MalformedError("an attribute reaches past its end")
        path = (*nest, attribute_type & NLA_TYPE_MASK)
        yield path, offset + NLA_HDRLEN, length - NLA_HDRLEN
        if path in NESTS:
            yield from _walk_attributes(message, offset + NLA_HDRLEN, offset + length, path)
        offset += (length + 3) & ~3
    if offset < end:
        raise MalformedError("bytes after the last attribute")


def _check(message: bytes, anatomy: Anatomy) -> None:
    missing = REQUIRED - anatomy.values.keys()
    if missing:
        raise MalformedError(f"without {', '.join(sorted(missing))}")
    address = ADDRESS_FORMS.get(message[NLMSG_HDRLEN])
    if any(anatomy.values[name][1] != address for name in ("src", "dst", "reply_src", "reply_dst")):
        raise MalformedError("addresses that are not of its family")


def _find_constants(message: bytes, anatomy: Anatomy, tells_reason: bool) -> dict[str, int]:
    """The fields that follow from the kind of the message, or that it leaves out."""
    constants = {"type": int(anatomy.type), "family": message[NLMSG_HDRLEN]}
    # net/netfilter/nf_conntrack_netlink.c, ctnetlink_dump_timeout(): since Linux 5.10 DESTROY carries the
    # time that was left, and nothing when none was.
    if tells_reason and anatomy.type == EventType.DESTROY:
        constants["reason"] = int(Reason.CLOSED if anatomy.has_timeout else Reason.TIMEOUT)
    return {**OPTIONAL, **constants}


def walk(message: bytes, received_ns: int, *, tells_reason: bool = True) -> Flow:
    """One message -> Flow, attribute by attribute: slow, plain, what the layouts are compared with."""
    anatomy = dissect(message)
    found: dict[str, Any] = {"time": received_ns, **_find_constants(message, anatomy, tells_reason)}
    for field, (offset, form) in anatomy.values.items():
        value = message[offset : offset + struct.calcsize(form)]
        found[field] = value if form.endswith("s") else int.from_bytes(value, "big")
    return Flow(**found)


Make = Callable[[Any, int, int], Flow]
"""Buffer, position of a message in it, time of receipt -> the message's Flow."""


class Layout(NamedTuple):
    """How to read all messages of one kind."""

    mask: int
    expected: int
    """What the bytes under the mask are, the message taken as one little-endian number."""
    make: Make


def learn(message: bytes, *, tells_reason: bool = True) -> Layout:
    """The layout of the kind of messages that this one is an example of. Raises MalformedError."""
    anatomy = dissect(message)
    mask = bytearray(len(message))
    for start, size in anatomy.headers:
        mask[start : start + size] = b"\xff" * size
    mask_number = int.from_bytes(mask, "little")
    expected = int.from_bytes(message, "little") & mask_number
    make = _compile(anatomy.values, _find_constants(message, anatomy, tells_reason))
    return Layout(mask_number, expected, make)


def _compile(values: dict[str, tuple[int, str]], constants: dict[str, int]) -> Make:
    """The function that reads one kind of messages. `values`: field -> offset and form.

    Generated: to put what was unpacked in the Flow's order by an itemgetter took a fifth of all decoding.
    """
    ordered = sorted(values, key=values.__getitem__)
    form, end = ">", 0
    for field in ordered:
        start, each = values[field]
        form += f"{start - end}x{each}"
        end = start + struct.calcsize(each)
    # What the message has comes before what it may leave out, and both before the Flow's own defaults.
    known = {"time": "time", **constants, **dict(zip(ordered, ordered, strict=True))}
    count = 1 + max(FLOW_FIELDS.index(name) for name in known)
    arguments = ", ".join(str(known.get(name, DEFAULTS[name])) for name in FLOW_FIELDS[:count])
    source = (
        "def make(buffer, position, time):\n"
        f"    {', '.join(ordered)} = unpack_from(buffer, position)\n"
        f"    return Flow({arguments})\n"
    )
    return define(source, "make", {"unpack_from": struct.Struct(form).unpack_from, "Flow": Flow})


class Candidates(NamedTuple):
    """All layouts of one length, type and flags."""

    length: int
    take: Callable[[Any, int], tuple[Any, ...]]
    """Buffer, position -> the message, as the only one of a tuple: faster than a slice of a memoryview."""
    layouts: list[Layout]


NO_CANDIDATES: Final = Candidates(ABSENT, struct.Struct("0s").unpack_from, [])


class Decoder:
    """Datagrams -> Flows, in their order. Malformed ones are counted and left out."""

    def __init__(self, stats: Stats, *, tells_reason: bool = True) -> None:
        self._stats = stats
        self._tells_reason = tells_reason
        self._candidates: dict[int, Candidates] = {}
        self._learned = 0

    def decode(
        self,
        buffer: bytes | bytearray | memoryview,
        positions: Iterable[int],
        lengths: Iterable[int],
        received_ns: int,
    ) -> list[Flow]:
        """The datagrams at these positions of the buffer, which has at least KEY.size bytes after each."""
        flows: list[Flow] = []
        append, find, key_at, number = flows.append, self._candidates.get, KEY.unpack_from, int.from_bytes
        for position, length in zip(positions, lengths, strict=False):
            candidates = find(key_at(buffer, position)[0], NO_CANDIDATES)
            size, take, layouts = candidates
            if size == length:
                word = number(take(buffer, position)[0], "little")
                for mask, expected, make in layouts:
                    if word & mask == expected:
                        append(make(buffer, position, received_ns))
                        break
                else:
                    size = ABSENT
            if size != length:
                flows += self._decode_unknown(bytes(buffer[position : position + length]), received_ns)
        return flows

    def _decode_unknown(self, datagram: bytes, received_ns: int) -> list[Flow]:
        """A datagram that no layout fits: several messages, a new kind, or garbage."""
        messages = split(datagram)
        if len(messages) > 1:
            parts = [(message + bytes(KEY.size), len(message)) for message in messages]
            return [flow for part, length in parts for flow in self.decode(part, [0], [length], received_ns)]
        try:
            layout = learn(datagram, tells_reason=self._tells_reason)
        except MalformedError:
            self._stats.events_malformed_total += 1
            return []
        self._keep(datagram, layout)
        return [layout.make(datagram, 0, received_ns)]

    def _keep(self, message: bytes, layout: Layout) -> None:
        if self._learned >= MAX_LAYOUTS:
            self._candidates.clear()
            self._learned = 0
        key, length = KEY.unpack_from(message)[0], len(message)
        if key not in self._candidates:
            self._candidates[key] = Candidates(length, struct.Struct(f"{length}s").unpack_from, [])
        self._candidates[key].layouts.append(layout)
        self._learned += 1


def split(datagram: bytes) -> list[bytes]:
    """The messages of one datagram. The kernel sends events one by one, but netlink allows several.

    What follows a length that cannot be is given as one message, and so is nothing, for the walk to refuse.
    """
    messages, offset = [], 0
    while len(datagram) - offset >= NLMSG_HDRLEN:
        length = HEADER.unpack_from(datagram, offset)[0]
        if length < NLMSG_HDRLEN or offset + length > len(datagram):
            break
        messages.append(datagram[offset : offset + length])
        offset += (length + 3) & ~3
    rest = datagram[offset:]
    return [*messages, rest] if rest or not messages else messages
