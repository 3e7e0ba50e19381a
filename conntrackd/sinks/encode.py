"""Flow -> named output fields -> text. The only place that knows the names people see, and their order.

Every format writes the same fields in the same order and differs only in what stands around a value, which is
its Syntax, and in what stands around the fields, which is its Form. compose.py makes of these what runs once
an event; the forms are in encode_json.py, encode_syslog.py, encode_loki.py and encode_journal.py.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from socket import AF_INET, AF_INET6, inet_ntop
from string import Template
from typing import Final, NamedTuple

from conntrackd.cache import Cache
from conntrackd.flow import (
    NANO,
    EventType,
    Location,
    Lost,
    Nat,
    Protocol,
    Reason,
    TcpState,
)

# Bounds of the caches, so that a scan of the whole Internet cannot eat the memory.
MAX_ADDRESSES: Final = 65_536
MAX_SECONDS: Final = 4096  # flows that end now have begun in as many different ones

PROTOCOL_NAMES: Final = {each.value: each.name for each in Protocol}
STATE_NAMES: Final = {each.value: each.name for each in TcpState}
PLACES: Final = {"kernel": "the kernel's buffer", "tracking": "the kernel", "daemon": "the daemon"}
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
NAT_NAMES: Final = tuple(each.name for each in map(Nat, range(4)))


class Syntax(NamedTuple):
    """What stands around a field's value; an opening is made of the field's name."""

    open_text: Callable[[str], str]
    close_text: str
    open_number: Callable[[str], str]
    close_number: str
    escape: Callable[[str], str]

    def text(self, name: str, value: str) -> str:
        """One field whose value is text."""
        return f"{self.open_text(name)}{self.escape(value)}{self.close_text}"

    def number(self, name: str, value: float) -> str:
        """One field whose value is a number."""
        return f"{self.open_number(name)}{value}{self.close_number}"


def make_visible(value: str) -> str:
    """Text that ends no line and that no terminal obeys; what is printable is as it was."""
    if value.isprintable():
        return value
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in value)


def escape_json(value: str) -> str:
    """Text -> what stands between the quotes of a JSON string, in UTF-8, unless a terminal would obey it."""
    return json.dumps(value, ensure_ascii=not value.isprintable())[1:-1]


JSON: Final = Syntax(',"{}":"'.format, '"', ',"{}":'.format, "", escape_json)


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """How a sink writes a record: a text with words in it, each behind a `$`.

    Of every record: `$message` (one sentence, without any character that a format would have to escape),
    `$fields` (all others, in the syntax), `$type`, and its time as `$time` (RFC 3339 with nanoseconds and the
    local offset), `$micros` (the same with six digits), `$bsd` (RFC 3164) or `$moment` (nanoseconds since the
    epoch, and no two of a batch with the same message have the same). Further words are the form's own.
    """

    syntax: Syntax
    template: str
    event: Mapping[str, str]
    """The form's own words where the record is an event."""
    loss: Mapping[str, str]
    """And where it is a loss."""
    by_stream: bool = False
    """Whether the texts of a batch are kept apart by type and protocol, joined by commas."""


def render_address(address: bytes) -> str:
    """4 or 16 bytes -> text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def render_protocol(number: int) -> str:
    """6 -> `TCP`; a protocol without a name here -> its number."""
    return PROTOCOL_NAMES.get(number) or str(number)


def _render_second(second: str) -> tuple[str, str, str]:
    """What stands before and after its fraction, date and time, and the local offset; RFC 3164's form."""
    local = time.localtime(int(second))
    sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
    hours, minutes = divmod(offset // 60, 60)
    # RFC 3164, 4.1.2: local time without a year, the day in two places.
    bsd = f"{MONTHS[local.tm_mon - 1]} {local.tm_mday:2} {time.strftime('%H:%M:%S', local)}"
    return time.strftime("%Y-%m-%dT%H:%M:%S.", local), f"{sign}{hours:02d}:{minutes:02d}", bsd


def parse_time(text: str) -> int:
    """What Words.render_time() makes of nanoseconds -> nanoseconds."""
    second = datetime.fromisoformat(text[:19] + text[29:])
    return int(second.timestamp()) * NANO + int(text[20:29])


def render_duration(nanoseconds: int) -> str:
    """Seconds with all nine decimals. Negative when the clock was set back between start and stop."""
    seconds, rest = divmod(abs(nanoseconds), NANO)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{rest:09d}"


def render_type(event: int) -> str:
    """1 -> `NEW`."""
    return EventType(event).name or str(event)


def render_number(nanoseconds: int) -> str:
    """A time in ten digits at least."""
    # Without a format it takes a third of the time, and dates are after 1970.
    return str(nanoseconds) if nanoseconds >= NANO else f"{nanoseconds:010}"


class Words:
    """What all syntaxes have in common, cached. Belongs to one thread: its caches have no lock."""

    def __init__(self) -> None:
        self.addresses = Cache(render_address, MAX_ADDRESSES)
        self.seconds = Cache(_render_second, MAX_SECONDS)
        """Seconds as text -> what stands before and after their fraction in RFC 3339, and RFC 3164's form."""

    def render_time(self, nanoseconds: int) -> str:
        """Nanoseconds since the epoch -> RFC 3339 with the local offset."""
        when = render_number(nanoseconds)
        before, after, _ = self.seconds[when[:-9]]
        return f"{before}{when[-9:]}{after}"


class Field(NamedTuple):
    """A name that people see, and the word of compose.py's loop that is its value."""

    name: str
    word: str
    is_text: bool = False


class Section(NamedTuple):
    """Fields that only some events have: when, the statement that makes their words, and the fields."""

    condition: str
    words: str
    fields: tuple[Field, ...]


NAT_WORDS: Final = (
    "nat, nat_src, nat_dst = NAT_NAMES[find_nat(flow)], addresses[flow.reply_dst], addresses[flow.reply_src]"
)
NAT_PORTS: Final = (Field("nat_sport", "flow.reply_dport"), Field("nat_dport", "flow.reply_sport"))
NAT_FIELDS: Final = (
    Field("nat", "nat", is_text=True),
    Field("nat_src", "nat_src", is_text=True),
    NAT_PORTS[0],
    Field("nat_dst", "nat_dst", is_text=True),
    NAT_PORTS[1],
)
PORTS: Final = (Field("sport", "here_port"), Field("dport", "there_port"))
# Behind the ports and the state, before the reason and the places, in this order. The addresses on the other
# side of a translation are those where replies come from and go to.
SECTIONS: Final = (
    Section("is_nat and sport >= 0", NAT_WORDS, NAT_FIELDS),
    Section("is_nat and sport < 0", NAT_WORDS, tuple(each for each in NAT_FIELDS if each not in NAT_PORTS)),
    Section("flow.mark", "", (Field("mark", "flow.mark"),)),
    Section("flow.zone", "", (Field("zone", "flow.zone"),)),
    Section(
        "flow.orig_packets >= 0",
        "packets, octets = str(flow.orig_packets), str(flow.orig_bytes)",
        (Field("packets", "packets"), Field("bytes", "octets")),
    ),
    Section(
        "flow.reply_packets >= 0",
        "packets, octets = str(flow.reply_packets), str(flow.reply_bytes)",
        (Field("reply_packets", "packets"), Field("reply_bytes", "octets")),
    ),
    Section("flow.start", "begun = render_time(flow.start)", (Field("start", "begun", is_text=True),)),
    Section("flow.stop", "ended = render_time(flow.stop)", (Field("stop", "ended", is_text=True),)),
    Section(
        "flow.start and flow.stop",
        "duration = render_duration(flow.stop - flow.start)",
        (Field("duration", "duration"),),
    ),
    Section(
        "flow.icmp_type >= 0",
        "",
        (Field("icmp_type", "flow.icmp_type"), Field("icmp_code", "flow.icmp_code")),
    ),
)


def open_fields(syntax: Syntax, type_name: str, protocol: str) -> tuple[str, str]:
    """What stands before the flow's number, and between it and the first address."""
    before = syntax.text("type", type_name) + syntax.open_number("flow")
    return before, syntax.close_number + syntax.text("prot", protocol) + syntax.open_text("src")


def render_state(syntax: Syntax, state: int) -> str:
    """The field, or nothing for an event without."""
    return syntax.text("state", STATE_NAMES.get(state) or str(state)) if state >= 0 else ""


def render_reason(syntax: Syntax, reason: int) -> str:
    """The field, or nothing for an event without."""
    return syntax.text("reason", Reason(reason).name.lower()) if reason >= 0 else ""


def render_locations(syntax: Syntax, there: Location | None, here: Location | None) -> str:
    """Where destination and source are, as far as it is known."""
    places = _render_place(syntax, there, "") + _render_place(syntax, here, "src_")
    return places + _render_network(syntax, there, "") + _render_network(syntax, here, "src_")


def _render_place(syntax: Syntax, location: Location | None, prefix: str) -> str:
    if location is None:
        return ""
    fields = syntax.text(f"{prefix}city", location.city) if location.city else ""
    if location.country:
        fields += syntax.text(f"{prefix}country", location.country)
    if location.lat is not None and location.lon is not None:
        fields += syntax.number(f"{prefix}lat", location.lat) + syntax.number(f"{prefix}lon", location.lon)
    return fields


def _render_network(syntax: Syntax, location: Location | None, prefix: str) -> str:
    if location is None:
        return ""
    fields = syntax.number(f"{prefix}asn", location.asn) if location.asn else ""
    if location.as_org:
        fields += syntax.text(f"{prefix}as_org", location.as_org)
    return fields


def render_loss(form: Form, lost: Lost, words: Words) -> str:
    """A loss as the form writes it. Not often: it need not be fast."""
    when = words.render_time(lost.until)
    own = {
        "message": describe_loss(lost),
        "fields": _render_lost(form.syntax, lost, words),
        "type": "LOST",
        "time": when,
        "micros": when[:26] + when[29:],
        "bsd": words.seconds[render_number(lost.until)[:-9]][2],
        "moment": str(lost.until),
    }
    return Template(form.template).substitute({**form.loss, **own})


def _render_lost(syntax: Syntax, lost: Lost, words: Words) -> str:
    text, number, render_time = syntax.text, syntax.number, words.render_time
    fields = text("type", "LOST") + (number("lost", lost.count) if lost.count >= 0 else "")
    fields += text("since", render_time(lost.since)) + text("until", render_time(lost.until))
    return fields + text("where", lost.where) + (text("reason", lost.reason) if lost.reason else "")


def describe_loss(lost: Lost) -> str:
    """One sentence."""
    events = "1 event" if lost.count == 1 else f"{lost.count} events"
    if lost.count < 0:  # nobody knows how many
        events = "all events" if lost.where in {"daemon", "tracking"} else "events"
    where = PLACES.get(lost.where) or f"sink {lost.where}"
    because = f" ({lost.reason})" if lost.reason else ""
    return f"LOST {events} in {where}{because}"
