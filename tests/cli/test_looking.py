"""Row 44: a command that only looks starts nothing, writes nothing, sends nothing but its questions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
CONFIGURATION: Final = """
state_directory: {folder}/state
conntrack: {{activate: true, reliable: true}}
sink:
  journal: {{enable: true}}
  loki: {{enable: true, address: "http://127.0.0.1:9", spool: {folder}/spool}}
  syslog: {{enable: true, address: "tcp://127.0.0.1:9"}}
  stream: {{enable: true, writer: "file://{folder}/events.json"}}
filter: [log any]
"""
EVENT: Final = '{"type":"NEW","prot":"TCP","src":"10.0.0.1","dst":"10.0.0.2","sport":1,"dport":2}\n'
# What CPython tells its audit hooks of: https://docs.python.org/3/library/audit_events.html
WATCH: Final = """
import json, os, runpy, sys
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TOLD = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system",
        "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink",
        "os.truncate", "os.utime", "shutil.rmtree", "sqlite3.connect", "socket.sendto", "socket.sendmsg",
        "os.kill", "signal.pthread_kill")
def note(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not (flags or 0) & WRITING or os.fspath(path) == os.devnull:
            return
    elif event not in TOLD:
        return
    os.write(log, (json.dumps([event, str(arguments[:2])]) + "\\n").encode())
log = int(sys.argv[1])
module, sys.argv = sys.argv[2], [sys.argv[2], *sys.argv[3:]]
sys.addaudithook(note)
if module.endswith(".ctl"):
    from conntrackd.cli import ctl
    ctl.main()
runpy.run_module(module, run_name="__main__")
"""
CTL: Final = "conntrackd.cli.ctl"
DAEMON: Final = "conntrackd"


def watch(module: str, *arguments: str, stdin: str = "", **extra: str) -> tuple[int, list[list[str]]]:
    """The exit status, and what was done that is more than to look."""
    reading, writing = os.pipe()
    environ = {"PATH": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **extra}
    environ |= {name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(writing), module, *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        pass_fds=[writing],
        env=environ,
        timeout=60,
        check=False,
    )
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        noted = [json.loads(line) for line in file]
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, noted


def list_all(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in (folder, *folder.rglob("*")))


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "conntrackd.yaml"
    path.write_text(CONFIGURATION.format(folder=tmp_path))
    return path


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (CTL, ("--help",)),
        (CTL, ("--version",)),
        (CTL, ("status",)),
        (CTL, ("status", "--json")),
        (CTL, ("stats",)),
        (CTL, ("filter", "show")),
        (CTL, ("sink", "list")),
        (CTL, ("tail",)),
        (CTL, ("top",)),
        (CTL, ("doctor",)),
        (CTL, ("filter", "check", "--config", "{configuration}")),
        (CTL, ("filter", "explain", "--config", "{configuration}", "--bpf", "--core")),
        (CTL, ("filter", "test", "--filter", "log any")),
        (CTL, ("events", "--from", "file:{events}", "log any", "drop any")),
        (CTL, ("summary", "--from", "file:{events}")),
        (DAEMON, ("--help",)),
        (DAEMON, ("--version",)),
        (DAEMON, ("version",)),
        (DAEMON, ("check", "--config", "{configuration}")),
        ("conntrackd.cli.completion", ("conntrackctl", "bash")),
        ("conntrackd.cli.completion", ("conntrackd", "fish")),
    ],
    ids=lambda item: " ".join(item).replace("{configuration}", "FILE") if isinstance(item, tuple) else item,
)
def test_row_44_a_command_that_looks_changes_nothing(
    module: str, arguments: tuple[str, ...], configuration: Path
) -> None:
    before = list_all(configuration.parent)
    words = [word.format(configuration=configuration, events=configuration) for word in arguments]
    # No bus there: what would start a daemon has nobody to ask.
    nowhere = f"unix:path={configuration.parent}/bus"

    status, noted = watch(module, *words, stdin=EVENT, DBUS_SYSTEM_BUS_ADDRESS=nowhere)

    assert noted == []
    assert list_all(configuration.parent) == before
    assert status in {0, 3, 4}


def test_row_44_where_no_daemon_answers_systemd_and_the_journal_are_asked_and_nothing_else() -> None:
    if os.path.exists("/run/dbus/system_bus_socket"):
        pytest.skip("a daemon may run here, and answer")

    _, noted = watch(CTL, "status")

    assert [event for event, _ in noted] == ["subprocess.Popen"]
    assert "('systemctl', ['systemctl', 'show', 'conntrackd.service'" in noted[0][1]


def test_what_is_more_than_to_look_is_noted(tmp_path: Path) -> None:
    """Or the tests above would pass whatever a command does."""
    for name in ("man", "contrib", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    sample = tmp_path / "contrib/conntrackd.yaml"
    sample.write_text("# stale")

    _, noted = watch("conntrackd.cli.render", "--write", str(tmp_path))

    assert noted == [["open", str((str(sample), "w"))]]
