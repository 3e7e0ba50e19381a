"""The fields of an event as people see them: the one place that knows their names, and their order.

Every format writes the same fields in the same order, and differs only in what stands around a value.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from conntrackd.flow import EventType, Location, Nat, Protocol, Reason, TcpState
from conntrackd.text import quote, suggest


class Kind(Enum):
    """How a value is written."""

    NUMBER = auto()
    NAME = auto()
    """A number that has names; one without a name is written as the number."""
    ADDRESS = auto()
    TIME = auto()
    """RFC 3339 with nanoseconds and the local offset."""
    DURATION = auto()
    """Seconds with all nine decimals."""
    OWN_TEXT = auto()
    """What the kernel gives as text."""
    LABELS = auto()
    """The names of bits that are set, with commas between them."""
    COMMUNITY_ID = auto()
    """See community.py. Only where a seed is given: it is what a setting asks for."""
    NANOSECONDS = auto()
    """A duration as a whole number."""
    LIST = auto()
    """A number whose name is a list, with commas between; each form writes lists in its way."""
    TRUTH = auto()
    """`true`, where it is: what is not has no such field."""


IS_TEXT: Final = frozenset(Kind) - {Kind.NUMBER, Kind.DURATION, Kind.NANOSECONDS, Kind.LIST, Kind.TRUTH}


@dataclass(frozen=True, slots=True)
class OutputField:
    """One field: its name, and the attribute of Flow (and of the core's event) that it shows.

    It is written where the event has the attribute and everything in `needs`. conntrackd-events(7) says what
    each of them means.
    """

    name: str
    kind: Kind
    attribute: str
    needs: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)


TYPE_NAMES: Final = {event.value: name for name, event in EventType.__members__.items()}
PROTOCOL_NAMES: Final = {protocol.value: protocol.name for protocol in Protocol}
STATE_NAMES: Final = {state.value: state.name for state in TcpState}
REASON_NAMES: Final = {reason.value: reason.name.lower() for reason in Reason}
NAT_NAMES: Final = {number: str(Nat(number).name) for number in range(4)}

FIELDS: Final = (
    OutputField("type", Kind.NAME, "type", names=TYPE_NAMES),
    OutputField("flow", Kind.NUMBER, "id"),
    OutputField("prot", Kind.NAME, "protocol", names=PROTOCOL_NAMES),
    OutputField("src", Kind.ADDRESS, "src"),
    OutputField("dst", Kind.ADDRESS, "dst"),
    OutputField("sport", Kind.NUMBER, "sport"),
    OutputField("dport", Kind.NUMBER, "dport"),
    OutputField("state", Kind.NAME, "state", names=STATE_NAMES),
    OutputField("nat", Kind.NAME, "nat", names=NAT_NAMES),
    # The addresses on the other side of a translation are those where replies come from and go to.
    OutputField("nat_src", Kind.ADDRESS, "reply_dst", ("nat",)),
    OutputField("nat_sport", Kind.NUMBER, "reply_dport", ("nat",)),
    OutputField("nat_dst", Kind.ADDRESS, "reply_src", ("nat",)),
    OutputField("nat_dport", Kind.NUMBER, "reply_sport", ("nat",)),
    OutputField("mark", Kind.NUMBER, "mark"),
    OutputField("zone", Kind.NUMBER, "zone"),
    OutputField("reply_zone", Kind.NUMBER, "reply_zone"),
    OutputField("packets", Kind.NUMBER, "orig_packets"),
    OutputField("bytes", Kind.NUMBER, "orig_bytes"),
    OutputField("reply_packets", Kind.NUMBER, "reply_packets"),
    OutputField("reply_bytes", Kind.NUMBER, "reply_bytes"),
    OutputField("packets_delta", Kind.NUMBER, "orig_packets_delta"),
    OutputField("bytes_delta", Kind.NUMBER, "orig_bytes_delta"),
    OutputField("reply_packets_delta", Kind.NUMBER, "reply_packets_delta"),
    OutputField("reply_bytes_delta", Kind.NUMBER, "reply_bytes_delta"),
    OutputField("start", Kind.TIME, "start"),
    OutputField("stop", Kind.TIME, "stop"),
    OutputField("first_seen", Kind.TIME, "first_seen"),
    OutputField("duration", Kind.DURATION, "duration"),
    OutputField("incomplete", Kind.TRUTH, "incomplete", names={1: "true"}),
    OutputField("icmp_type", Kind.NUMBER, "icmp_type"),
    OutputField("icmp_code", Kind.NUMBER, "icmp_code"),
    OutputField("icmp_id", Kind.NUMBER, "icmp_id"),
    OutputField("nat_icmp_id", Kind.NUMBER, "reply_icmp_id", ("nat",)),
    OutputField("helper", Kind.OWN_TEXT, "helper"),
    OutputField("secctx", Kind.OWN_TEXT, "secctx"),
    OutputField("ct_labels", Kind.LABELS, "labels"),
    OutputField("master_prot", Kind.NAME, "master_protocol", names=PROTOCOL_NAMES),
    OutputField("master_src", Kind.ADDRESS, "master_src"),
    OutputField("master_dst", Kind.ADDRESS, "master_dst"),
    OutputField("master_sport", Kind.NUMBER, "master_sport"),
    OutputField("master_dport", Kind.NUMBER, "master_dport"),
    OutputField("reason", Kind.NAME, "reason", names=REASON_NAMES),
    OutputField("sample_rate", Kind.NUMBER, "sample_rate"),
    OutputField("community_id", Kind.COMMUNITY_ID, "community_id"),
)


# What the databases know of an address, by its name in Location; `src_` stands before it where that is the
# source's. First where both ends are, then whose network that is.
PLACE: Final = ("city", "country", "country_code", "lat", "lon")
NETWORK: Final = ("asn", "as_org")

# What stands before all fields, as far as the form has it at all.
HEADS: Final = ("time", "level", "msg")
# What every event has. They are the first of FIELDS and come first in any choice.
ALWAYS: Final = ("type", "flow", "prot", "src", "dst")

# What other programs call them (conntrack, nft, Suricata, Zeek, flow collectors), with `_` for `.` and `-`.
ENDS: Final = (("src", "src"), ("source", "src"), ("dst", "dst"), ("dest", "dst"), ("destination", "dst"))
ALIASES: Final = {
    **{f"{word}{end}": ours for word, ours in ENDS for end in ("", "_ip", "ip", "_addr", "addr", "_address")},
    **{f"{word}{end}": f"{ours[0]}port" for word, ours in ENDS for end in ("_port", "port")},
    "saddr": "src",
    "daddr": "dst",
    **dict.fromkeys(("proto", "protocol", "l4proto", "transport"), "prot"),
    **dict.fromkeys(("timestamp", "ts", "date"), "time"),
    **dict.fromkeys(("id", "flow_id"), "flow"),
    **dict.fromkeys(("event", "action"), "type"),
    "message": "msg",
    "severity": "level",
    "hostname": "host",
    **{f"dst_{name}": name for name in (*PLACE, *NETWORK)},
}

# Of a LOST record, of a SUPPRESSED one, and of both.
LOSS_NAMES: Final = ("type", "lost", "since", "until", "where", "reason")
HELD_NAMES: Final = ("type", "suppressed", "rule", "since", "until", "where", "reason")
REPORTS: Final = ("LOST", "SUPPRESSED")
REPORT_NAMES: Final = (*LOSS_NAMES[:2], *HELD_NAMES[1:])


def list_names() -> Iterator[str]:
    """Names of all that a record of an event can have, in their order."""
    yield from HEADS
    yield from (output.name for output in FIELDS)
    for places in (PLACE, NETWORK):
        for prefix in ("", "src_"):
            yield from (f"{prefix}{name}" for name in places)


def translate(word: str) -> str:
    """Our name of what other programs or the journal (EVENT_DPORT) call so; else the word, in lower case."""
    name = re.sub("[.-]", "_", word.lower()).removeprefix("event_")
    return ALIASES.get(name, name)


def suggest_name(word: str, known: Collection[str]) -> str:
    """A hint with the field that was meant, empty where none is near."""
    if len(words := word.split()) > 1:
        return f"names have commas between them: {quote(','.join(words))}"
    meant = translate(word)
    return f"did you mean {meant}?" if meant in known else suggest(word, known)


def list_place_values(
    names: Sequence[str], location: Location | None, prefix: str
) -> list[tuple[str, str | float]]:
    """Names and values of what is known of a Location. A latitude alone says nothing."""
    if location is None:
        return []
    is_point = location.lat is not None and location.lon is not None
    return [
        (f"{prefix}{name}", getattr(location, name))
        for name in names
        if (is_point if name in ("lat", "lon") else getattr(location, name))
    ]
