"""cli/report.py: every error is a sentence and a status, and no traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conntrackd.cli import report
from conntrackd.errors import ConfigError, ManyErrors, ResourceError
from tests.live.daemon import command, environment


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("no", origin="a:1", hint="yes"), 78, "x: a:1: no\nhint: yes\n"),
        (ManyErrors([ConfigError("one"), ConfigError("two")]), 78, "x: one\nx: two\n"),
        (ResourceError("too few", hint="more"), 71, "x: too few\nhint: more\n"),
        (FileNotFoundError(2, "No such file", "a\x1b[31m"), 74, "x: a\\x1b[31m: No such file\n"),
        (
            OSError(24, "Too many open files", "/etc/hosts"),
            71,
            "x: this process cannot open enough files: Too many open files\n"
            "hint: LimitNOFILE= in the unit, or ulimit -n, is too low\n",
        ),
        (
            MemoryError(),
            75,
            "x: out of memory\nhint: raise MemoryMax= in the unit, or lower sink.NAME.queue\n",
        ),
        (
            ModuleNotFoundError("No module named 'ply'"),
            69,
            "x: No module named 'ply'\n"
            "hint: a library is not installed for this Python, or has no memory to load\n",
        ),
        (KeyError("a"), 70, "x: internal error: KeyError: 'a' (at unknown)\n"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(
    error: Exception, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.report("x", error) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["version"], 0),
        (["check", "--sink.syslog.enable"], 0),
        (["record"], 64),
        (["record", "/nonexistent/file", "--netns", "nowhere-at-all"], 69),
    ],
    ids=["output", "a good configuration", "a usage error", "an error"],
)
def test_a_closed_standard_stream_changes_no_status_and_gets_nothing_else_into_its_place(
    words: list[str], status: int, closed: str
) -> None:
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(*words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False, env=environment())

    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if "2>&-" not in closed and status:
        assert done.stderr.startswith("conntrackd: ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_named_with_where_it_leads_and_what_to_do(unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("version"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
            env=environment(PYTHONUNBUFFERED=unbuffered),
        )

    assert (done.returncode, done.stderr) == (
        74,
        f"conntrackd: standard output (/dev/full): No space left on device\nhint: {report.FULL}\n",
    )


def test_events_for_a_closed_standard_output_are_refused_at_the_start() -> None:
    line = ["sh", "-c", 'exec "$@" >&-', "sh", *command("check", "--sink.stream.enable")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False, env=environment())

    assert (done.returncode, "stdout is closed" in done.stderr) == (78, True)


@pytest.mark.parametrize("module", ["conntrackd.cli.ctl", "conntrackd.cli.daemon"])
def test_an_interrupt_while_modules_are_imported_leaves_no_traceback(module: str) -> None:
    source = f"""
import os, signal, sys
class Importer:
    def find_spec(self, name, *_):
        if name == "conntrackd.cli.verb":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Importer())
import {module}
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, env=environment()
    )

    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
