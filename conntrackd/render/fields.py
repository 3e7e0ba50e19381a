"""The fields of an event as people see them: the one place that knows their names, and their order.

Every format writes the same fields in the same order, and differs only in what stands around a value.
"""

import re
from collections.abc import Collection, Iterator, Mapping
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
    """One field: its name, the attribute of Flow (and of the core's event) it shows, and what it says.

    It is written where the event has the attribute and everything in `needs`.
    """

    name: str
    kind: Kind
    attribute: str
    help: str
    needs: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)


TYPE_NAMES: Final = {event.value: name for name, event in EventType.__members__.items()}
PROTOCOL_NAMES: Final = {protocol.value: protocol.name for protocol in Protocol}
STATE_NAMES: Final = {state.value: state.name for state in TcpState}
REASON_NAMES: Final = {reason.value: reason.name.lower() for reason in Reason}
NAT_NAMES: Final = {number: str(Nat(number).name) for number in range(4)}

FIELDS: Final = (
    OutputField("type", Kind.NAME, "type", "what happened to the flow", names=TYPE_NAMES),
    OutputField("flow", Kind.NUMBER, "id", "the kernel's number of the flow"),
    OutputField("prot", Kind.NAME, "protocol", "transport protocol", names=PROTOCOL_NAMES),
    OutputField("src", Kind.ADDRESS, "src", "who opened the flow"),
    OutputField("dst", Kind.ADDRESS, "dst", "whom it was sent to"),
    OutputField("sport", Kind.NUMBER, "sport", "port of the source"),
    OutputField("dport", Kind.NUMBER, "dport", "port of the destination"),
    OutputField("state", Kind.NAME, "state", "state of a TCP flow", names=STATE_NAMES),
    OutputField("nat", Kind.NAME, "nat", "which end is translated", names=NAT_NAMES),
    # The addresses on the other side of a translation are those where replies come from and go to.
    OutputField("nat_src", Kind.ADDRESS, "reply_dst", "the source after the translation", ("nat",)),
    OutputField("nat_sport", Kind.NUMBER, "reply_dport", "its port", ("nat",)),
    OutputField("nat_dst", Kind.ADDRESS, "reply_src", "the destination after the translation", ("nat",)),
    OutputField("nat_dport", Kind.NUMBER, "reply_sport", "its port", ("nat",)),
    OutputField("mark", Kind.NUMBER, "mark", "mark of the connection"),
    OutputField("zone", Kind.NUMBER, "zone", "conntrack zone"),
    OutputField("reply_zone", Kind.NUMBER, "reply_zone", "zone of the reply direction alone"),
    OutputField("packets", Kind.NUMBER, "orig_packets", "packets sent by the source"),
    OutputField("bytes", Kind.NUMBER, "orig_bytes", "bytes sent by the source"),
    OutputField("reply_packets", Kind.NUMBER, "reply_packets", "packets that came back"),
    OutputField("reply_bytes", Kind.NUMBER, "reply_bytes", "bytes that came back"),
    OutputField("packets_delta", Kind.NUMBER, "orig_packets_delta", "of packets, since the last record"),
    OutputField("bytes_delta", Kind.NUMBER, "orig_bytes_delta", "of bytes, likewise"),
    OutputField("reply_packets_delta", Kind.NUMBER, "reply_packets_delta", "of reply_packets, likewise"),
    OutputField("reply_bytes_delta", Kind.NUMBER, "reply_bytes_delta", "of reply_bytes, likewise"),
    OutputField("start", Kind.TIME, "start", "time of the first packet"),
    OutputField("stop", Kind.TIME, "stop", "time of the end"),
    OutputField("first_seen", Kind.TIME, "first_seen", "time of its NEW, where there is no start"),
    OutputField("duration", Kind.DURATION, "duration", "seconds from start to stop"),
    OutputField(
        "incomplete", Kind.TRUTH, "incomplete", "of a FLOW: its beginning is not known", names={1: "true"}
    ),
    OutputField("icmp_type", Kind.NUMBER, "icmp_type", "type of an ICMP flow's first message"),
    OutputField("icmp_code", Kind.NUMBER, "icmp_code", "its code"),
    OutputField("icmp_id", Kind.NUMBER, "icmp_id", "identifier of an ICMP flow, its port"),
    OutputField(
        "nat_icmp_id", Kind.NUMBER, "reply_icmp_id", "the identifier after the translation", ("nat",)
    ),
    OutputField("helper", Kind.OWN_TEXT, "helper", "the connection's helper"),
    OutputField("secctx", Kind.OWN_TEXT, "secctx", "security context"),
    OutputField("ct_labels", Kind.LABELS, "labels", "conntrack labels that are set"),
    OutputField(
        "master_prot", Kind.NAME, "master_protocol", "protocol of the flow that this one was expected by",
        names=PROTOCOL_NAMES,
    ),
    OutputField("master_src", Kind.ADDRESS, "master_src", "who opened that one"),
    OutputField("master_dst", Kind.ADDRESS, "master_dst", "whom it was sent to"),
    OutputField("master_sport", Kind.NUMBER, "master_sport", "port of its source"),
    OutputField("master_dport", Kind.NUMBER, "master_dport", "port of its destination"),
    OutputField("reason", Kind.NAME, "reason", "why the flow ended", names=REASON_NAMES),
    OutputField("sample_rate", Kind.NUMBER, "sample_rate", "for how many flows this one stands"),
    OutputField(
        "community_id", Kind.COMMUNITY_ID, "community_id", "what other programs call the flow, too"
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlaceField:
    """What the databases know of an address; `src_` stands before the name where it is the source's."""

    name: str
    attribute: str
    help: str


# First where both ends are, then whose network that is.
PLACE: Final = (
    PlaceField("city", "city", "city"),
    PlaceField("country", "country", "name of the country"),
    PlaceField("country_code", "country_code", "its code, of ISO 3166"),
    PlaceField("lat", "lat", "latitude in degrees"),
    PlaceField("lon", "lon", "longitude in degrees"),
)
NETWORK: Final = (
    PlaceField("asn", "asn", "number of the autonomous system"),
    PlaceField("as_org", "as_org", "who runs it"),
)


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
    **{f"dst_{place.name}": place.name for place in (*PLACE, *NETWORK)},
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
            yield from (f"{prefix}{place.name}" for place in places)


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
    fields: tuple[PlaceField, ...], location: Location | None, prefix: str
) -> list[tuple[str, str | float]]:
    """Names and values of what is known of a Location. A latitude alone says nothing."""
    if location is None:
        return []
    is_point = location.lat is not None and location.lon is not None
    unknown = {"lat", "lon"} if not is_point else set()
    unknown |= {
        name for name in ("city", "country", "country_code", "asn", "as_org") if not getattr(location, name)
    }
    return [
        (f"{prefix}{output.name}", getattr(location, output.attribute))
        for output in fields
        if output.attribute not in unknown
    ]
