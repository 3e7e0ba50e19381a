"""Records as people and programs read them: the one way of drawing lines, for `tail` and `events`."""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from conntrackd.cli.columns import GAP, cut, measure, pad, share, shorten
from conntrackd.errors import show_controls

if TYPE_CHECKING:
    from datetime import datetime

RecordView = Mapping[str, Any]

COLOURS: Final = {
    "NEW": "32",
    "UPDATE": "36",
    "DESTROY": "33",
    "SNAPSHOT": "34",
    "FLOW": "33",
    "ALIVE": "32",
    "LOST": "1;31",
    "SUPPRESSED": "35",
}
# Records that are no event, but a sentence.
REPORTS: Final = ("LOST", "SUPPRESSED")
# As the sinks name them: what has no prefix is the destination's, or the source's own direction.
PLACES: Final = ("src_city", "src_country", "city", "country")
SIZES: Final = ("bytes", "reply_bytes")
# What names of services may stand for: a source's port is its own choice.
SERVICES: Final = ("dport", "nat_dport", "master_dport")
TRANSLATIONS: Final = (("SNAT", "nat_src", "nat_sport"), ("DNAT", "nat_dst", "nat_dport"))
TIMES: Final = ("time", "start", "stop", "first_seen", "since", "until")
# Columns of `table` and `wide`, and the room that most values need; others push the rest to the right.
TABLE: Final = ("time", "type", "prot", "src", "sport", "dst", "dport", "state", "bytes", "reply_bytes")
WIDE: Final = (*TABLE, "nat", "nat_src", "nat_sport", "nat_dst", "nat_dport", "duration", "country", "reason")
WIDTHS: Final = {"time": 23, "type": 8, "state": 11, "src": 15, "dst": 15, "nat_src": 15, "nat_dst": 15}
WIDTH: Final = 7
# On a terminal that has no room for TABLE: 80 columns, in which an end is an IPv4 address with its port.
NARROW: Final = {"time": 8, "type": 8, "prot": 5, "source": 21, "destination": 21, "bytes": 7}
ENDS: Final = {"source": ("src", "sport"), "destination": ("dst", "dport")}
# Of both ends in a short line: what follows is a column, and with the time of day and a state all is 80 wide.
ENDS_WIDTH: Final = 39
# To the right, below their headings; a port of a destination may be a name.
NUMBERS: Final = frozenset({"sport", "nat_sport", "bytes", "reply_bytes", "packets", "duration"})


@dataclass(frozen=True, slots=True)
class Style:
    """How lines are drawn. The defaults are those of `tail`."""

    colour: bool = False
    has_dates: bool = False
    """Whether the date stands before the time of day."""
    has_millis: bool = True
    utc: bool = False
    services: bool = False
    """Whether ports of destinations have the names of /etc/services."""
    fields: tuple[str, ...] = ()
    """Those that are shown, in this order; none for all of them, or the usual ones."""
    width: int | None = None
    """Of the terminal; None where lines have no end."""


PLAIN: Final = Style()


def should_colour(wish: str = "auto") -> bool:
    """`always`, `never`, or `auto`: on a terminal that can, unless NO_COLOR is set."""
    if wish != "auto":
        return wish == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render_short(record: RecordView, style: Style = PLAIN) -> str:
    """One line: time, event, protocol, ends, and what else is known."""
    time, kind = render_time(str(record.get("time", "")), style), str(record.get("type", ""))
    host = f" {show_line(record['host'])}" if record.get("host") else ""
    if kind in REPORTS:
        return paint(f"{time}{host} {show_line(record.get('msg', ''))}", kind, style)
    ends = f"{render_end(record, 'src', 'sport', style)} -> {render_end(record, 'dst', 'dport', style)}"
    states = [str(record["state"])] if record.get("state") else []
    extra = [*states, *list_translations(record, style)]
    extra += [str(record[name]) for name in PLACES if record.get(name)]
    sizes = [record[name] for name in SIZES if name in record]
    if len(sizes) == len(SIZES):  # sink.NAME.fields can leave out one, and a part is not the sum
        extra.append(f"{sum(sizes)} bytes")
    if isinstance(duration := record.get("duration"), int | float):
        extra.append(f"{duration:.1f} s")
    text = f"{kind:<8} {show_line(record.get('prot', '')):<5} {show_line(ends)}"
    rest = f"{' ' * (ENDS_WIDTH - len(ends))}{GAP}{', '.join(extra)}" if extra else ""
    return f"{time}{host} {paint(text, kind, style)}{show_line(rest)}"


def list_translations(record: RecordView, style: Style) -> Iterator[str]:
    """`SNAT 198.51.100.1:1025`: what the other side sees; by that name somebody asks for the flow."""
    for kind, address, port in TRANSLATIONS:
        if record.get("nat") in (kind, "BOTH") and address in record:
            yield f"{kind} {render_end(record, address, port, style)}"


def render_full(record: RecordView, style: Style = PLAIN) -> str:
    """All fields, one a line, and an empty line at the end."""
    lines = [
        f"{show_line(name)}: {render_value(record, name, style, shorten=False)}"
        for name in choose(record, style.fields)
    ]
    lines[:1] = [paint(lines[0], str(record.get("type", "")), style)] if lines else []
    return "\n".join(lines) + "\n"


def render_json(record: RecordView, style: Style = PLAIN) -> str:
    """In ASCII: no terminal obeys it. Times are as they were written, unless UTC is asked for."""
    chosen = {name: record[name] for name in choose(record, style.fields)}
    if style.utc:
        chosen |= {name: to_utc(chosen[name]) for name in TIMES if name in chosen}
    return json.dumps(chosen)


def render_csv(values: Sequence[str]) -> str:
    """A row of RFC 4180, without its end."""
    import csv  # noqa: PLC0415  # for one form alone
    import io  # noqa: PLC0415

    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def render_csv_record(record: RecordView, style: Style) -> str:
    """The fields of the style; empty where the record has none."""
    times = {name: to_utc(record[name]) for name in TIMES if style.utc and name in record}
    values = {**record, **times}
    return render_csv([show_line("" if values.get(name) is None else values[name]) for name in style.fields])


def render_heading(style: Style) -> str:
    """The names of the columns."""
    return render_row([name.upper() for name in style.fields], style)


def render_table_record(record: RecordView, style: Style) -> str:
    """A row below the heading. A loss, which has none of these fields, is a sentence."""
    kind = str(record.get("type", ""))
    if kind in REPORTS:
        return paint(
            cut(
                f"{render_time(str(record.get('time', '')), style)}{GAP}{show_line(record.get('msg', ''))}",
                style.width,
            ),
            kind,
            style,
        )
    cells = [
        show_line(render_end(record, *ENDS[name], style))
        if name in ENDS
        else render_value(record, name, style)
        for name in style.fields
    ]
    return paint(render_row(cells, style), kind, style)


def fit(style: Style) -> Style:
    """With fewer columns, and then with shorter times, where the terminal has no room for all."""
    if style.width is None:
        return style
    narrow = replace(style, fields=tuple(NARROW))
    for fitting in (style, narrow):
        if len(render_heading(replace(fitting, width=None))) <= style.width:
            return fitting
    return replace(narrow, has_dates=False, has_millis=False)


def render_row(cells: Sequence[str], style: Style) -> str:
    """Cells in columns of fixed width: a row is drawn before the next one is known."""
    if style.fields == tuple(NARROW):
        widths = share_narrow(cells, style)
        cells = list(map(shorten, cells, widths))
    else:
        widths = [
            max(WIDTH, len(name)) if name in NUMBERS else WIDTHS.get(name, WIDTH) for name in style.fields
        ]
    padded = [
        pad(cell, width, to_right=name in NUMBERS)
        for name, cell, width in zip(style.fields, cells, widths, strict=True)
    ]
    return cut(GAP.join(padded).rstrip(), style.width)


def share_narrow(cells: Sequence[str], style: Style) -> list[int]:
    """The widths of NARROW: what is too long in another column is taken from both ends."""
    sizes = NARROW | ({"time": WIDTHS["time"]} if style.has_dates else {})
    widths = [
        size if name in ENDS else max(size, measure(cell))
        for (name, size), cell in zip(sizes.items(), cells, strict=True)
    ]
    ends = slice(3, 5)
    widths[ends] = share(widths[ends], sum(sizes.values()) - sum(widths) + sum(widths[ends]))
    return widths


def choose(record: RecordView, fields: Sequence[str]) -> Sequence[str]:
    """The names of what is shown of a record."""
    return [name for name in fields if name in record] if fields else list(record)


def render_value(record: RecordView, name: str, style: Style, *, shorten: bool = True) -> str:
    """One value for people."""
    value = record.get(name)
    if value is None:
        return ""
    if name in TIMES and (shorten or style.utc):
        return render_time(str(value), style) if shorten else to_utc(value)
    if name == "duration" and shorten and isinstance(value, int | float):
        return f"{value:.3f}"
    if style.services and name in SERVICES:
        return name_service(value, str(record.get("prot", "")))
    return show_line(value)


def render_time(text: str, style: Style = PLAIN) -> str:
    """The time of day here, as `status` has it, with the date where the style asks for it."""
    moment = parse_moment(text)
    if moment is None:
        return show_line(text)[11:23]
    from datetime import UTC  # noqa: PLC0415

    form = "%Y-%m-%d %H:%M:%S.%f" if style.has_dates else "%H:%M:%S.%f"
    return f"{moment.astimezone(UTC if style.utc else None):{form}}"[: -3 if style.has_millis else -7]


def to_utc(text: object) -> str:
    """A time as the sinks write it, with all its digits, and +00:00."""
    moment = parse_moment(str(text))
    if moment is None:
        return str(text)
    from datetime import UTC  # noqa: PLC0415

    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}{str(text)[19:29]}+00:00"


def parse_moment(text: str) -> "datetime | None":
    """A time with its offset; None where it is none."""
    from datetime import datetime  # noqa: PLC0415  # for people alone

    try:
        moment = datetime.fromisoformat(text)
        moment.astimezone()
    except (ValueError, OverflowError):
        return None
    return moment


def render_end(record: RecordView, address: str, port: str, style: Style = PLAIN) -> str:
    """`192.0.2.1:443`, `[2001:db8::1]:443`."""
    text = str(record.get(address, ""))
    text = f"[{text}]" if ":" in text and port in record else text
    return f"{text}:{render_value(record, port, style)}" if port in record else text


def name_service(port: object, protocol: str) -> str:
    """`https` for 443, where /etc/services knows it."""
    return _name_service(port, protocol.lower()) if isinstance(port, int) else show_line(port)


@cache  # of 65,536 ports and a handful of protocols
def _name_service(port: int, protocol: str) -> str:
    try:
        return show_line(socket.getservbyport(port, protocol))
    except (OSError, OverflowError):
        return str(port)


def show_line(value: object) -> str:
    """Text of others on one line, with everything visible that a terminal would obey."""
    return show_controls(str(value)).replace("\n", "\\n")


def paint(text: str, kind: str, style: Style) -> str:
    """In the colour of the event's type."""
    return f"\033[{COLOURS[kind]}m{text}\033[0m" if style.colour and kind in COLOURS else text


FORMS: Final[Mapping[str, Callable[[RecordView, Style], str]]] = {
    "short": render_short,
    "full": render_full,
    "json": render_json,
}
"""Those of `tail`."""
