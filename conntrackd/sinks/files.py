"""Small files that others write while the daemon runs: secrets and certificates, renewed in place."""

import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from conntrackd.sinks.sink import SinkUnavailable

MAX_SECRET: Final = 64 << 10
MAX_CERTIFICATES: Final = 16 << 20  # bytes: the bundle of a whole system has some 200 KiB

Stamp = tuple[tuple[int, ...], ...]
"""What tells a file from the one that was there before, for each of some files."""


def find_stamp(paths: Iterable[Path | None]) -> Stamp:
    """As they are now; what is not there has a stamp too."""
    return tuple(_find_stamp(path) for path in paths if path is not None)


def _find_stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def check_kind(path: Path, limit: int = MAX_CERTIFICATES) -> None:
    """SinkUnavailable for what is no plain file, before anybody reads it: a FIFO would never end."""
    try:
        status = path.stat()
    except OSError as error:
        raise SinkUnavailable(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SinkUnavailable(f"{path} is not a plain file")
    if status.st_size > limit:
        raise SinkUnavailable(f"{path} is larger than {limit} bytes")


def read_secret(path: Path, *, ascii_only: bool = True) -> str:
    """The first line of a file, in UTF-8. The reasons never contain any of it."""
    try:
        # Not waiting for the writer of a FIFO, whatever stands there by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SinkUnavailable(f"{path} is not a plain file")
            content = os.read(descriptor, MAX_SECRET + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SinkUnavailable(f"cannot read {path}: {error.strerror}") from error
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SinkUnavailable(f"{path} does not hold one line of text in UTF-8") from None
    if not text or len(content) > MAX_SECRET or not text.isprintable():
        raise SinkUnavailable(f"{path} does not hold one line of text")
    if ascii_only and not text.isascii():
        raise SinkUnavailable(f"{path} holds a token with other characters than HTTP's headers may have")
    return text


def encode_basic(username: str, password: str) -> bytes:
    """RFC 7617: UTF-8, letters with their accents as one character (NFC), as servers keep them."""
    return unicodedata.normalize("NFC", f"{username}:{password}").encode()
