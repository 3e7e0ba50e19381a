"""conntrackctl stats: counters, and how fast they count."""

import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from conntrackd.cli.common import add_json, add_updates, connect, print_json, print_table, render_bytes
from conntrackd.cli.control import render_age
from conntrackd.cli.verb import Verb

if TYPE_CHECKING:  # what runs imports it late
    from conntrackd.bus.client import Client

# What is looked for also where it is 0.
KEPT: Final = ("events_received_total", "events_lost_total", "events_accepted_total")
CLEAR: Final = "\033[H\033[2J"
Numbers = dict[str, int]


def add_arguments(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--watch", action="store_true", help="refresh, with rates, until ^C")
    parser.add_argument(
        "--reset-view", action="store_true", help="count from now on, in this view only; implies --watch"
    )
    add_updates(parser)


def show_stats(arguments: Namespace) -> int:
    """Once, or again and again."""
    import sys  # noqa: PLC0415

    goes_on = arguments.watch or arguments.reset_view
    views = (arguments.count or 0) if goes_on else 1
    first: Numbers | None = None
    before: tuple[float, Numbers] | None = None
    shown = 0
    with connect(arguments) as client:
        try:
            while True:
                now, (counters, sinks, matches) = time.monotonic(), client.call("GetStatistics")
                own, suppressed = read_sink_matches(client), read_suppressed(client)
                numbers = flatten(counters, sinks)
                if first is None:
                    first = numbers if arguments.reset_view else {}
                view = {name: value - _start(name, first) for name, value in numbers.items()}
                rates = compute_rates(before, now, numbers)
                if arguments.json:
                    print_json({**to_json(view, rates, matches, own), **suppressed_to_json(suppressed)})
                else:
                    rows = render_rows(view, rates, {"": matches, **own}, time.time_ns())
                    rows += render_suppressed(suppressed)
                    if goes_on and sys.stdout.isatty():
                        print(CLEAR, end="")
                        rows = cut_rows(rows, shutil.get_terminal_size().lines)
                    print_table(rows)
                sys.stdout.flush()
                shown += 1
                if shown == views:
                    return 0
                before = now, numbers
                time.sleep(arguments.interval)
        except KeyboardInterrupt:
            return 0


def read_sink_matches(client: "Client") -> dict[str, list[int]]:
    """What the rules of sinks have decided, of those that have some."""
    found = {name: sink.get("RuleMatches", []) for name, sink in client.read_sinks().items()}
    return {name: matches for name, matches in found.items() if matches}


def read_suppressed(client: "Client") -> dict[str, list[int]]:
    """What the limits of rules have held back: of the global filter without a name, and by sink."""
    found = {"": client.read_properties().get("RuleSuppressed", [])}
    found |= {name: sink.get("RuleSuppressed", []) for name, sink in client.read_sinks().items()}
    return {name: counts for name, counts in found.items() if counts}


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
    """What fits above the prompt of a terminal; the last row says how many there are."""
    room = max(2, height - 2)
    if len(rows) <= room:
        return rows
    return [*rows[:room], [f"and {len(rows) - room} more: --json has all", "", ""]]


VERBS: Final = (Verb(("stats",), "show counters and rates", add_arguments, show_stats),)
