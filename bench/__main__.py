"""`python -m bench [ROW ...]`: measure, print a table."""

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Final

from bench.arena import BenchError, Load, compile_program, enter_namespace
from bench.capture import capture
from bench.parts import measure_parts
from bench.rows import list_rows
from bench.subject import GENERATOR_CORE, Measurement, Subject, measure
from bench.table import render_json, render_tables, summarize

PARTS: Final = "parts"  # the row that stands for the second table
PARTS_FLOWS: Final = 9000


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What a conntrack event costs.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--flows", type=int, default=Load().flows, help="flows a run (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=0, help="events a second (default: full speed)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def measure_all(subjects: Mapping[str, Subject], load: Load, repeat: int) -> dict[str, list[Measurement]]:
    """Round by round, so that what disturbs the machine for a while does not hit one row alone."""
    runs: dict[str, list[Measurement]] = {name: [] for name in subjects}
    for number in range(repeat):
        for name, subject in subjects.items():
            run = measure(subject, load)
            runs[name].append(run)
            print(
                f"{name} {number + 1}/{repeat}: {run.us_per_event:.2f} us, {run.lost} lost,"
                f" {run.rate:,.0f} events/s",
                file=sys.stderr,
            )
    return runs


def run(arguments: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise BenchError("needs root, for a network namespace and its devices: sudo make bench")
    os.sched_setaffinity(0, {GENERATOR_CORE})
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="conntrackd-bench-") as scratch:
        rows = list_rows(Path(scratch))
        names = [*rows, PARTS]
        if unknown := set(arguments.rows) - set(names):
            raise BenchError(f"unknown row {', '.join(sorted(unknown))}; one of: {', '.join(names)}")
        wanted = arguments.rows or names
        chosen = {name: row for name, row in rows.items() if name in wanted}
        compile_program("floor")
        compile_program("generator")
        enter_namespace()
        runs = measure_all(chosen, Load(arguments.flows, arguments.rate), arguments.repeat)
        parts = measure_parts(capture(Load(PARTS_FLOWS))) if PARTS in wanted else []
    floor = median(each.us_per_event for each in runs["floor"]) if "floor" in runs else None
    table = [summarize(each, floor) for each in runs.values()]
    print(render_json(table, parts) if arguments.json else render_tables(table, parts))
    print(
        f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores",
        file=sys.stderr,
    )


def end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, end)
    try:
        if arguments.list:
            print("\n".join([*list_rows(Path()), PARTS]))
        else:
            run(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
