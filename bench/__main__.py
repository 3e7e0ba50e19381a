"""`python -m bench [ROW ...]`: measure, print a table."""

import argparse
import fnmatch
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from bench.arena import CORE, BenchError, Load, be_gateway, compile_program, enter_namespaces
from bench.backlog import measure_backlogs
from bench.capture import capture
from bench.flood import measure_floods, measure_scrapes
from bench.heartbeat import measure_heartbeats
from bench.latency import measure_latency
from bench.parts import Part, measure_parts, write_places
from bench.receivers import start_receivers
from bench.rows import (
    CLIENTS_BYTE,
    PLACES,
    ROWS,
    list_backlogs,
    list_rows,
    make_heartbeat,
    write_key,
    write_template,
)
from bench.soak import measure_memory, soak
from bench.subject import GENERATOR_CORE, Measurement, Subject, measure
from bench.table import Report, render_json, render_tables, summarize_all

# The names that stand for tables of their own.
LATENCY: Final = "latency"
BACKLOG: Final = "backlog"
HEARTBEAT: Final = "heartbeat"
MEMORY: Final = "memory"
SOAK: Final = "soak"
FLOOD: Final = "flood"
SCRAPED: Final = "scraped"
PARTS: Final = "parts"
NAMES: Final = [*ROWS, LATENCY, BACKLOG, HEARTBEAT, MEMORY, SOAK, FLOOD, SCRAPED, PARTS]
# Whom the tables of their own are about.
LATENCY_ROWS: Final = ("floor", "file", "conntrack")
MEMORY_ROWS: Final = ("file", "sinks-udp-40k", "sinks-udp")
# Of the core's own, what walks over an event and writes it, and a clock.
CORE_FILES: Final = ("community", "event", "fields", "receive", "render", "sha1", "template", "text")
TMPFS: Final = "/dev/shm"  # output that is kept costs no disk
PARTS_FLOWS: Final = 9000


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What a conntrack event costs.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure, as *-60k too (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--flows", type=int, default=Load().flows, help="flows a run (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=0, help="events a second (default: full speed)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def choose(patterns: Sequence[str]) -> list[str]:
    """The names that these select, in the table's order; all by default. BenchError for one of nothing."""
    for pattern in patterns:
        if not fnmatch.filter(NAMES, pattern):
            raise BenchError(f"unknown row {pattern}; one of: {', '.join(NAMES)}")
    return [name for name in NAMES if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ["*"])]


def measure_all(subjects: Mapping[str, Subject], load: Load, repeat: int) -> dict[str, list[Measurement]]:
    """Round by round, so that what disturbs the machine for a while does not hit one row alone.

    A row that cannot be measured is reported, and left out of all rounds.
    """
    runs: dict[str, list[Measurement]] = {name: [] for name in subjects}
    for number in range(repeat):
        for name in list(runs):
            try:
                run = measure(subjects[name], load)
            except BenchError as error:
                print(f"bench: {name} is left out: {error}", file=sys.stderr)
                del runs[name]
                continue
            runs[name].append(run)
            print(
                f"{name} {number + 1}/{repeat}: {run.us_per_event:.2f} us, {run.lost} lost,"
                f" {run.rate:,.0f} events/s",
                file=sys.stderr,
            )
    return runs


def run(arguments: argparse.Namespace) -> Report:
    """Do what was asked for. Needs root; raises BenchError."""
    wanted = choose(arguments.rows)
    if os.geteuid() != 0:
        raise BenchError("needs root, for a network namespace and its devices: sudo make bench")
    for program in ("floor", "syscalls", "generator", "drain"):
        compile_program(program)
    compile_program("core", *(CORE / f"{name}.c" for name in CORE_FILES))
    os.sched_setaffinity(0, {GENERATOR_CORE})
    enter_namespaces()
    scratch = tempfile.TemporaryDirectory(dir=TMPFS, prefix="conntrackd-bench-")
    with scratch, start_receivers() as receivers:
        write_template(Path(scratch.name))
        write_key(Path(scratch.name))
        write_places(Path(scratch.name) / PLACES, CLIENTS_BYTE)
        rows = list_rows(Path(scratch.name), receivers.ports, receivers.count)
        chosen = {name: row for name, row in rows.items() if name in wanted}
        load, path = Load(arguments.flows, arguments.rate), Path(scratch.name)
        memory_rows, latency_rows = [[rows[name] for name in of] for of in (MEMORY_ROWS, LATENCY_ROWS)]
        return Report(
            rows=summarize_all(chosen, measure_all(chosen, load, arguments.repeat)),
            latency=measure_latency(latency_rows) if LATENCY in wanted else (),
            backlog=measure_backlogs(list_backlogs(path), arguments.repeat) if BACKLOG in wanted else (),
            heartbeats=[measure_heartbeats(make_heartbeat(path))] if HEARTBEAT in wanted else (),
            memory=measure_memory(memory_rows, load) if MEMORY in wanted else (),
            soak=soak(rows["null"]) if SOAK in wanted else (),
            floods=measure_floods(rows["null"], path, arguments.repeat) if FLOOD in wanted else (),
            scrapes=measure_scrapes(rows["file"], path, arguments.repeat) if SCRAPED in wanted else (),
            parts=measure_all_parts(path) if PARTS in wanted else (),
        )


def measure_all_parts(scratch: Path) -> list[Part]:
    """On plain events, and on a gateway's."""
    plain = capture(Load(PARTS_FLOWS))
    with be_gateway(True):
        gateway = capture(Load(PARTS_FLOWS, is_translated=True))
    return measure_parts(plain, gateway, scratch)


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
