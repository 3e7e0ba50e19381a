"""Files that somebody else names: refused by their kind and size before a byte is read."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from conntrackd.units import render_limit

# What the test says of a mode, and what such a thing is called.
KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class KindError(Exception):
    """What is there can be opened, and is not to be read; the text completes `FILE `."""


def open_file(path: Path, limit: int) -> BinaryIO:
    """A plain file of at most `limit` bytes, open for reading. Raises OSError and KindError.

    Looked at before it is opened, because opening alone waits (a named pipe) or does something (a device),
    and again when it is open, because it may be another one by then.
    """
    check(path.stat(), limit)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        check(os.fstat(descriptor), limit)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check(status: os.stat_result, limit: int) -> None:
    """Raise KindError unless it is a file of at most that size."""
    kind = next((name for is_kind, name in KINDS if is_kind(status.st_mode)), "")
    if kind:
        raise KindError(f"is {kind}, not a file")
    if status.st_size > limit:
        raise KindError(f"is larger than {render_limit(limit)}")


def read_file(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """All of a plain file, and what is known of it. Raises OSError and KindError."""
    with open_file(path, limit) as file:
        content = file.read(limit + 1)
        status = os.fstat(file.fileno())
    if len(content) > limit:  # it grew, or does not know its size, as those in /proc
        raise KindError(f"is larger than {render_limit(limit)}")
    return content, status
