"""conntrackctl top: a live table of who talks, from the same tail."""

import json
import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any, Final

from conntrackd.cli.columns import GAP, NARROWEST, lay_out
from conntrackd.cli.common import add_updates
from conntrackd.cli.lines import show_line
from conntrackd.cli.screen import QUIT, REFRESH, Paper, open_view
from conntrackd.cli.summary import parse_by
from conntrackd.cli.tail import CHUNK, add_rules, open_tail
from conntrackd.cli.talkers import BY, SORTS, Ranking, Talkers
from conntrackd.cli.verb import Verb
from conntrackd.errors import UnavailableError
from conntrackd.text import as_root
from conntrackd.units import render_bytes

SHOWN: Final = 20  # rows, where no terminal's height says it
FRAME: Final = 3  # lines of a view besides its rows: totals, headings, keys
MAX_BY: Final = 5  # fields: more do not fit into 80 columns beside numbers
HEADINGS: Final = ("EVENTS", "EVENTS/S", "BYTES", "BYTES/S")
# Columns of numbers do not move while these are enough.
WIDTHS: Final = (7, 8, 9, 9)
# Which columns stay on a narrow terminal, behind the one that is sorted by.
IMPORTANT: Final = ("BYTES", "EVENTS", "EVENTS/S", "BYTES/S")
ADDRESS: Final = 15  # characters, of IPv4
# Of IPv6, and of a flow: what no key is longer than; the numbers stand behind that, where there is room.
LONGEST: Final = 39
LONGEST_FLOW: Final = 104
KEYS: Final = {"b": "bytes", "B": "bytes/s", "e": "events", "E": "events/s", "k": "key"}
REVERSE: Final = "R"
MOVES: Final = {"<": -1, ">": 1}
FOOT: Final = "sort: b bytes  B bytes/s  e events  E events/s  k key  < >   R reverse   q quit"


def parse_few(text: str) -> tuple[str, ...]:
    """What rows are counted by, for argparse."""
    names = parse_by(text)
    if len(names) > MAX_BY:
        raise ArgumentTypeError(f"{len(names)} fields: at most {MAX_BY} fit on a terminal")
    return names


def add_arguments(parser: ArgumentParser) -> None:
    add_rules(parser)
    parser.add_argument(
        "--by",
        type=parse_few,
        default="src",
        metavar="NAMES",
        help=f"count by these together: {', '.join(BY)}, or any field (default: src)",
    )
    parser.add_argument(
        "--sort", choices=SORTS, default=SORTS[0], help=f"column to sort by (default: {SORTS[0]})"
    )
    add_updates(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON per update")


def show_top(arguments: Namespace) -> int:
    """Until ^C or q, or after so many views."""
    pipe = open_tail(arguments)
    ranking = Ranking(Talkers(*arguments.by), arguments.sort, time.monotonic())
    try:
        with Paper() if arguments.json else open_view() as view:

            def show() -> None:
                if arguments.json:
                    view.draw([json.dumps(to_json(ranking, arguments.by))])
                else:
                    view.draw(render_table(ranking, arguments.by, view.size), 1, FOOT)

            if view.is_live:
                show()
            follow(pipe, view, ranking, arguments, show)
    except KeyboardInterrupt:
        pass
    finally:
        os.close(pipe)
    return 0


def follow(pipe: int, view: Paper, ranking: Ranking, arguments: Namespace, show: Callable[[], None]) -> None:
    """Read, and show what there is after each interval; obey keys at once."""
    rest, views = b"", 0
    until = time.monotonic() + arguments.interval
    while True:
        woken = view.wait(until - time.monotonic(), pipe)
        if woken.has_data:
            rest = read_records(pipe, rest, ranking.talkers)
        if QUIT in woken.keys:
            return
        if sum([obey(key, ranking) for key in woken.keys]):
            show()
        if time.monotonic() >= until:
            ranking.tick(time.monotonic())
            show()
            views += 1
            if views == arguments.count:
                return
            until = time.monotonic() + arguments.interval


def read_records(pipe: int, rest: bytes, talkers: Talkers) -> bytes:
    """Count what is there, and return the beginning of the next line."""
    data = os.read(pipe, CHUNK)
    if not data:
        raise UnavailableError("the daemon has closed the tail", hint=as_root("journalctl -u conntrackd"))
    lines, _, rest = (rest + data).rpartition(b"\n")
    for line in lines.splitlines():
        talkers.add(json.loads(line))
    return rest


def obey(key: str, ranking: Ranking) -> bool:
    """Change the order; whether the view is to be drawn again."""
    if key in KEYS:
        ranking.sort = KEYS[key]
    elif key in MOVES:
        ranking.sort = SORTS[(SORTS.index(ranking.sort) + MOVES[key]) % len(SORTS)]
    elif key == REVERSE:
        ranking.is_reversed = not ranking.is_reversed
    return key in (*KEYS, *MOVES, REVERSE, REFRESH, " ")


def to_json(ranking: Ranking, by: tuple[str, ...]) -> dict[str, Any]:
    """The stable form of one view."""
    talkers = ranking.talkers
    return {
        "by": ",".join(by),
        "sort": ranking.sort,
        "events": talkers.events,
        "events_per_second": round(ranking.event_rate, 1),
        "sampled": talkers.sampled,
        "lost": talkers.lost,
        "gaps": talkers.gaps,
        "suppressed": talkers.suppressed,
        "top": [
            {
                "key": " ".join(row.key),
                "values": dict(zip(by, row.key, strict=True)),
                "events": row.events,
                "events_per_second": round(row.event_rate, 1),
                "bytes": row.size,
                "bytes_per_second": round(row.byte_rate, 1),
            }
            for row in ranking.list(SHOWN)
        ],
    }


def render_table(
    ranking: Ranking, by: tuple[str, ...], size: tuple[int | None, int | None] = (None, None)
) -> list[str]:
    """Totals, headings, and as many rows as a terminal has room for; numbers stand in one place."""
    width, height = size
    shown = choose_columns(len(by), ranking.sort, width)
    rows = [(*(name.upper() for name in by), *(HEADINGS[number].rjust(WIDTHS[number]) for number in shown))]
    for row in ranking.list(SHOWN if height is None else max(1, height - FRAME)):
        numbers = (
            render_count(row.events),
            f"{row.event_rate:.1f}" if row.event_rate < 1e5 else render_count(row.event_rate),
            render_bytes(row.size) if row.size else "-",
            render_bytes(row.byte_rate) if row.byte_rate else "-",
        )
        rows.append((*map(show_line, row.key), *(numbers[number].rjust(WIDTHS[number]) for number in shown)))
    columns = range(len(by), len(by) + len(shown))
    lengths = [LONGEST_FLOW if name == "flow" else LONGEST for name in by] + [
        WIDTHS[number] for number in shown
    ]
    full = sum(lengths) + len(GAP) * (len(lengths) - 1)
    return [render_totals(ranking), *lay_out(rows, width, numbers=columns, full=full)]


def choose_columns(keys: int, sort: str, width: int | None) -> list[int]:
    """Of the numbers those that have room beside the keys; always the one that is sorted by."""
    names = sorted(IMPORTANT, key=lambda name: name != sort.upper())
    room = sys.maxsize if width is None else width - max(ADDRESS, keys * (NARROWEST + len(GAP)) - len(GAP))
    shown = []
    for name in names:
        number = HEADINGS.index(name)
        room -= len(GAP) + WIDTHS[number]
        if room >= 0 or name == sort.upper():
            shown.append(number)
    return sorted(shown)


def render_totals(ranking: Ranking) -> str:
    """`1234 events, 17.0 a second, 5 lost; sorted by bytes`."""
    lost, gaps, suppressed = ranking.talkers.lost, ranking.talkers.gaps, ranking.talkers.suppressed
    sampled = ranking.talkers.sampled
    parts = [f"{ranking.events} events", f"{ranking.event_rate:.1f} a second"]
    parts += [f"estimated by {sampled} record{'' if sampled == 1 else 's'} of samples"] if sampled else []
    parts += [f"{lost} lost"] if lost else []
    parts += [f"{gaps} gap{'' if gaps == 1 else 's'} of unknown size"] if gaps else []
    parts += [f"{suppressed} beyond a limit"] if suppressed else []
    return f"{', '.join(parts)}; sorted by {ranking.sort}{', reversed' if ranking.is_reversed else ''}"


def render_count(number: float) -> str:
    """With a unit where it is long: `12.3M`."""
    for unit in ("", "k", "M", "G"):
        if number < (1e7 if not unit else 1e4):
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}T"


VERBS: Final = (Verb(("top",), "show the top talkers, live", add_arguments, show_top),)
