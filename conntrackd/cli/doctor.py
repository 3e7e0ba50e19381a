"""conntrackctl doctor: what is wrong with this host, and the exact command that fixes it."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conntrackd.cli.common import add_json, connect, explain_silence, print_json, print_lines, wrap
from conntrackd.cli.control import DEGRADED
from conntrackd.cli.verb import Verb
from conntrackd.errors import UnavailableError, show_controls

MARKS: Final = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "error": "ERROR  "}
COLOURS: Final = {"ok": "32", "note": "36", "warning": "33", "error": "31"}
INDENT: Final = 9
KEYS: Final = ("severity", "check", "message", "remedy")
# What the remedies begin with that only root can do.
ROOT_COMMANDS: Final = frozenset(
    {"apt", "echo", "geoipupdate", "ip", "modprobe", "nsenter", "sysctl", "systemctl", "timedatectl"}
)
FindingRow = tuple[str, str, str, str]


def show_findings(arguments: Namespace) -> int:
    """4 where there is a warning or an error."""
    severities = []
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    is_root = os.geteuid() == 0
    rows = []
    for severity, check, message, remedy in list_rows(arguments):
        row = (severity, check, message, address_reader(remedy, is_root=is_root))
        severities.append(severity)
        if arguments.json:
            rows.append(dict(zip(KEYS, row, strict=True)))
        else:
            print_findings([row], colour=colour)
    if arguments.json:
        print_json(rows)
    return DEGRADED if {"warning", "error"} & set(severities) else 0


def list_rows(arguments: Namespace) -> Iterator[FindingRow]:
    """The daemon's own findings; where none answers, those from here, of which some take seconds."""
    from conntrackd.checks import HIDDEN  # noqa: PLC0415

    try:
        with connect(arguments) as client:
            (findings,) = client.call("Doctor")
    except UnavailableError as error:
        reason = explain_silence(error, arguments)
        yield "error", "daemon", "\n".join(filter(None, (reason.message, reason.excerpt))), reason.hint
        yield from examine_here()
        return
    yield "ok", "daemon", "conntrackd runs", ""
    yield from (row for row in findings if row[1] != HIDDEN)
    if any(row[1] == HIDDEN for row in findings):
        yield from examine_kernel_here()


def address_reader(remedy: str, *, is_root: bool) -> str:
    """The line for who reads it: an ordinary user needs sudo, for the whole of it."""
    if is_root or remedy.partition(" ")[0] not in ROOT_COMMANDS:
        return remedy
    line, comment, note = remedy.partition("  # ")
    return (f"sudo sh -c {shlex.quote(line)}" if ";" in line else f"sudo {line}") + comment + note


def examine_kernel_here() -> list[FindingRow]:
    """The kernel's settings, where the daemon's sandbox hides them from it; in the namespace it watches."""
    from conntrackd.checks import check_kernel  # noqa: PLC0415
    from conntrackd.config.options import CONNTRACK_NETNS  # noqa: PLC0415
    from conntrackd.config.read import read_config  # noqa: PLC0415
    from conntrackd.errors import ConntrackdError  # noqa: PLC0415
    from conntrackd.netlink.namespace import enter  # noqa: PLC0415

    try:
        config = read_config({}, os.environ, None)
        with enter(config[CONNTRACK_NETNS]):
            found = list(check_kernel(Path("/"), None, config))
    except ConntrackdError as error:
        return [("note", "settings", f"cannot read the kernel's settings from here: {error.message}", "")]
    rows = [(finding.severity, finding.check, finding.message, finding.remedy) for finding in found]
    return [row for row in rows if row[1] != "tracking"]


def examine_here() -> list[FindingRow]:
    """With the configuration that the daemon would read."""
    from conntrackd.checks import examine  # noqa: PLC0415
    from conntrackd.config.read import read_config  # noqa: PLC0415
    from conntrackd.errors import ConntrackdError  # noqa: PLC0415

    try:
        config = read_config({}, os.environ, None)
    except ConntrackdError as error:
        return [("error", "configuration", str(error), "conntrackd check")]
    return [(finding.severity, finding.check, finding.message, finding.remedy) for finding in examine(config)]


def print_findings(rows: list[FindingRow], *, colour: bool) -> None:
    """One line per finding and the fix below it, unwrapped so that it can be copied."""
    for severity, check, message, remedy in rows:
        mark = MARKS.get(severity, severity)
        first, _, more = message.partition("\n")
        text = wrap(show_controls(f"{mark}  {check}: {first}"), INDENT)
        if colour:
            text = f"\033[{COLOURS.get(severity, '0')}m{mark}\033[0m{text.removeprefix(mark)}"
        print(text)
        print_lines([f"{' ' * INDENT}{line}" for line in more.splitlines()])
        print_lines([f"{' ' * INDENT}fix: {remedy}"] if remedy else [])
    sys.stdout.flush()  # what comes next may take its time


VERBS: Final = (Verb(("doctor",), "diagnose this host and print fixes", add_json, show_findings),)
