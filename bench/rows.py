"""The rows of the table: each subject once, by the name that selects it.

A name's end says the load: full speed where it has none, else so many thousand events a second.
"""

import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.arena import BUILD
from bench.backlog import BUFFER as BACKLOG_BUFFER
from bench.heartbeat import MEASURED_S as HEARTBEAT_S
from bench.heartbeat import SAID_S
from bench.subject import Subject, count_lines, parse_shown
from conntrackd.render import json
from conntrackd.render.journal import EVENT_ID
from conntrackd.render.steps import write_steps

BUFFER: Final = 64 << 20  # the daemon's default
# One of the generator's thousand clients, all of which have the same number of flows.
ONE_CLIENT: Final = "10.1.1.44"
CLIENTS_BYTE: Final = 10
NEW, DESTROY = 1, 4
RATES: Final = {"": 0, "-1k": 1_000, "-10k": 10_000, "-40k": 40_000, "-60k": 60_000}
GATEWAY_RATES: Final = {"": 0, "-10k": 10_000, "-60k": 60_000}
# At 40,000 events/s one core has the time for all four sinks.
SINKS_RATES: Final = {"": 0, "-40k": 40_000, "-150k": 150_000}
TEMPLATE: Final = "template"  # a file in the scratch directory
KEY: Final = "pseudonyms.key"
PLACES: Final = "places.mmdb"
LOADED: Final = 75_000  # for a file alone
PORTS: Final = {"syslog": 0, "syslog-tcp": 0, "hung": 0, "loki": 0}
# What the daemon writes for the generator's events, in the mean: bytes of a line, of an entry of the journal
# and of a syslog message; events and bytes of a push to Loki, compressed.
LINE, ENTRY, MESSAGE = 264, 355, 288
PUSH_EVENTS, PUSH_BYTES = 5350, 114_000
# Asks something of each event, and keeps it: what the filter costs is the only difference.
KEEP_ALL: Final = "drop duration > 1h\nlog any"
# Of the generator's clients 200 have a series, and the others are counted together.
COUNTED: Final = (
    "{name: by_port, by: [protocol, destination.port], bytes: true}\n"
    "{name: by_client, by: [source.address], bytes: true}"
)
SEGMENT: Final = 64  # what messages are padded to a multiple of, to be sent many a call

Rows = Iterator[tuple[str, Subject]]
Count = Callable[[Path, str], int]


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

    def count_syslog(_path: Path, _errors: str) -> int:
        return count_received()["syslog"]

    def count_but_loki(path: Path, errors: str) -> int:
        """The same for a program whose pushes have no events."""
        counts = dict(count_received())
        return min(count_lines(path, errors), counts["syslog"] + counts["syslog-tcp"], counts["journal"])

    return {
        **{name: row for end, rate in RATES.items() for name, row in _list_listeners(scratch, end, rate)},
        **{
            name: row
            for end, rate in GATEWAY_RATES.items()
            for name, row in _list_gateway(scratch, end, rate)
        },
        **dict(_list_variants(scratch)),
        **dict(_list_sinks(scratch / "sinks", ports, count_everywhere, count_but_loki, count_syslog)),
        "hung": _loaded(
            f"conntrackd, JSON to a file{_say_rate(LOADED)}, a Loki that hangs",
            _hung_loki(ports),
            scratch / "hung",
        ),
    }


def write_template(scratch: Path) -> None:
    """The form of JSON lines, for the C program that has the core alone."""
    parts = write_steps(json.TEMPLATE, {})
    content = struct.pack("=4I", *map(len, parts), json.TEMPLATE.by_stream) + b"".join(parts)
    (scratch / TEMPLATE).write_bytes(content)


def write_key(scratch: Path) -> None:
    """That of pseudonyms: any will do, if nobody else may read it."""
    (scratch / KEY).touch(mode=0o600)
    (scratch / KEY).write_bytes(bytes(32))


def _list_listeners(scratch: Path, end: str, rate: int) -> Rows:
    """The floor, the core alone, the daemon and its rival, all at one rate."""
    at, floor, rival = _say_rate(rate), f"floor{end}", f"conntrack{end}"
    yield floor, replace(_floor(f"floor: recvmmsg in C, thrown away{at}"), rate=rate, floor=floor)
    alone = (str(BUILD / "core"), str(scratch / TEMPLATE), "7", str(BUFFER))
    core = Subject(
        f"the daemon's core in a C program, JSON to a file{at}", alone, scratch / "core", count_lines
    )
    yield f"core{end}", replace(core, rate=rate, floor=floor)
    file = _daemon(f"conntrackd, JSON to a file{at}", stdout=scratch / "file")
    yield f"file{end}", replace(file, rate=rate, floor=floor, other=rival)
    shown = _conntrack(f"conntrack -E to a file{at}", scratch / "conntrack")
    yield rival, replace(shown, rate=rate, floor=floor)


def _list_gateway(scratch: Path, end: str, rate: int) -> Rows:
    """The same for flows that are translated, counted and timed."""
    for name, row in _list_listeners(scratch, end, rate):
        # floor-60k becomes floor-gateway-60k, and so do those that it is compared with.
        gateway = replace(row, name=f"{row.name}, a gateway's events", is_gateway=True)
        floor, other = _name_gateway(row.floor), _name_gateway(row.other)
        yield _name_gateway(name), replace(gateway, floor=floor, other=other)


def _name_gateway(name: str) -> str:
    kind, dash, rate = name.partition("-")
    return kind and f"{kind}-gateway{dash}{rate}"


def _list_variants(scratch: Path) -> Rows:
    """The daemon with one thing that is different."""
    one_client = {"CONNTRACKD_FILTER": f"log source address {ONE_CLIENT}\ndrop any"}
    not_in_kernel = {"CONNTRACKD_CONNTRACK_KERNEL_FILTER": "false"}
    keep_all = {"CONNTRACKD_FILTER": KEEP_ALL, **not_in_kernel}
    woken = _floor("floor, woken for each event", "-w")
    yield "floor-woken", woken
    at = f"{woken.name}, 10,000 events/s"
    yield "floor-woken-10k", replace(woken, name=at, rate=RATES["-10k"], floor="floor-10k")
    yield "discard", _daemon("conntrackd, discarding", {"CONNTRACKD_SINK_STREAM_WRITER": "discard"})
    yield "null", _daemon("conntrackd, JSON to /dev/null")
    yield "conntrack-null", _conntrack("conntrack -E to /dev/null", Path("/dev/null"))
    yield "filter", _daemon("conntrackd, filter keeps 1 flow in 1,000", one_client)
    yield (
        "filter-core",
        _daemon("the same filter, not in the kernel", {**one_client, **not_in_kernel}),
    )
    named = _daemon(
        "conntrackd, JSON to a file, with Community IDs",
        {"CONNTRACKD_COMMUNITY_ID_ENABLE": "true"},
        scratch / "community-id",
    )
    yield "community-id", replace(named, other="file")
    for mode, key in (("truncate", ""), ("pseudonym", str(scratch / KEY))):
        chosen = {"CONNTRACKD_SINK_STREAM_ANONYMIZE": mode, "CONNTRACKD_SINK_STREAM_ANONYMIZE_KEY_FILE": key}
        row = _daemon(f"conntrackd, JSON to a file, addresses by {mode}", chosen, scratch / mode)
        yield mode, replace(row, other="file")
    counted = _daemon(
        "conntrackd, JSON to a file, connections counted by port and by client",
        {"CONNTRACKD_METRICS_FLOWS": COUNTED},
        scratch / "flow-metrics",
    )
    yield "flow-metrics", replace(counted, other="file")
    # Without the kernel's timestamps: beginnings are remembered. It has a line for each DESTROY.
    flows = _daemon(
        "conntrackd, a record for each flow, JSON to a file",
        {"CONNTRACKD_CONNTRACK_RECORDS": "flows"},
        scratch / "flows",
        DESTROY,
    )
    yield "flows", replace(flows, floor="")
    for end in ("", "-60k"):
        rate = RATES[end]
        asked = _daemon(
            f"conntrackd, JSON to a file, a filter not for the kernel keeps all{_say_rate(rate)}",
            keep_all,
            scratch / "asked",
        )
        yield f"file-filter{end}", replace(asked, rate=rate, floor=f"floor{end}", other=f"file{end}")
    for end in ("", "-10k"):
        located = _daemon(
            f"conntrackd, JSON to /dev/null, with locations{_say_rate(RATES[end])}",
            {"CONNTRACKD_GEOIP_DATABASE": str(scratch / PLACES)},
        )
        yield f"located{end}", replace(located, rate=RATES[end], floor=f"floor{end}")
    yield "floor-new", replace(_floor("floor, NEW only", groups=NEW), floor="floor-new")
    only_new = {"CONNTRACKD_FILTER": "log type NEW\ndrop any"}
    yield "new", replace(_daemon("conntrackd, filter keeps NEW", only_new, groups=NEW), floor="floor-new")
    yield "file-75k", _loaded(f"conntrackd, JSON to a file{_say_rate(LOADED)}", {}, scratch / "file")


def _list_sinks(
    path: Path, ports: Mapping[str, int], count: Count, count_but_loki: Count, count_syslog: Count
) -> Rows:
    """All four sinks, and the system calls alone, with syslog's three ways of sending; and that alone."""
    ways = [("udp", end, rate) for end, rate in SINKS_RATES.items()]
    ways += [("segments", "-40k", SINKS_RATES["-40k"]), ("tcp", "-40k", SINKS_RATES["-40k"])]
    yield "floor-150k", replace(_floor("floor, 150,000 events/s"), rate=150_000, floor="floor-150k")
    for way, end, rate in ways:
        name, said = f"-{way}{end}", f"syslog over {way.upper()}{_say_rate(rate)}"
        calls = Subject(
            f"the system calls of four sinks, {said}", _list_calls(way, ports), path, count_but_loki
        )
        yield f"syscalls{name}", replace(calls, rate=rate, floor=f"floor{end}")
        sinks = Subject(
            f"conntrackd, four sinks, {said}", DAEMON, path, count, environ=_four_sinks(way, ports)
        )
        yield f"sinks{name}", replace(sinks, rate=rate, floor=f"floor{end}", other=f"syscalls{name}")
    for end in ("-10k", "-40k"):
        syslog = Subject(
            f"conntrackd, syslog over UDP alone{_say_rate(RATES[end])}", DAEMON, path, count_syslog,
            environ={**_syslog("udp", ports), "CONNTRACKD_BUS_ENABLE": "false"},
        )  # fmt: skip
        yield f"syslog{end}", replace(syslog, rate=RATES[end], floor=f"floor{end}")
    at = SINKS_RATES["-40k"]
    own = {f"CONNTRACKD_SINK_{sink}_FILTER": KEEP_ALL for sink in ("STREAM", "JOURNAL", "SYSLOG", "LOKI")}
    filtered = Subject(
        f"conntrackd, four sinks, each with a filter that keeps all{_say_rate(at)}", DAEMON, path, count,
        environ={**_four_sinks("udp", ports), **own},
    )  # fmt: skip
    yield "sink-filter", replace(filtered, rate=at, floor="floor-40k", other="sinks-udp-40k")


def list_backlogs(scratch: Path) -> list[tuple[Subject, Subject]]:
    """With one reader and with two, and both cores for themselves: the C programs, and the daemon."""
    path, buffer = scratch / "backlog", str(BACKLOG_BUFFER)
    template, settings = str(scratch / TEMPLATE), {"CONNTRACKD_CONNTRACK_BUFFER": buffer}
    floor = Subject("floor: recvmmsg in C, thrown away", (str(BUILD / "floor"), "7", buffer))
    alone = (str(BUILD / "core"), template, "7", buffer)
    core = Subject("the daemon's core in a C program, JSON to a file", alone, path, count_lines)
    discarding = {**settings, "CONNTRACKD_SINK_STREAM_WRITER": "discard"}
    daemons = (
        _daemon("conntrackd, discarding", discarding),
        _daemon("conntrackd, JSON to a file", settings, path),
    )
    return [
        *((_on_both(one), _on_both(replace(one, argv=(*one.argv, "2")))) for one in (floor, core)),
        *((_on_both(one), _on_both(replace(one, environ=_read_twice(one)))) for one in daemons),
    ]


def _on_both(subject: Subject) -> Subject:
    return replace(subject, cores="0,1")


def _read_twice(daemon: Subject) -> dict[str, str]:
    return {**daemon.environ, "CONNTRACKD_CONNTRACK_READERS": "2"}


def make_heartbeat(scratch: Path) -> Subject:
    """The daemon that writes each flow of the table, and hears of no event."""
    environ = {"CONNTRACKD_CONNTRACK_HEARTBEAT": f"{HEARTBEAT_S}s", "CONNTRACKD_CONNTRACK_EVENTS": "destroy"}
    name = f"conntrackd, JSON to a file, heartbeat of {SAID_S} s"
    return _daemon(name, environ, scratch / "heartbeat")


DAEMON: Final = (sys.executable, "-m", "conntrackd", "run")
STREAM: Final = {"CONNTRACKD_SINK_STREAM_ENABLE": "true", "CONNTRACKD_BUS_ENABLE": "false"}


def _say_rate(rate: int) -> str:
    return f", {rate:,} events/s" if rate else ""


def _floor(name: str, *options: str, groups: int = 7) -> Subject:
    return Subject(name, (str(BUILD / "floor"), *options, str(groups), str(BUFFER)), groups=groups)


def _conntrack(name: str, stdout: Path) -> Subject:
    # Its -b is left out: conntrack 1.4.7 sets the size of a socket from which it does not read the events.
    return Subject(name, ("conntrack", "-E", "-o", "id,timestamp"), stdout=stdout, count=parse_shown)


def _daemon(
    name: str, settings: Mapping[str, str] | None = None, stdout: Path | None = None, groups: int = 7
) -> Subject:
    """The daemon with a stream sink, run by the interpreter that runs the benchmark."""
    environ = {**STREAM, **(settings or {})}
    if stdout is None:
        return Subject(name, DAEMON, groups=groups, environ=environ)
    return Subject(name, DAEMON, stdout=stdout, count=count_lines, groups=groups, environ=environ)


def _loaded(name: str, settings: Mapping[str, str], stdout: Path) -> Subject:
    """Under the same load as its like. There is no floor at this rate to compare it with."""
    return replace(_daemon(name, settings, stdout), rate=LOADED, floor="")


def _hung_loki(ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "CONNTRACKD_SINK_LOKI_ENABLE": "true",
        "CONNTRACKD_SINK_LOKI_ADDRESS": f"http://127.0.0.1:{ports['hung']}",
    }


def _syslog(way: str, ports: Mapping[str, int]) -> dict[str, str]:
    address = (
        f"tcp://127.0.0.1:{ports['syslog-tcp']}" if way == "tcp" else f"udp://127.0.0.1:{ports['syslog']}"
    )
    return {"CONNTRACKD_SINK_SYSLOG_ENABLE": "true", "CONNTRACKD_SINK_SYSLOG_ADDRESS": address}


def _four_sinks(way: str, ports: Mapping[str, int]) -> dict[str, str]:
    return {
        **STREAM,
        **_syslog(way, ports),
        "CONNTRACKD_SINK_JOURNAL_ENABLE": "true",
        "CONNTRACKD_SINK_LOKI_ENABLE": "true",
        "CONNTRACKD_SINK_LOKI_ADDRESS": f"http://127.0.0.1:{ports['loki']}",
        **({"CONNTRACKD_SINK_SYSLOG_SEGMENTS": "true"} if way == "segments" else {}),
    }


def _list_calls(way: str, ports: Mapping[str, int]) -> tuple[str, ...]:
    """The command line of syscalls.c: texts of the right sizes, which the receivers count."""
    message = "<30>1 ".ljust(MESSAGE, "x")
    if way == "segments":
        message = message.ljust(-(-MESSAGE // SEGMENT) * SEGMENT)
    elif way == "tcp":
        message = f"{MESSAGE} {message}"
    return (
        str(BUILD / "syscalls"),
        way,
        str(ports["syslog-tcp" if way == "tcp" else "syslog"]),
        str(ports["loki"]),
        "x" * (LINE - 1) + "\n",
        f"MESSAGE_ID={EVENT_ID}\nMESSAGE=".ljust(ENTRY - 1, "x") + "\n",
        message,
        str(PUSH_EVENTS),
        str(PUSH_BYTES),
    )


ROWS: Final = tuple(list_rows(Path(), PORTS))
