"""Bars and marks where a terminal's character set has none."""

import subprocess
from pathlib import Path

import pytest

from conntrackd.cli.charset import ERRORS
from conntrackd.cli.stats import BARS
from conntrackd.cli.summary import BLOCKS
from conntrackd.flow import EventType
from tests.history.written import write_file, write_lines
from tests.live.daemon import ctl_command, environment
from tests.sinks.flows import make_flow


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-15", "cp437"])
def test_what_is_drawn_keeps_its_columns(encoding: str) -> None:
    drawn = f"{BARS}{BLOCKS}…"
    shown = drawn.encode(encoding, ERRORS).decode(encoding)

    assert len(shown) == len(drawn)
    assert "\\" not in shown


def test_everything_else_is_escaped_as_before() -> None:
    text = "Zürich…\u202e"

    assert text.encode("ascii", ERRORS) == b"Z\\xfcrich~\\u202e"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", ERRORS)


def test_a_summary_has_bars_in_the_locale_c(tmp_path: Path) -> None:
    flow = make_flow(1, EventType.DESTROY)
    flow.orig_bytes, flow.reply_bytes = 100, 20
    path = write_file(tmp_path / "events.json", write_lines([flow]))
    words = ["summary", "--from", f"file:{path}", "--by", "src"]

    done = subprocess.run(
        ctl_command(*words),
        env=environment(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"),
        capture_output=True,
        check=True,
        timeout=30,
    )

    assert done.stdout.splitlines()[-1].endswith(b"120 B  ####################")
