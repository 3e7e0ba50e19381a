"""The files of the stream sink, as logrotate turns them over: one after the other, as if they were one."""

import grp
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from conntrackd.errors import ConntrackdError, DataError, NotPermittedError, UnavailableError
from conntrackd.files import KindError, open_file
from conntrackd.history.lines import (
    MAX_LINE_BYTES,
    Gate,
    is_compressed,
    number_lines,
    read_backwards,
    read_lines,
)
from conntrackd.history.selection import HistorySelection, find_conditions, fulfils_any
from conntrackd.render.parse import Record, parse_line

# No bound for a log, whose lines are read one by one.
ANY_SIZE: Final = 1 << 62
# A file is read although it was last written to so long before the time that is asked for: clocks are set.
SLACK_SECONDS: Final = 600
POLL_SECONDS: Final = 0.2
# logrotate: numbered (the larger the older) or with a date or time (`dateext`); compressed or not.
ROTATED: Final = re.compile(r"(?:\.(\d{1,5})|-(\d{8}(?:-\d{1,10})?|\d{10}))(\.gz|\.bz2|\.xz|\.zst)?")


class Part(NamedTuple):
    """A file that was rotated, and which one it was when it was found."""

    path: Path
    inode: int


class FileSource:
    """What is in a file of the stream, and in those that it was rotated into."""

    def __init__(self, path: Path, selection: HistorySelection) -> None:
        self._path = path
        self._selection = selection
        self._gate = Gate(selection.span)
        self._conditions = find_conditions(selection.rules)
        # Opened first: what is rotated from now on is known by its inode, and read once.
        self._live = None if is_compressed(path) else _open_existing(path)
        self._end = 0
        """Where the lines of it end that were read."""

    def close(self) -> None:
        """The file itself is held open from the beginning."""
        if self._live is not None:
            self._live.close()

    def read(self) -> Iterator[Record]:
        """All that is wanted, oldest first."""
        for part in self._list_parts():
            yield from self._read_part(part)
        if self._live is not None:
            yield from self._read_live(self._live)

    def read_last(self, count: int) -> list[Record]:
        """The last so many of what is wanted, oldest first; no file is opened that is not needed for it."""
        found: deque[Record] = deque()
        if self._live is not None:
            self._end = _compute_last_end(self._live)
            for line in read_backwards(self._live, self._end):
                record = self._select_line(line, str(self._path))
                if record is not None:
                    found.appendleft(record)
                    if len(found) == count:
                        return list(found)
        for part in reversed(self._list_parts()):
            earlier = deque(self._read_part(part), count - len(found))
            found.extendleft(reversed(earlier))
            if len(found) == count:
                break
        return list(found)

    def follow(self) -> Iterator[Record]:
        """What comes after what was read, without an end; through rotations."""
        while True:
            if self._live is None:
                self._live, self._end = _open_existing(self._path), 0
            if self._live is not None:
                was_replaced = _is_replaced(self._path, self._live)  # before: what it got until then is read
                if os.fstat(self._live.fileno()).st_size < self._end:  # copytruncate
                    self._end = 0
                self._live.seek(self._end)
                yield from self._read_live(self._live)
                if was_replaced:
                    self._live.close()
                    self._live = None
                    continue
            time.sleep(POLL_SECONDS)

    def _list_parts(self) -> list[Part]:
        """Those that it was rotated into, oldest first, as far as their events can be of that time."""
        if is_compressed(self._path) and self._path.exists():  # it is one of them itself
            return [Part(self._path, self._path.stat().st_ino)]
        since = self._selection.span.since
        own = None if self._live is None else os.fstat(self._live.fileno()).st_ino
        found: dict[tuple[str, int], Part] = {}
        try:
            entries = sorted(os.scandir(self._path.parent), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise explain(self._path, error) from error
        for entry in entries:
            name = entry.name.removeprefix(self._path.name)
            match = ROTATED.fullmatch(name) if name != entry.name else None
            if match is None or not entry.is_file():
                continue
            status = entry.stat()
            is_older = since is not None and status.st_mtime + SLACK_SECONDS < since / 1e9
            if status.st_ino != own and not is_older:
                # While it is compressed it is there twice: the plain one, which sorts last here, is whole.
                found[match[2] or "", -int(match[1] or 0)] = Part(Path(entry.path), status.st_ino)
        if not found and self._live is None:
            hint = "sink.stream.writer names the file that the daemon writes"
            raise UnavailableError(f"{self._path}: there is no such file", hint=hint)
        return [found[key] for key in sorted(found)]

    def _read_part(self, part: Part) -> Iterator[Record]:
        """A file that nobody writes to any more."""
        with _open(part.path) as file:
            if os.fstat(file.fileno()).st_ino != part.inode:
                message = f"{part.path} was rotated while it was to be read"
                raise UnavailableError(message, hint="ask again")
            try:
                for number, line in read_lines(part.path, file):
                    record = self._select_line(line, f"{part.path}:{number}")
                    if record is not None:
                        yield record
            except DataError as broken:
                self._selection.damage.add(broken.origin, broken)

    def _read_live(self, file: BinaryIO) -> Iterator[Record]:
        """From where it stands. A last line without an end is still being written, unless it is whole."""
        is_from_start = self._end == 0
        for number, line in number_lines(file):
            if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES and not _is_whole(line):
                return
            record = self._select_line(line, f"{self._path}:{number}" if is_from_start else str(self._path))
            self._end = file.seek(0, os.SEEK_CUR)
            if record is not None:
                yield record

    def _select_line(self, line: bytes, origin: str) -> Record | None:
        """The line's record, if it is wanted; damage is counted."""
        if not self._gate.lets_through(line):
            return None
        try:
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"longer than {MAX_LINE_BYTES >> 10} KiB: no event")
            record = parse_line(line)
            # Most of what rules leave out, for a fifth of what it costs to read all of its fields.
            if self._conditions is not None and not fulfils_any(record, self._conditions):
                return None
            return record if self._selection.accepts(record) else None
        except DataError as error:
            self._selection.damage.add(origin, error)
            return None


def _open_existing(path: Path) -> BinaryIO | None:
    """The file that the daemon writes to; None where it has not made a new one yet."""
    try:
        path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(path, error) from error
    return _open(path)


def _open(path: Path) -> BinaryIO:
    try:
        return open_file(path, ANY_SIZE)
    except KindError as error:
        raise DataError(f"{path} {error}") from error
    except OSError as error:
        raise explain(path, error) from error


def explain(path: Path, error: OSError) -> ConntrackdError:
    """What cannot be read, and what helps."""
    if not isinstance(error, PermissionError):
        return UnavailableError(f"{path}: {(error.strerror or str(error)).lower()}")
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        group = ""
    hint = "run it as root, such as with sudo"
    hint += f"; it belongs to the group {group}" if group not in {"", "root"} else ""
    return NotPermittedError(f"you may not read {path}", hint=hint)


def _compute_last_end(file: BinaryIO) -> int:
    """Where the last line ends that is whole."""
    size = os.fstat(file.fileno()).st_size
    last = next(read_backwards(file, size), b"")
    file.seek(max(0, size - 1))
    if file.read(1) == b"\n" or _is_whole(last):
        return size
    return size - len(last)


def _is_whole(line: bytes) -> bool:
    try:
        parse_line(line)
    except DataError:
        return False
    return True


def _is_replaced(path: Path, file: BinaryIO) -> bool:
    """Whether the path leads to another file. Where it leads nowhere the daemon writes on into this one."""
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False
