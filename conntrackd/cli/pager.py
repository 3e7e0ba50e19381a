"""What is longer than the terminal, in the user's pager; as journalctl does it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# As journalctl has it: end at once where all fits, keep colours, cut long lines, leave the screen as it is.
LESS: Final = "FRSXMK"
# What is shown may be read as root by who may do nothing else: no shell and no other file out of it.
SECURE: Final = {"LESSSECURE": "1"}
NONE: Final = frozenset({"", "cat"})


@contextmanager
def paged(*, wanted: bool) -> Iterator[None]:
    """Lead stdout into a pager, where it is a terminal and there is one, and wait until that has ended."""
    process = start() if wanted and sys.stdout.isatty() else None
    if process is None or process.stdin is None:
        yield
        return
    terminal, sys.stdout = sys.stdout, process.stdin
    try:
        yield
    except (BrokenPipeError, KeyboardInterrupt):  # who has seen enough
        pass
    finally:
        sys.stdout = terminal
        with suppress(OSError):
            process.stdin.close()
        wait(process)


def start() -> "subprocess.Popen[str] | None":
    """$PAGER, or less; None where there is none."""
    try:
        words = shlex.split(os.environ.get("PAGER", "less"))
    except ValueError:  # a quote without its other half
        return None
    if not words or words[0] in NONE or os.environ.get("TERM") == "dumb":
        return None
    environ = {"LESS": LESS, "LESSCHARSET": "utf-8", **os.environ, **SECURE}
    try:
        return subprocess.Popen(words, stdin=subprocess.PIPE, env=environ, text=True, encoding="utf-8")
    except OSError:
        return None


def wait(process: "subprocess.Popen[str]") -> None:
    """Until the user leaves it: ^C is the pager's."""
    while True:
        with suppress(KeyboardInterrupt):
            process.wait()
            return
