"""conntrackctl stats: counters, and how fast they count."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from conntrackd.cli.columns import GAP, lay_out, measure, pad
from conntrackd.cli.common import add_json, add_updates, connect, get_width, print_json
from conntrackd.cli.control import render_age
from conntrackd.cli.screen import QUIT, Paper, open_view
from conntrackd.cli.verb import Verb
from conntrackd.errors import UsageError
from conntrackd.units import render_bytes

if TYPE_CHECKING:  # what runs imports it late
    from conntrackd.bus.client import Client

# What is looked for also where it is 0.
KEPT: Final = ("events_received_total", "events_lost_total", "events_accepted_total")
FOOT: Final = "q quit"
KEPT_VALUES: Final = 120  # of a number: no sparkline is longer
NARROWEST: Final = 8  # columns: with less room there is no line
BARS: Final = "▁▂▃▄▅▆▇█"
Numbers = dict[str, int]


def add_arguments(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--watch", action="store_true", help="refresh, with rates, until ^C")
    parser.add_argument(
        "--reset-view", action="store_true", help="count from now on, in this view only; implies --watch"
    )
    add_updates(parser)
    parser.set_defaults(interval=None)  # or one that was given could not be seen


def show_stats(arguments: Namespace) -> int:
    """Once, or again and again."""
    goes_on = arguments.watch or arguments.reset_view
    if not goes_on and (arguments.count or arguments.interval):
        raise UsageError("-n and --interval are for a view that is refreshed", hint="add --watch")
    with connect(arguments) as client:
        if not goes_on:
            view = StatisticsView(client, resets=False)
            view.read()
            show(view, arguments, Paper())
            return 0
        try:
            with Paper() if arguments.json else open_view() as screen:
                watch(StatisticsView(client, resets=arguments.reset_view), arguments, screen)
        except KeyboardInterrupt:
            pass
    return 0


def watch(view: "StatisticsView", arguments: Namespace, screen: Paper) -> None:
    """Until q, or so many times."""
    shown = 0
    while True:
        view.read()
        show(view, arguments, screen)
        shown += 1
        if shown == arguments.count:
            return
        until = time.monotonic() + (arguments.interval or 1)
        while (left := until - time.monotonic()) > 0:
            keys = screen.wait(left).keys
            if QUIT in keys:
                return
            if keys:
                show(view, arguments, screen)


class History:
    """The values that some numbers had, the oldest first."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """One moment."""
        for name, value in values.items():
            self._values.setdefault(name, deque(maxlen=KEPT_VALUES)).append(value)

    def list(self, name: str) -> Sequence[float]:
        """Those of one number; none of an unknown one."""
        return tuple(self._values.get(name, ()))


class StatisticsView:
    """The numbers of the last reading, and how they went before."""

    def __init__(self, client: "Client", *, resets: bool) -> None:
        self._client = client
        self._first: Numbers | None = None if resets else {}
        self._before: tuple[float, Numbers] | None = None
        self.numbers: Numbers = {}
        self.rates: dict[str, float] = {}
        self.matches: list[int] = []
        self.own: dict[str, list[int]] = {}
        self.suppressed: dict[str, list[int]] = {}
        self.history = History()

    def read(self) -> None:
        """Ask the daemon."""
        now, (counters, sinks, self.matches) = time.monotonic(), self._client.call("GetStatistics")
        objects = self._client.read_sinks()
        self.own = list_counts(objects, "RuleMatches")
        self.suppressed = list_counts({"": self._client.read_properties(), **objects}, "RuleSuppressed")
        numbers = flatten(counters, sinks)
        first = self._first = numbers if self._first is None else self._first
        self.numbers = {name: value - _start(name, first) for name, value in numbers.items()}
        self.rates = compute_rates(self._before, now, numbers)
        self._before = now, numbers
        # A moment has no course, and what counts up has one in its rate.
        gauges = {
            name: value for name, value in numbers.items() if not _is_total(name) and not _is_moment(name)
        }
        self.history.add({**gauges, **self.rates})


def show(view: StatisticsView, arguments: Namespace, screen: Paper) -> None:
    """One view: an object, or a table."""
    if arguments.json:
        numbers = to_json(view.numbers, view.rates, view.matches, view.own)
        print_json({**numbers, **suppressed_to_json(view.suppressed)})
        sys.stdout.flush()
        return
    rows = render_rows(view.numbers, view.rates, {"": view.matches, **view.own}, time.time_ns())
    rows += render_suppressed(view.suppressed)
    width, height = screen.size
    if not screen.is_live or width is None or height is None:
        if not (arguments.watch or arguments.reset_view):  # a moment has no rates
            rows = [row[:2] for row in rows]
        screen.draw(list(lay_out(rows, get_width(), numbers=range(1, len(rows[0])))))
        return
    rows = cut_rows(rows, height)
    lines, names = list(lay_out(rows, width, numbers=(1, 2))), [row[0] for row in rows]
    screen.draw(list(add_sparklines(lines, names, view.history, width)), 0, FOOT)


def add_sparklines(lines: Sequence[str], names: Sequence[str], history: History, width: int) -> Iterator[str]:
    """Each line with how its number went, where there is room for that."""
    column = max(map(measure, lines), default=0) + len(GAP)
    room = width - column
    for line, name in zip(lines, names, strict=True):
        spark = render_sparkline(history.list(name), room) if room >= NARROWEST else ""
        yield f"{pad(line, column)}{spark}".rstrip()


def render_sparkline(values: Sequence[float], width: int) -> str:
    """The last values that fit, from 0 to the largest of them; only what is 0 has the lowest bar."""
    shown = values[-width:] if width > 0 else ()
    largest = max(shown, default=0)
    return "".join(
        BARS[max(1, round(value / largest * (len(BARS) - 1)))] if value > 0 else BARS[0] for value in shown
    )


def list_counts(objects: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, list[int]]:
    """This property of each that has some; the manager, whose filter is the global one, has no name."""
    return {key: counts for key, properties in objects.items() if (counts := properties.get(name, []))}


def suppressed_to_json(suppressed: Mapping[str, list[int]]) -> dict[str, Any]:
    """As `rule_matches` and `sink_rule_matches`."""
    own = {name: counts for name, counts in suppressed.items() if name}
    return {"rule_suppressed": suppressed.get("", []), "sink_rule_suppressed": own}


def render_suppressed(suppressed: Mapping[str, list[int]]) -> list[list[str]]:
    """A row for each rule whose limit has held back something."""
    return [
        [f"beyond the limit of rule {number}{f'{{{sink}}}' if sink else ''}", str(count), ""]
        for sink, counts in suppressed.items()
        for number, count in enumerate(counts)
        if count
    ]


def flatten(counters: Mapping[str, int], sinks: Mapping[str, Mapping[str, int]]) -> Numbers:
    """`name` and `name{sink}`, in the daemon's order."""
    found = dict(counters)
    for sink, own in sinks.items():
        found.update({f"{name}{{{sink}}}": value for name, value in own.items()})
    return found


def _is_total(name: str) -> bool:
    return name.partition("{")[0].endswith("_total")


def _is_moment(name: str) -> bool:
    return name.partition("{")[0].endswith("_ns")


def _start(name: str, first: Numbers) -> int:
    return first.get(name, 0) if _is_total(name) else 0


def compute_rates(before: tuple[float, Numbers] | None, now: float, numbers: Numbers) -> dict[str, float]:
    """Per second since the last view, of what counts up; nothing at the first."""
    if before is None or now <= before[0]:
        return {}
    then, old = before
    return {
        name: max(0, value - old.get(name, 0)) / (now - then)
        for name, value in numbers.items()
        if _is_total(name)
    }


def to_json(
    view: Numbers, rates: Mapping[str, float], matches: list[int], own: Mapping[str, list[int]]
) -> dict[str, Any]:
    """The stable form: `counters`, `sinks`, `rates` (per second), `rule_matches` and those of sinks."""
    counters: Numbers = {}
    sinks: dict[str, Numbers] = {}
    for name, value in view.items():
        plain, _, sink = name.removesuffix("}").partition("{")
        (sinks.setdefault(sink, {}) if sink else counters)[plain] = value
    rounded = {name: round(value, 1) for name, value in rates.items()}
    return {
        "counters": counters,
        "sinks": sinks,
        "rates": rounded,
        "rule_matches": matches,
        "sink_rule_matches": dict(own),
    }


def render_rows(
    view: Numbers, rates: Mapping[str, float], matches: Mapping[str, list[int]], now_ns: int
) -> list[list[str]]:
    """A heading, a row for each counter that is not 0, and one for each rule: by sink, without one of all."""
    rows = [["COUNTER", "VALUE", "PER SECOND"]]
    for name, value in view.items():
        if value or name in KEPT:
            rows.append([name, render_value(name, value, now_ns), render_rate(name, rates.get(name))])
    for sink, counts in matches.items():
        whose = f"{{{sink}}}" if sink else ""
        for number, count in enumerate(counts):
            rule = f"rule {number}" if number else "no rule"
            rows.append([f"decided by {rule}{whose}", str(count), ""])
    return rows


def render_value(name: str, value: int, now_ns: int) -> str:
    """In the unit that its name ends with."""
    plain = name.partition("{")[0].removesuffix("_total")
    if "bytes" in plain:
        return render_bytes(value)
    if plain.endswith("_us"):
        return f"{value / 1e6:.1f} s"
    return render_age((now_ns - value) / 1e9) if plain.endswith("_ns") else str(value)


def render_rate(name: str, rate: float | None) -> str:
    """Of CPU time it is the share of one core."""
    if rate is None:
        return ""
    if "bytes" in name:
        return render_bytes(rate)
    return f"{rate / 1e4:.1f} %" if "_us_" in name else f"{rate:.1f}"


def cut_rows(rows: list[list[str]], height: int) -> list[list[str]]:
    """What fits on a screen above the line of keys; the last row says how many there are."""
    room = max(2, height - 2)
    if len(rows) <= room:
        return rows
    return [*rows[:room], [f"and {len(rows) - room} more: --json has all", "", ""]]


VERBS: Final = (Verb(("stats",), "show counters and rates", add_arguments, show_stats),)
