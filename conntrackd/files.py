"""Files that somebody else names: refused by their kind and size before a byte is read."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
# Whatever stands in the place of a file: a FIFO does not hold us up, a link leads nowhere.
SAFE: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
# Nobody can make anything there.
KERNEL: Final = (Path("/proc"), Path("/sys"))
# Of a directory that is to be made, its last part is; more would hide a typing error.
MADE: Final = "name a directory in which conntrackd may write; only the last part of its path is made"


def name_standard(number: int) -> str:
    """One of the process's own descriptors, for people."""
    return "standard error" if number == 2 else "standard output"


def locate_standard(number: int) -> str:
    """`standard output (/var/log/events)`: with where it leads."""
    try:
        return f"{name_standard(number)} ({os.readlink(f'/proc/self/fd/{number}')})"
    except OSError:
        return name_standard(number)


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


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor to read from of a file of our own, whatever has taken its place. Raises OSError."""
    file = os.open(path, os.O_RDONLY | SAFE)
    try:
        yield file
    finally:
        os.close(file)


def check(status: os.stat_result, limit: int) -> None:
    """Raise KindError unless it is a file of at most that size."""
    kind = next((name for is_kind, name in KINDS if is_kind(status.st_mode)), "")
    if kind:
        raise KindError(f"is {kind}, not a file")
    if status.st_size > limit:
        raise KindError(f"is larger than {render_limit(limit)}")


def check_folder(folder: Path) -> Path:
    """Raise KindError for what is not a directory and cannot become one, OSError where nobody may look.

    Returns what there is of it: itself, or the one above it.
    """
    below: Path | None = None
    for above in (folder, *folder.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            above.lstat()
            break
        below = above
    if not above.is_dir():
        raise KindError(f"{above} is not a directory")
    if below is not None and below != folder:
        raise KindError(f"there is no directory {below}")
    if below is not None:
        check_file_system(above)
    return above


def check_file_system(folder: Path) -> None:
    """Raise KindError for a directory in which nobody can make anything; OSError where it is none."""
    device = folder.stat().st_dev
    if any(root.is_mount() and root.stat().st_dev == device for root in KERNEL):
        raise KindError(f"in {folder} the kernel has its own files, and no other")


def read_file(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """All of a plain file, and what is known of it. Raises OSError and KindError."""
    with open_file(path, limit) as file:
        content = file.read(limit + 1)
        status = os.fstat(file.fileno())
    if len(content) > limit:  # it grew, or does not know its size, as those in /proc
        raise KindError(f"is larger than {render_limit(limit)}")
    return content, status
