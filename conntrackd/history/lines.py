"""Lines of one file of events: forwards and backwards, compressed or not, by the time they begin with."""

import importlib
import lzma
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO, Final, cast

from conntrackd.errors import DataError, UnavailableError
from conntrackd.flow import NANO
from conntrackd.history.times import Span

# A line of the stream has 300 to 1,000 characters.
MAX_LINE_BYTES: Final = 64 << 10
CHUNK: Final = 1 << 20
# What logrotate's `compresscmd` may be: the ending, and Python's module for it.
COMPRESSED: Final = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "lzma",
    ".zst": "compression.zstd",  # since Python 3.14
}
# What they raise of a file that is damaged.
BROKEN: tuple[type[Exception], ...] = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)
with suppress(ImportError):
    BROKEN += (importlib.import_module("compression.zstd").ZstdError,)
# As the sink begins a line; a time has 29 characters, and its offset 6.
BEGINNING: Final = b'{"time":"'
TIME: Final = slice(len(BEGINNING), len(BEGINNING) + 29)
OFFSET: Final = slice(TIME.stop, TIME.stop + 6)
ALWAYS: Final = (b"", b"\xff")


def number_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that hold something; of one that is too long just enough to see that it is."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        if line.strip():
            yield number, line


def read_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Those of a file that nobody writes to, which may be compressed. DataError where it is damaged."""
    number = 0
    try:
        for number, line in number_lines(decompress(path, file) if is_compressed(path) else file):
            yield number, line  # the number is needed below
    except BROKEN as error:
        message = f"the file cannot be read any further: {error}"
        raise DataError(message, origin=f"{path}:{number + 1}") from error


def read_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines before this offset that hold something, the last one first."""
    rest = b""
    while end > 0:
        size = min(CHUNK, end)
        end -= size
        file.seek(end)
        first, *lines = (file.read(size) + rest).split(b"\n")
        for line in reversed(lines):
            if line.strip():
                yield line
        rest = first[-MAX_LINE_BYTES - 1 :]  # of one that is too long just enough to see that it is
    if rest.strip():
        yield rest


def is_compressed(path: Path) -> bool:
    """By the name, as logrotate gives it."""
    return path.suffix in COMPRESSED


def decompress(path: Path, file: BinaryIO) -> BinaryIO:
    """What is in the file. Raises UnavailableError where this Python has no module for it."""
    try:
        return cast(BinaryIO, importlib.import_module(COMPRESSED[path.suffix]).open(file))
    except ImportError:
        message = f"{path}: this Python cannot read {path.suffix}"
        raise UnavailableError(
            message, hint="decompress it, or ask for a time after it with --since"
        ) from None


class Gate:
    """Turns away lines of another time by their first bytes: a tenth of what it costs to read them whole.

    Whatever does not begin as the sink begins a line is let through.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._bounds: dict[bytes, tuple[bytes, bytes]] = {}  # by offset, of which there are one or two

    def lets_through(self, line: bytes) -> bool:
        """False only for a line of a time that is not wanted."""
        if not line.startswith(BEGINNING):
            return True
        offset = line[OFFSET]
        low, high = self._bounds.get(offset) or self._add_bounds(offset)
        return low <= line[TIME] <= high

    def _add_bounds(self, offset: bytes) -> tuple[bytes, bytes]:
        try:
            zone = datetime.strptime(offset.decode("ascii"), "%z").tzinfo
        except ValueError:
            return ALWAYS
        since, until = (None if time is None else _render(time, zone or UTC) for time in self._span)
        self._bounds[offset] = ALWAYS[0] if since is None else since, ALWAYS[1] if until is None else until
        return self._bounds[offset]


def _render(nanoseconds: int, zone: object) -> bytes:
    """As the sink writes a time with this offset, without it."""
    seconds, fraction = divmod(nanoseconds, NANO)
    whole = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    return f"{whole.astimezone(cast(timezone, zone)):%Y-%m-%dT%H:%M:%S}.{fraction:09}".encode()
