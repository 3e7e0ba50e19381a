"""A daemon that does not answer: what systemd and the journal know of it, within a second. Starts nothing."""

import os
import time
from collections.abc import Mapping
from typing import Final

from conntrackd.bus.client import NotRunningError
from conntrackd.errors import UnavailableError
from conntrackd.text import as_root

UNIT: Final = "conntrackd.service"
ASKED: Final = ("ActiveState", "SubState", "Result", "ExecMainStatus", "InvocationID")
# Of both commands together; the rest of the second is for the start of this program.
SECONDS: Final = 0.7
LINES: Final = 20
LOG: Final = f"journalctl -u {UNIT.removesuffix('.service')} -n {LINES}"
# systemctl(1) needs no bus for root, journalctl(1) for nobody.
PATH: Final = "/usr/bin:/bin"
BAD_CONFIGURATION: Final = "78"  # EX_CONFIG
STARTING: Final = "conntrackd is not running yet: it is starting"


def explain(error: NotRunningError, environ: Mapping[str, str]) -> UnavailableError:
    """The error with the reason where the service has failed, another one where it runs without this bus.

    As it is where another bus than the system's is asked.
    """
    if environ.get("DBUS_SYSTEM_BUS_ADDRESS"):
        return error
    until = time.monotonic() + SECONDS
    output = ask(["systemctl", "show", UNIT, *(f"--property={name}" for name in ASKED)], environ, until)
    found = dict(line.partition("=")[::2] for line in output.splitlines())
    state, result, status = (found.get(name, "") for name in ("ActiveState", "Result", "ExecMainStatus"))
    if state in {"active", "reloading"}:
        hint = f"check bus.enable and bus.address in conntrackd.yaml; {as_root(LOG)}"
        return UnavailableError("conntrackd is running, but not on this bus", hint=hint)
    if result in {"", "success"}:
        is_starting = state == "activating"
        return NotRunningError(STARTING, hint="systemctl status conntrackd") if is_starting else error
    lines = read_last_words(found.get("InvocationID", ""), environ, until)
    how = f"exit status {status}" if result == "exit-code" else result
    again = ", and systemd keeps restarting it" if found.get("SubState") == "auto-restart" else ""
    message = f"conntrackd is not running: it has failed ({how}){again}"
    if not lines:
        return NotRunningError(message, hint=as_root(LOG))
    check = f"{as_root('conntrackd check')} && " if status == BAD_CONFIGURATION else ""
    return NotRunningError(message, excerpt=lines, hint=check + as_root("systemctl restart conntrackd"))


def read_last_words(invocation: str, environ: Mapping[str, str], until: float) -> str:
    """The last lines of the service's own log; nothing where there are none, or none to be read.

    Its stderr alone: events in the journal come from the same service.
    """
    if not invocation:
        return ""
    matches = [f"_SYSTEMD_INVOCATION_ID={invocation}", "_TRANSPORT=stdout"]
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={LINES}", *matches]
    return ask(command, environ, until).strip()


def ask(command: list[str], environ: Mapping[str, str], until: float) -> str:
    """What a command prints; nothing where it fails, is not there, or takes too long."""
    import subprocess  # noqa: PLC0415  # only where the daemon does not run

    path = os.pathsep.join(filter(None, (environ.get("PATH"), PATH)))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            env={**environ, "PATH": path, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            stdin=subprocess.DEVNULL,
            timeout=max(0.05, until - time.monotonic()),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
