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

from bench.arena import BenchError, Load, compile_program, enter_namespaces
from bench.capture import capture
from bench.flood import measure_floods
from bench.parts import measure_parts
from bench.receivers import start_receivers
from bench.rows import ROWS, list_rows
from bench.soak import idle, soak
from bench.subject import GENERATOR_CORE, Measurement, Subject, measure
from bench.table import Report, render_json, render_tables, summarize

# The names that stand for tables of their own.
SOAK: Final = "soak"
IDLE: Final = "idle"
FLOOD: Final = "flood"
PARTS: Final = "parts"
NAMES: Final = [*ROWS, SOAK, IDLE, FLOOD, PARTS]
TMPFS: Final = "/dev/shm"  # output that is kept costs no disk
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


def run(arguments: argparse.Namespace) -> Report:
    """Do what was asked for. Needs root; raises BenchError."""
    wanted = arguments.rows or NAMES
    if unknown := set(wanted) - set(NAMES):
        raise BenchError(f"unknown row {', '.join(sorted(unknown))}; one of: {', '.join(NAMES)}")
    if os.geteuid() != 0:
        raise BenchError("needs root, for a network namespace and its devices: sudo make bench")
    for program in ("floor", "generator", "drain"):
        compile_program(program)
    os.sched_setaffinity(0, {GENERATOR_CORE})
    enter_namespaces()
    scratch = tempfile.TemporaryDirectory(dir=TMPFS, prefix="conntrackd-bench-")
    with scratch, start_receivers() as receivers:
        rows = list_rows(Path(scratch.name), receivers.ports, receivers.count)
        chosen = {name: row for name, row in rows.items() if name in wanted}
        runs = measure_all(chosen, Load(arguments.flows, arguments.rate), arguments.repeat)
        costs = {name: median(each.us_per_event for each in of) for name, of in runs.items()}
        floods = measure_floods(rows["null"], Path(scratch.name), arguments.repeat) if FLOOD in wanted else ()
        return Report(
            rows=[summarize(each, costs.get(chosen[name].floor)) for name, each in runs.items()],
            soak=soak(rows["null"]) if SOAK in wanted else (),
            idle=[idle(rows["sinks"])] if IDLE in wanted else (),
            floods=floods,
            parts=measure_parts(capture(Load(PARTS_FLOWS)), Path(scratch.name)) if PARTS in wanted else (),
        )


def end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, end)
    try:
        if arguments.list:
            print("\n".join(NAMES))
            return 0
        report = run(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(render_json(report) if arguments.json else render_tables(report))
    machine = f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(machine, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
