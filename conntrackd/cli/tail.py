"""conntrackctl tail: live events, filtered by the daemon, on a terminal or in a pipe."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from conntrackd.cli.common import add_bus, connect, parse_count
from conntrackd.cli.verb import Verb
from conntrackd.errors import UnavailableError, show_controls

COLOURS: Final = {
    "NEW": "32",
    "UPDATE": "36",
    "DESTROY": "33",
    "SNAPSHOT": "34",
    "FLOW": "33",
    "LOST": "1;31",
}
CHUNK: Final = 1 << 20
LOST: Final = b'"type":"LOST"'  # which no limit counts
# As sinks/encode.py names them: what has no prefix is the destination's, or the source's own direction.
LOCATION_FIELDS: Final = ("src_city", "src_country", "city", "country")
SIZES: Final = ("bytes", "reply_bytes")


def add_rules(parser: ArgumentParser) -> None:
    """Which events: for the verbs that read a tail."""
    add_bus(parser)
    parser.add_argument(
        "--filter", action="append", default=[], metavar="RULE", help="filter rule; can be repeated"
    )


def add_arguments(parser: ArgumentParser) -> None:
    add_rules(parser)
    parser.add_argument("-n", dest="count", type=parse_count, metavar="N", help="exit after N events")
    parser.add_argument(
        "-o",
        dest="form",
        choices=("short", "json", "full"),
        default="short",
        help="output format (default: short)",
    )
    parser.add_argument("--json", dest="form", action="store_const", const="json", help="same as -o json")


def show_tail(arguments: Namespace) -> int:
    """Until ^C, until there were so many, or until the daemon ends it."""
    with connect(arguments) as client:
        pipe = client.open_tail(arguments.filter, arguments.count or 0)
    is_terminal = sys.stdout.isatty()
    colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    seen = 0
    try:
        for chunk in read_chunks(pipe):
            seen += chunk.count(b"\n") - chunk.count(LOST)
            print_chunk(chunk, arguments.form, is_terminal=is_terminal, colour=colour)
    except KeyboardInterrupt:
        return 0
    finally:
        os.close(pipe)
    if arguments.count is None or seen < arguments.count:
        raise UnavailableError(
            "the daemon has closed the tail", hint="the daemon was stopped, or this terminal read too slowly"
        )
    return 0


def read_chunks(pipe: int) -> Iterator[bytes]:
    """Whole lines, as many as are there."""
    rest = b""
    while data := os.read(pipe, CHUNK):
        lines, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield lines + newline


def print_chunk(chunk: bytes, form: str, *, is_terminal: bool, colour: bool) -> None:
    """To stdout at once. Into a pipe JSON goes as it came."""
    if form == "json" and not is_terminal:
        sys.stdout.buffer.write(chunk)
    else:
        render = {"json": render_json, "full": render_full, "short": render_short}[form]
        for line in chunk.splitlines():
            print(render(json.loads(line), colour))
    sys.stdout.flush()


def render_json(record: Mapping[str, Any], colour: bool) -> str:
    """In ASCII: no terminal obeys it."""
    return json.dumps(record)


def render_short(record: Mapping[str, Any], colour: bool) -> str:
    """One line: time, event, protocol, ends, and what else there is to say."""
    time, kind = render_time(str(record.get("time", ""))), str(record.get("type", ""))
    if kind == "LOST":
        return paint(f"{time} {show_line(record.get('msg', ''))}", kind, colour)
    ends = f"{render_end(record, 'src', 'sport')} -> {render_end(record, 'dst', 'dport')}"
    extra = [str(record[name]) for name in ("state", *LOCATION_FIELDS) if record.get(name)]
    sizes = [record[name] for name in SIZES if name in record]
    if sizes:
        extra.append(f"{sum(sizes)} bytes")
    text = f"{kind:<8} {show_line(record.get('prot', '')):<5} {show_line(ends)}"
    rest = f"  {', '.join(extra)}" if extra else ""
    return f"{time} {paint(text, kind, colour)}{show_line(rest)}"


def render_time(text: str) -> str:
    """The time of day here, as `status` has it; JSON and the full form have UTC."""
    from datetime import datetime  # noqa: PLC0415  # for people alone

    try:
        return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (ValueError, OverflowError):
        return text[11:23]


def render_full(record: Mapping[str, Any], colour: bool) -> str:
    """All fields, one a line, and an empty line at the end."""
    lines = [f"{show_line(name)}: {show_line(value)}" for name, value in record.items()]
    lines[:1] = [paint(lines[0], str(record.get("type", "")), colour)] if lines else []
    return "\n".join(lines) + "\n"


def render_end(record: Mapping[str, Any], address: str, port: str) -> str:
    """`192.0.2.1:443`, `[2001:db8::1]:443`."""
    text = str(record.get(address, ""))
    text = f"[{text}]" if ":" in text and port in record else text
    return f"{text}:{record[port]}" if port in record else text


def show_line(value: object) -> str:
    """Text of others on one line, with everything visible that a terminal would obey."""
    return show_controls(str(value)).replace("\n", "\\n")


def paint(text: str, kind: str, colour: bool) -> str:
    return f"\033[{COLOURS[kind]}m{text}\033[0m" if colour and kind in COLOURS else text


VERBS: Final = (Verb(("tail",), "follow events as they happen", add_arguments, show_tail),)
