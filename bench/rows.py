"""The rows of the table: each subject once, by the name that selects it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.arena import BUILD
from bench.subject import Subject, count_lines, parse_shown

BUFFER: Final = 64 << 20  # the daemon's default
# One of the generator's thousand clients, all of which have the same number of flows.
ONE_CLIENT: Final = "10.1.1.44"
NEW: Final = 1
FITS: Final = 40_000  # events a second for which all four sinks together have the time on one core
LOADED: Final = 75_000  # the same for a file alone
PORTS: Final = {"syslog": 0, "syslog-tcp": 0, "hung": 0, "loki": 0}


def list_rows(
    scratch: Path, ports: Mapping[str, int], count_received: Callable[[], Mapping[str, int]] = dict
) -> Mapping[str, Subject]:
    """All subjects in the order of the table.

    Output that is kept goes into `scratch`; `ports` are those of the receivers, who count what comes.
    """

    def count_everywhere(path: Path, errors: str) -> int:
        """The events that each of four sinks has delivered, syslog in one of two ways."""
        counts = dict(count_received())
        syslog = counts.pop("syslog") + counts.pop("syslog-tcp")
        return min(count_lines(path, errors), syslog, *counts.values())

    one_client = {"CONNTRACKD_FILTER": f"log source address {ONE_CLIENT}\ndrop any"}
    in_python = {**one_client, "CONNTRACKD_CONNTRACK_KERNEL_FILTER": "false"}
    only_new = {"CONNTRACKD_FILTER": "log type NEW\ndrop any"}
    return {
        "floor": _floor("floor: recvmmsg in C, thrown away", 7),
        "discard": _daemon("conntrackd, discarding", {"CONNTRACKD_SINK_STREAM_WRITER": "discard"}),
        "null": _daemon("conntrackd, JSON to /dev/null"),
        "file": _daemon("conntrackd, JSON to a file", stdout=scratch / "file"),
        "conntrack": _conntrack("conntrack -E to /dev/null", Path("/dev/null")),
        "conntrack-file": _conntrack("conntrack -E to a file", scratch / "conntrack"),
        "filter": _daemon("conntrackd, filter keeps 1 flow in 1,000", one_client),
        "filter-python": _daemon("the same filter, not in the kernel", in_python),
        "floor-new": _floor("floor, NEW only", NEW),
        "new": _daemon("conntrackd, filter keeps NEW", only_new, groups=NEW),
        "sinks": replace(
            _daemon("conntrackd, all four sinks", _four_sinks(ports), scratch / "sinks"),
            count=count_everywhere,
        ),
        "floor-fits": replace(_floor(f"floor, {FITS:,} events/s", 7), rate=FITS),
        "sinks-fits": replace(
            _daemon(f"conntrackd, all four sinks, {FITS:,} events/s", _four_sinks(ports), scratch / "sinks"),
            count=count_everywhere,
            rate=FITS,
            floor="floor-fits",
        ),
        "sinks-tcp": replace(
            _daemon("the same, syslog over TCP", _four_sinks_tcp(ports), scratch / "sinks"),
            count=count_everywhere,
            rate=FITS,
            floor="floor-fits",
        ),
        "file-fits": _loaded(f"conntrackd, JSON to a file, {LOADED:,} events/s", {}, scratch / "file-fits"),
        "hung": _loaded("the same, with a Loki that hangs", _hung_loki(ports), scratch / "hung"),
    }


def _floor(name: str, groups: int) -> Subject:
    return Subject(name, (str(BUILD / "floor"), str(groups), str(BUFFER)), groups=groups)


def _conntrack(name: str, stdout: Path) -> Subject:
    # Its -b is left out: conntrack 1.4.7 sets the size of a socket from which it does not read the events.
    return Subject(name, ("conntrack", "-E", "-o", "id,timestamp"), stdout=stdout, count=parse_shown)


def _daemon(
    name: str, settings: Mapping[str, str] | None = None, stdout: Path | None = None, groups: int = 7
) -> Subject:
    """The daemon with a stream sink, run by the interpreter that runs the benchmark."""
    argv = (sys.executable, "-m", "conntrackd", "run")
    environ = {"CONNTRACKD_SINK_STREAM_ENABLE": "true", "CONNTRACKD_BUS_ENABLE": "false", **(settings or {})}
    if stdout is None:
        return Subject(name, argv, groups=groups, environ=environ)
    return Subject(name, argv, stdout=stdout, count=count_lines, groups=groups, environ=environ)


def _loaded(name: str, settings: Mapping[str, str], stdout: Path) -> Subject:
    """Under the same load as its like. There is no floor at this rate to compare it with."""
    return replace(_daemon(name, settings, stdout), rate=LOADED, floor="")


def _hung_loki(ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "CONNTRACKD_SINK_LOKI_ENABLE": "true",
        "CONNTRACKD_SINK_LOKI_ADDRESS": f"http://127.0.0.1:{ports['hung']}",
    }


def _four_sinks(ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "CONNTRACKD_SINK_JOURNAL_ENABLE": "true",
        "CONNTRACKD_SINK_SYSLOG_ENABLE": "true",
        "CONNTRACKD_SINK_SYSLOG_ADDRESS": f"udp://127.0.0.1:{ports['syslog']}",
        "CONNTRACKD_SINK_LOKI_ENABLE": "true",
        "CONNTRACKD_SINK_LOKI_ADDRESS": f"http://127.0.0.1:{ports['loki']}",
    }


def _four_sinks_tcp(ports: Mapping[str, int]) -> dict[str, str]:
    return {**_four_sinks(ports), "CONNTRACKD_SINK_SYSLOG_ADDRESS": f"tcp://127.0.0.1:{ports['syslog-tcp']}"}


ROWS: Final = tuple(list_rows(Path(), PORTS))
