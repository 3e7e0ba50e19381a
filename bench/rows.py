"""The rows of the table: each subject once, by the name that selects it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.arena import BUILD
from bench.subject import Subject, count_lines, parse_shown

BUFFER: Final = 64 << 20  # the daemon's default


def run_daemon(*options: str) -> tuple[str, ...]:
    """The daemon's command line, of the interpreter that runs the benchmark."""
    return (sys.executable, "-m", "conntrackd", "run", *options)


def list_rows(scratch: Path) -> Mapping[str, Subject]:
    """All subjects in the order of the table; output that is kept goes into `scratch`."""
    stream = ("--sink.stream.enable", "--sink.stream.writer", "stdout")
    # Its -b is left out: conntrack 1.4.7 sets the size of a socket from which it does not read the events.
    conntrack = ("conntrack", "-E", "-o", "id,timestamp")
    return {
        "floor": Subject("floor: recvmmsg in C, thrown away", (str(BUILD / "floor"), "7", str(BUFFER))),
        "discard": Subject(
            "conntrackd, discarding", run_daemon("--sink.stream.enable", "--sink.stream.writer", "discard")
        ),
        "null": Subject("conntrackd, JSON to /dev/null", run_daemon(*stream)),
        "file": Subject(
            "conntrackd, JSON to a file", run_daemon(*stream), stdout=scratch / "file", count=count_lines
        ),
        "conntrack": Subject("conntrack -E to /dev/null", conntrack, count=parse_shown),
        "conntrack-file": Subject(
            "conntrack -E to a file", conntrack, stdout=scratch / "conntrack", count=parse_shown
        ),
    }
