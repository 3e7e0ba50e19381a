"""Flow -> named output fields -> text. The only place that knows the names people see, and their order.

Every format writes the same fields in the same order and differs only in what stands around a value. That is
its Syntax; one Renderer writes all of them. JSON lines are encoded here; encode_syslog.py, encode_loki.py and
encode_journal.py put their own envelope around what a Renderer gives them.
"""

import json
import time
from collections.abc import Callable
from datetime import datetime
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, NamedTuple

from conntrackd.cache import Cache
from conntrackd.flow import (
    NANO,
    Batch,
    EventType,
    Flow,
    Location,
    Lost,
    Nat,
    Protocol,
    Reason,
    TcpState,
    find_nat,
)

# Bounds of the caches, so that a scan of the whole Internet cannot eat the memory.
MAX_ADDRESSES: Final = 65_536
MAX_SECONDS: Final = 64
MAX_HEADS: Final = 4096
MAX_LOCATIONS: Final = 16_384

PROTOCOL_NAMES: Final = {each.value: each.name for each in Protocol}
STATE_NAMES: Final = {each.value: each.name for each in TcpState}
PLACES: Final = {"kernel": "the kernel's buffer", "daemon": "the daemon"}
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


Rendered = tuple[str, str, str, str, Flow | Lost]
"""One record in the words that people see, ready for an envelope: time, level, message, fields, the record.

The time is RFC 3339 with nanoseconds and the local offset; the level is INFO, or WARN for a loss; the message
is one sentence, without any character that a format would have to escape; the fields are all further ones in
the Renderer's syntax. A plain tuple: a named one takes 0.25 us to build, half of what all texts take.
"""


def render_address(address: bytes) -> str:
    """4 or 16 bytes -> text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def render_protocol(number: int) -> str:
    """6 -> `TCP`; a protocol without a name here -> its number."""
    return PROTOCOL_NAMES.get(number) or str(number)


def _render_second(second: str) -> tuple[str, str]:
    """What stands before and after the fraction of a second: date and time, and the local offset."""
    local = time.localtime(int(second))
    sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
    hours, minutes = divmod(offset // 60, 60)
    return time.strftime("%Y-%m-%dT%H:%M:%S.", local), f"{sign}{hours:02d}:{minutes:02d}"


def parse_time(text: str) -> int:
    """What Renderer.render_time() makes of nanoseconds -> nanoseconds."""
    second = datetime.fromisoformat(text[:19] + text[29:])
    return int(second.timestamp()) * NANO + int(text[20:29])


def _render_duration(nanoseconds: int) -> str:
    """Seconds with all nine decimals. Negative when the clock was set back between start and stop."""
    seconds, rest = divmod(abs(nanoseconds), NANO)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{rest:09d}"


class _Head(NamedTuple):
    """What all events of one type, protocol and state have in common."""

    message: str
    before_id: str
    after_id: str
    state: str


class Renderer:
    """Records -> Rendered, in one syntax. Belongs to one thread: its caches have no lock."""

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._addresses = Cache(render_address, MAX_ADDRESSES)
        self._seconds = Cache(_render_second, MAX_SECONDS)
        self._heads = Cache(self._render_head, MAX_HEADS)
        self._reasons = Cache(self._render_reason, MAX_HEADS)
        self._locations: dict[tuple[int, int], tuple[Location | None, Location | None, str]] = {}
        text, number = syntax.open_text, syntax.open_number
        next_text, next_number = syntax.close_text, syntax.close_number
        # Openings are made once: to format the names for each event would be half of the work.
        self._dst = next_text + text("dst")
        self._sport = next_text + number("sport")
        self._dport = next_number + number("dport")
        self._nat = (
            text("nat"),
            next_text + text("nat_src"),
            number("nat_sport"),
            text("nat_dst"),
            number("nat_dport"),
        )
        self._orig = (number("packets"), next_number + number("bytes"))
        self._reply = (number("reply_packets"), next_number + number("reply_bytes"))
        self._times = (text("start"), text("stop"), number("duration"))

    def render(self, batch: Batch) -> list[Rendered]:
        """All records of the batch, in their order."""
        rendered: list[Rendered] = []
        # Bound once a batch: this loop runs once an event, and an attribute of self costs as much as a field.
        append, addresses = rendered.append, self._addresses
        seconds, heads, reasons = self._seconds, self._heads, self._reasons
        dst_open, sport_open, dport_open = self._dst, self._sport, self._dport
        close_text, close_number = self._syntax.close_text, self._syntax.close_number
        for flow in batch:
            if isinstance(flow, Lost):
                append(self._render_lost(flow))
                continue
            # Ten digits at least; without a format it takes a third of the time, and dates are after 1970.
            when = str(flow.time) if flow.time >= NANO else f"{flow.time:010}"
            before, after = seconds[when[:-9]]
            message, before_id, after_id, state = heads[flow.type, flow.protocol, flow.state]
            src, dst, sport, dport = flow.src, flow.dst, flow.sport, flow.dport
            here, there = addresses[src], addresses[dst]
            if sport >= 0:
                # Each number becomes text once, for message and fields: half of what an f-string takes.
                here_port, there_port = str(sport), str(dport)
                fields = (
                    f"{before_id}{flow.id}{after_id}{here}{dst_open}{there}"
                    f"{sport_open}{here_port}{dport_open}{there_port}{close_number}{state}"
                )
                if len(src) == 4:
                    message = f"{message}{here}:{here_port} to {there}:{there_port}"
                else:
                    message = f"{message}[{here}]:{here_port} to [{there}]:{there_port}"
            else:
                message = f"{message}{here} to {there}"
                fields = f"{before_id}{flow.id}{after_id}{here}{dst_open}{there}{close_text}"
            if (
                flow.reply_src != dst
                or flow.reply_dst != src
                or flow.reply_sport != dport
                or flow.reply_dport != sport
            ):
                fields += self._render_nat(flow)
            if flow.mark or flow.zone or flow.orig_packets >= 0 or flow.start or flow.icmp_type >= 0:
                fields += self._render_details(flow)
            if flow.reason >= 0:
                fields += reasons[flow.reason]
            if flow.dst_location is not None or flow.src_location is not None:
                fields += self._render_locations(flow)
            append((f"{before}{when[-9:]}{after}", "INFO", message, fields, flow))
        return rendered

    def render_time(self, nanoseconds: int) -> str:
        """Nanoseconds since the epoch -> RFC 3339 with the local offset."""
        when = str(nanoseconds) if nanoseconds >= NANO else f"{nanoseconds:010}"
        before, after = self._seconds[when[:-9]]
        return f"{before}{when[-9:]}{after}"

    def _render_head(self, key: tuple[int, int, int]) -> _Head:
        event, number, state = key
        type_name = EventType(event).name or str(event)
        protocol = render_protocol(number)
        syntax = self._syntax
        return _Head(
            f"{type_name} {protocol} connection from ",
            syntax.text("type", type_name) + syntax.open_number("flow"),
            syntax.close_number + syntax.text("prot", protocol) + syntax.open_text("src"),
            syntax.text("state", STATE_NAMES.get(state) or str(state)) if state >= 0 else "",
        )

    def _render_reason(self, reason: int) -> str:
        return self._syntax.text("reason", Reason(reason).name.lower())

    def _render_nat(self, flow: Flow) -> str:
        """The addresses on the other side of the translation: where replies come from and go to."""
        opening, src_open, sport_open, dst_open, dport_open = self._nat
        addresses, close_text, close_number = (
            self._addresses,
            self._syntax.close_text,
            self._syntax.close_number,
        )
        here, there = addresses[flow.reply_dst], addresses[flow.reply_src]
        fields = f"{opening}{NAT_NAMES[find_nat(flow)]}{src_open}{here}{close_text}"
        if flow.reply_dport >= 0:
            fields += f"{sport_open}{flow.reply_dport}{close_number}"
        fields += f"{dst_open}{there}{close_text}"
        if flow.reply_sport >= 0:
            fields += f"{dport_open}{flow.reply_sport}{close_number}"
        return fields

    def _render_details(self, flow: Flow) -> str:
        number = self._syntax.number
        fields = number("mark", flow.mark) if flow.mark else ""
        if flow.zone:
            fields += number("zone", flow.zone)
        if flow.orig_packets >= 0:
            packets, octets = self._orig
            fields += f"{packets}{flow.orig_packets}{octets}{flow.orig_bytes}{self._syntax.close_number}"
        if flow.reply_packets >= 0:
            packets, octets = self._reply
            fields += f"{packets}{flow.reply_packets}{octets}{flow.reply_bytes}{self._syntax.close_number}"
        if flow.start or flow.stop:
            fields += self._render_times(flow.start, flow.stop)
        if flow.icmp_type >= 0:
            fields += number("icmp_type", flow.icmp_type) + number("icmp_code", flow.icmp_code)
        return fields

    def _render_times(self, start: int, stop: int) -> str:
        start_open, stop_open, duration_open = self._times
        close = self._syntax.close_text
        fields = f"{start_open}{self.render_time(start)}{close}" if start else ""
        if stop:
            fields += f"{stop_open}{self.render_time(stop)}{close}"
        if start and stop:
            fields += f"{duration_open}{_render_duration(stop - start)}{self._syntax.close_number}"
        return fields

    def _render_locations(self, flow: Flow) -> str:
        """Cached by identity: GeoIP shares its Location objects. Entries keep them, and their ids, alive."""
        key = (id(flow.dst_location), id(flow.src_location))
        entry = self._locations.get(key)
        if entry is None:
            if len(self._locations) >= MAX_LOCATIONS:
                self._locations.clear()
            there, here = flow.dst_location, flow.src_location
            places = self._render_place(there, "") + self._render_place(here, "src_")
            networks = self._render_network(there, "") + self._render_network(here, "src_")
            entry = self._locations[key] = (there, here, places + networks)
        return entry[2]

    def _render_place(self, location: Location | None, prefix: str) -> str:
        if location is None:
            return ""
        text, number = self._syntax.text, self._syntax.number
        fields = text(f"{prefix}city", location.city) if location.city else ""
        if location.country:
            fields += text(f"{prefix}country", location.country)
        if location.lat is not None and location.lon is not None:
            fields += number(f"{prefix}lat", location.lat) + number(f"{prefix}lon", location.lon)
        return fields

    def _render_network(self, location: Location | None, prefix: str) -> str:
        if location is None:
            return ""
        fields = self._syntax.number(f"{prefix}asn", location.asn) if location.asn else ""
        if location.as_org:
            fields += self._syntax.text(f"{prefix}as_org", location.as_org)
        return fields

    def _render_lost(self, lost: Lost) -> Rendered:
        text, number = self._syntax.text, self._syntax.number
        events = "1 event" if lost.count == 1 else f"{lost.count} events"
        if lost.count < 0:  # nobody knows how many
            events = "all events" if lost.where == "daemon" else "events"
        where = PLACES.get(lost.where) or f"sink {lost.where}"
        because = f" ({lost.reason})" if lost.reason else ""
        fields = text("type", "LOST") + (number("lost", lost.count) if lost.count >= 0 else "")
        fields += text("since", self.render_time(lost.since)) + text("until", self.render_time(lost.until))
        fields += text("where", lost.where) + (text("reason", lost.reason) if lost.reason else "")
        return self.render_time(lost.until), "WARN", f"LOST {events} in {where}{because}", fields, lost


class JsonEncoder:
    """Records -> JSON lines, as the stream sink writes them. Belongs to one thread."""

    def __init__(self) -> None:
        self._renderer = Renderer(JSON)

    def encode(self, batch: Batch) -> bytes:
        """One object a line, each line ended by a newline, UTF-8."""
        lines = [
            f'{{"time":"{when}","level":"{level}","msg":"{message}"{fields}}}\n'
            for when, level, message, fields, _ in self._renderer.render(batch)
        ]
        return "".join(lines).encode()
