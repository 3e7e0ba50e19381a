"""cli/report.py: every error is a sentence and a status, and no traceback."""

import pytest

from conntrackd.cli import report
from conntrackd.errors import ConfigError, ManyErrors, ResourceError


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("no", place="a:1", hint="yes"), 78, "x: a:1: no\nhint: yes\n"),
        (ManyErrors([ConfigError("one"), ConfigError("two")]), 78, "x: one\nx: two\n"),
        (ResourceError("too few", hint="more"), 71, "x: too few\nhint: more\n"),
        (FileNotFoundError(2, "No such file", "a\x1b[31m"), 74, "x: a\\x1b[31m: No such file\n"),
        (
            MemoryError(),
            75,
            "x: no memory is left\nhint: a larger MemoryMax= in the unit, or smaller sink.NAME.queue\n",
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
