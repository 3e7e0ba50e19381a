"""Flow, the one record of a conntrack event, and the enums that name its integers."""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

ABSENT: Final = -1
"""The integer of a field that the event does not carry."""


NANO: Final = 1_000_000_000
"""Nanoseconds of a second."""


class EventType(IntFlag):
    """What happened to the flow; the values are bits, so that sets of them are integers too.

    SNAPSHOT is not an event of the kernel's: the flow was found in its table (resync.py). Nor is FLOW: a
    DESTROY that stands for the whole flow (records.py), and has its bit for every test of the type. ALIVE
    is a flow that was found in the table at an interval (heartbeat.py); rules know it by this name.
    """

    NEW = 1
    UPDATE = 2
    DESTROY = 4
    SNAPSHOT = 8
    FLOW = 16 | DESTROY
    ALIVE = 32


ALL_EVENTS: Final = int(EventType.NEW | EventType.UPDATE | EventType.DESTROY)
"""Those of the kernel: SNAPSHOT is what events of the other types are called later."""


class Protocol(IntEnum):
    """The transport protocols that have a name here; all others go by their IANA number."""

    ICMP = 1
    TCP = 6
    UDP = 17
    DCCP = 33
    GRE = 47
    ICMPV6 = 58
    SCTP = 132
    UDPLITE = 136


class TcpState(IntEnum):
    """include/uapi/linux/netfilter/nf_conntrack_tcp.h, enum tcp_conntrack."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


class Status(IntFlag):
    """include/uapi/linux/netfilter/nf_conntrack_common.h, enum ip_conntrack_status (IPS_*)."""

    EXPECTED = 1 << 0
    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    SEQ_ADJUST = 1 << 6
    SRC_NAT_DONE = 1 << 7
    DST_NAT_DONE = 1 << 8
    DYING = 1 << 9
    FIXED_TIMEOUT = 1 << 10
    TEMPLATE = 1 << 11
    UNTRACKED = 1 << 12
    HELPER = 1 << 13
    OFFLOAD = 1 << 14
    HW_OFFLOAD = 1 << 15


class Reason(IntEnum):
    """Why a flow was destroyed, where the kernel says so."""

    TIMEOUT = 0
    CLOSED = 1


class Nat(IntFlag):
    """Which side of the flow is translated."""

    NONE = 0
    SNAT = 1
    DNAT = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Location:
    """What the GeoIP databases know about one address; empty text, None and 0 where they know nothing."""

    city: str = ""
    country: str = ""
    lat: float | None = None
    lon: float | None = None
    asn: int = 0
    as_org: str = ""
    country_code: str = ""
    """ISO 3166; `country` is its name."""


@dataclass(slots=True)
class Flow:
    """One conntrack event, as the kernel sent it: what the reference and the tools speak.

    Addresses are the 4 or 16 bytes of the packet (they compare as the numbers they are), times are
    nanoseconds since the epoch, texts and labels bytes, everything else is an integer; a number that the
    event does not carry is ABSENT, a start or stop 0, bytes empty.

    Read-only by convention. The event path has the core's struct event instead (core/event.h).
    """

    type: int
    time: int
    family: int
    protocol: int
    id: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    reply_src: bytes
    reply_dst: bytes
    reply_sport: int
    reply_dport: int
    state: int = ABSENT
    status: int = 0
    mark: int = 0
    zone: int = 0
    icmp_type: int = ABSENT
    icmp_code: int = ABSENT
    reason: int = ABSENT
    orig_packets: int = ABSENT
    orig_bytes: int = ABSENT
    reply_packets: int = ABSENT
    reply_bytes: int = ABSENT
    start: int = 0
    stop: int = 0
    first_seen: int = 0
    """Time of the flow's NEW, where the kernel does not say when it began."""
    src_location: Location | None = None
    dst_location: Location | None = None
    icmp_id: int = ABSENT
    reply_icmp_id: int = ABSENT
    reply_zone: int = 0
    helper: bytes = b""
    secctx: bytes = b""
    labels: bytes = b""
    master_protocol: int = ABSENT
    master_src: bytes = b""
    master_dst: bytes = b""
    master_sport: int = ABSENT
    master_dport: int = ABSENT
    orig_packets_delta: int = ABSENT
    """This and the next three: what of the counters came since the flow's last record, and no attribute."""
    orig_bytes_delta: int = ABSENT
    reply_packets_delta: int = ABSENT
    reply_bytes_delta: int = ABSENT
    sample_rate: int = ABSENT
    """What the rules say of it, and no attribute: it stands for so many flows."""
    incomplete: int = ABSENT
    """1 of a FLOW of which nobody knows when it began."""


def compute_nat(flow: Flow) -> int:
    """Nat bits: where the reply tuple is not the original one turned round, an end was translated.

    The identifier of ICMP belongs to the source, and may be all that is translated: where a host behind the
    gateway uses the same as the gateway itself, one of them gets another.
    """
    nat = 0
    source = (flow.src, flow.sport, flow.icmp_id)
    if (flow.reply_dst, flow.reply_dport, flow.reply_icmp_id) != source:
        nat = 1
    if flow.reply_src != flow.dst or flow.reply_sport != flow.dport:
        nat |= 2
    return nat


def find_duration(flow: Flow) -> int | None:
    """Nanoseconds, negative where the clock was set back; None where nobody knows."""
    if flow.start and flow.stop:
        return flow.stop - flow.start
    return flow.time - flow.first_seen if flow.first_seen else None


@dataclass(frozen=True, slots=True)
class Lost:
    """Events that did not arrive, reported to every sink past every filter. Times as in Flow.

    `where` is `kernel` for events that the socket's buffer had no room for, `tracking` and
    `daemon` for a time in some or all of which the kernel made none or nobody listened, else the sink whose
    outbox dropped them, with the reason. A count that nobody knows is ABSENT.

    With a `rule` nothing is lost: so many events were beyond the limit of the rule with this number in the
    setting that is named by `where`; the reason is its text.
    """

    count: int
    since: int
    until: int
    where: str
    reason: str = ""
    rule: int = 0

    @property
    def type(self) -> str:
        """Of the record."""
        return "SUPPRESSED" if self.rule else "LOST"
