"""Secrets in small files that others write while the daemon runs, and how to see that they were renewed."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from conntrackd.config.option import File, Option
from conntrackd.config.read import Config
from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.files import KindError, read_file

MAX_SECRET: Final = 64 << 10

Origins = Mapping[Path, str]
"""The setting that names a file, and where that is made."""
Stamp = tuple[tuple[int, ...], ...]
"""What changes when a file is replaced, for each of some files."""


def list_origins(config: Config, *options: Option[File]) -> Origins:
    """Of the files that these name."""
    return {path: config.locate(option) for option in options if (path := config[option]) is not None}


def find_credential(name: str) -> Path | None:
    """systemd.exec(5), LoadCredential=."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, name) if directory else None
    return path if path is not None and path.exists() else None


def read_stamp(paths: Iterable[Path | None]) -> Stamp:
    """As they are now; what is not there has a stamp too."""
    return tuple(_read_stamp(path) for path in paths if path is not None)


def _read_stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_secret(path: Path, origins: Origins, *, ascii_only: bool = True) -> str:
    """The first line of a file, in UTF-8. The reasons never contain any of it."""
    try:
        return _read_secret(path, ascii_only=ascii_only)
    except SinkUnavailable as absence:
        absence.reason = say_origin(path, origins, absence.reason)
        raise


def say_origin(path: Path, origins: Origins, reason: str) -> str:
    """A reason with the setting that names the file; systemd's credentials have none."""
    return f"{origins[path]}: {reason}" if path in origins else reason


def _read_secret(path: Path, *, ascii_only: bool) -> str:
    try:
        content, _ = read_file(path, MAX_SECRET)
    except KindError as error:
        raise SinkUnavailable(f"{path} {error}") from error
    except OSError as error:
        raise SinkUnavailable(f"cannot read {path}: {error.strerror}") from error
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SinkUnavailable(f"{path} does not hold one line of text in UTF-8") from None
    if not text or not text.isprintable():
        raise SinkUnavailable(f"{path} does not hold one line of text")
    if ascii_only and not text.isascii():
        raise SinkUnavailable(f"{path} holds a token with characters that HTTP headers cannot carry")
    return text


def encode_basic(username: str, password: str) -> bytes:
    """RFC 7617: UTF-8, letters with their accents as one character (NFC), as servers keep them."""
    return unicodedata.normalize("NFC", f"{username}:{password}").encode()
