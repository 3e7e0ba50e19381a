"""Batches on disk for a sink that can be away: at least once, in order, bounded, past kill -9 and damage.

batch.py interprets the bytes of a row. Rows stand in files of some MiB (segment.py) that are only
appended to and go as a whole; what is delivered of them stands in a file of its own (spool_state.py). A row
is on the disk itself before append() returns: a power failure takes no more than the one batch that was
being written. An acknowledgement that a power failure undoes only means that a batch is sent twice; SIGKILL
undoes neither.

What cannot be delivered any more, because the bound was reached or the disk gives back other bytes than it
got, is a number in the state before it is gone, and stays one until its report is itself a row.
"""

import errno
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from conntrackd.delivery.losses import Losses, is_alike, join_losses
from conntrackd.delivery.old_spool import read_database
from conntrackd.delivery.segment import (
    Head,
    Segment,
    encode_row,
    find_head,
    list_heads,
    read_packed,
    scan_segment,
)
from conntrackd.delivery.spool_directory import SpoolDirectory, write_all
from conntrackd.delivery.spool_state import SpoolState
from conntrackd.delivery.store import PackedBatch, Row, SpoolError
from conntrackd.errors import ConfigError
from conntrackd.files import SAFE, opened
from conntrackd.flow import ABSENT, Lost

MIN_SEGMENT, MAX_SEGMENT = 64 << 10, 8 << 20
SEGMENTS: Final = 16  # at the bound: so much of it goes at once
# The last file of an empty spool goes when it has grown beyond this: an outage does not cost disk for ever.
SHRINK_ABOVE: Final = 64 << 10
# A disk in this condition may recover while the daemon runs; anything else is a configuration mistake.
PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})


class Spool:
    """A Store of bytes in `directory`, which belongs to one process at a time.

    Its files have no more than `limit` bytes together, but always room for one packed.
    """

    def __init__(self, directory: Path, name: str, limit: int, sink: str = "") -> None:
        """ConfigError when the directory cannot be used, or is in use. `sink` is as its name unless given."""
        self.rows = 0
        self.events = 0
        self.damage = ""
        self.missing = 0
        self.restored: int | None = None
        self._directory = SpoolDirectory(directory, name)
        self._name = name
        self._sink = sink or name
        self._limit = limit
        self._segment_size = min(MAX_SEGMENT, max(MIN_SEGMENT, limit // SEGMENTS))
        self._state = SpoolState()
        self._known = False  # whether _state is what this process has made it, and not to be read
        self._segments: deque[Segment] = deque()
        self._reader: tuple[Path, int] | None = None
        self._writer: int | None = None  # for the last segment
        self._first: tuple[Head | None, Row] | None = None
        with suppress(SpoolError):  # every append tries again, and says what is wrong
            try:
                self._open()
            except ConfigError:
                self.close()  # or a reload with a better directory would find it in use
                raise

    # ---- opening --------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Take the lock, read what is there, and settle what is missing."""
        try:
            self._directory.open()
            state = self._state if self._known else self._read_state()
            self._segments = deque(self._read_segments(state))
        except OSError as error:
            self._disconnect()
            if error.errno in PASSING:
                raise self._explain(error) from error
            raise ConfigError(
                f"cannot use the spool {self._directory.path}: {error.strerror}",
                hint="name a directory in which conntrackd may write",
            ) from error
        with self._translated():
            self._settle(state)
            self._import()

    def _import(self) -> None:
        """What an older daemon has left in a database. Killed in between, it comes twice."""
        path = self._path.with_name(f"{self._name}.sqlite")
        if not path.is_file():
            return
        is_whole = True
        for packed, is_good in read_database(path):
            if is_good:
                self.append([packed])
            else:
                is_whole = False
                self.note([self._make_loss(packed.events, "damaged", packed.oldest)])
        if not is_whole:
            self._note_damage("not all of it can be read", self._directory.keep(path))
        for suffix in ("-wal", "-shm", ""):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self.restored = self.events

    def _read_state(self) -> SpoolState | None:
        """None where there is none, or none that can be read: that one is kept aside."""
        state, kept = self._directory.read_state()
        if kept:
            self._note_damage("its state cannot be read", kept)
        return state

    def _read_segments(self, state: SpoolState | None) -> Iterator[Segment]:
        """In the order of their numbers, each with what is left of it."""
        for path in self._directory.list_segments():
            try:
                if path.is_symlink() or not path.is_file():
                    raise OSError(errno.EINVAL, "not a plain file")
                yield scan_segment(path, state or SpoolState())
            except OSError as error:
                if error.errno in PASSING - {errno.EIO}:
                    raise
                self._note_damage(f"{path.name} cannot be read", self._directory.keep(path))

    def _settle(self, state: SpoolState | None) -> None:
        """Compare what is there with what should be, and record what is missing."""
        # The state knows how many events the rows below its `next` hold: fewer are damage, and one loss.
        # Newer rows are appends that it does not know yet: they count, and what they report is reported.
        # Without a state nothing can be compared, and the loss has no number.
        before = state or SpoolState()
        losses, missing = before.losses, 0
        if state is None:
            if self.damage or self._segments:
                # What is missing cannot be counted: the state would have known it.
                losses = (self._make_loss(ABSENT, "damaged"),)
                self._note_damage("it held an unknown number of events")
        else:
            found, reported = self._look_behind(state)
            losses = _drop_reported(losses, reported)
            missing = max(0, state.events - found)
        for segment in self._segments:
            # Else it is the last write of a killed process, which was never acknowledged.
            segment.is_kept &= missing > 0 or state is None
            if segment.is_kept:
                self._note_damage("", self._directory.keep(segment.path, copy=True))
        if missing and self._known:
            self._remember_missing(missing)
        elif missing:
            self.missing = missing
            losses = join_losses((*losses, self._make_loss(missing, "damaged")))
            self._note_damage(f"{missing} events of it cannot be read")
        self.rows = sum(segment.rows for segment in self._segments)
        self.events = sum(segment.events for segment in self._segments)
        if not self._known:
            self._known, self.restored = True, self.events
        highest = max((segment.last for segment in self._segments), default=0)
        self._state = replace(before, losses=losses)
        self._change(next=max(before.next, highest + 1), events=self.events)
        self._directory.write_state(self._state, sync=True)
        for segment in list(self._segments):
            if not segment.rows:
                self._drop_segment(segment)

    def _remember_missing(self, events: int) -> None:
        """Found by a process that has counted them already: a row of which nothing is left."""
        path = self._path.with_name(f"{self._name}-missing")
        self._segments.appendleft(Segment(path, rows=1, events=events, last=self._state.done))

    def _look_behind(self, state: SpoolState) -> tuple[int, list[Lost]]:
        """Events in rows that the state knows of, and the losses that newer rows report."""
        events = 0
        reported: list[Lost] = []
        for segment in self._segments:
            if segment.last < state.next:
                events += segment.events
                continue
            with opened(segment.path) as file:
                for head in list_heads(file, segment.size):
                    if head.number >= state.next:
                        packed = read_packed(file, head) if head.is_report else None
                        reported += () if packed is None else packed.losses
                    elif not state.is_gone(head.number):
                        events += head.events
        return events, reported

    def _make_loss(self, events: int, reason: str, since: int = 0) -> Lost:
        now = time.time_ns()
        return Lost(events, since or now, now, self._sink, reason)

    def _note_damage(self, what: str, kept: str = "") -> None:
        text = "; ".join(part for part in (what, f"keeping it as {kept}" if kept else "") if part)
        self.damage = f"{self.damage}; {text}" if self.damage else f"the spool {self._path}: {text}"

    # ---- rows -----------------------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self._directory.path / self._name

    @property
    def losses(self) -> Losses:
        """See Store."""
        return self._state.losses

    @property
    def oldest(self) -> int:
        """Time of the oldest record, 0 for none."""
        with suppress(SpoolError):
            row = self._find_first()
            return 0 if row is None else row.packed.oldest
        return 0

    def append(
        self, batches: Sequence[PackedBatch], *, keep: int | None = None, is_report: bool = False
    ) -> list[Row]:
        """See Store."""
        self._use()
        number = self._state.next
        data = b"".join(
            encode_row(number + index, packed, is_report=is_report) for index, packed in enumerate(batches)
        )
        with self._translated():
            segment = self._write(data)
        events = sum(packed.events for packed in batches)
        segment.rows += len(batches)
        segment.events += events
        segment.last = number + len(batches) - 1
        self.rows += len(batches)
        self.events += events
        reported = [lost for packed in batches for lost in packed.losses] if is_report else []
        losses = _drop_reported(self._state.losses, reported)
        self._change(next=segment.last + 1, events=self.events, losses=losses)
        gone: list[Row] = []
        # The rows are there. What is too much, and the state, go with the next ones where the disk fails now.
        with suppress(SpoolError), self._translated():
            self._make_room(keep, gone)
            self._directory.write_state(self._state)
        return gone

    def _write(self, data: bytes) -> Segment:
        """Behind the last row, and to the disk itself."""
        writer, segment = self._writer, self._segments[-1] if self._segments else None
        is_over = segment is None or (segment.size and segment.size + len(data) > self._segment_size)
        # A file that somebody has removed would take rows, and give none back.
        if writer is None or is_over or os.fstat(writer).st_nlink == 0:
            self._close_writer()
            path, writer = self._directory.create_segment(self._state.next)
            self._writer, segment = writer, Segment(path)
            # Of the same name is one into which nothing was ever written.
            self._segments = deque([*(old for old in self._segments if old.path != path), segment])
        assert segment is not None
        try:
            write_all(writer, data, segment.size)
            os.fdatasync(writer)
        except OSError:
            with suppress(OSError):
                os.ftruncate(writer, segment.size)
            raise
        segment.size += len(data)
        return segment

    def _make_room(self, keep: int | None, gone: list[Row]) -> None:
        """Let the oldest segments go until the bound holds, but never the last, nor the row in flight."""
        while sum(segment.size for segment in self._segments) > self._limit:
            for segment in list(self._segments)[:-1]:
                rows = self._list_rows(segment)
                if not any(row.number == keep for row in rows):
                    break
            else:
                return
            self._cut(segment, rows)
            gone += rows

    def _list_rows(self, segment: Segment) -> list[Row]:
        """What is left in it; what cannot be read is one row, with all that is missing."""
        rows, state = [], self._state
        with suppress(FileNotFoundError), opened(segment.path) as file:
            for head in list_heads(file, segment.size, segment.at):
                if not state.is_gone(head.number):
                    packed = read_packed(file, head)
                    losses = packed.losses if packed is not None else ()
                    rows.append(Row(head.number, PackedBatch(b"", head.events, head.oldest, losses)))
        missing = segment.events - sum(row.packed.events for row in rows)
        if missing > 0:
            rows.append(Row(segment.last, PackedBatch(b"", missing), intact=False))
        return rows

    def _cut(self, segment: Segment, rows: list[Row]) -> None:
        """The number first, then the rows."""
        events = sum(row.packed.events for row in rows)
        since = min((row.packed.oldest for row in rows if row.packed.oldest), default=0)
        gone = [lost for row in rows for lost in row.packed.losses]
        if events:
            gone.append(self._make_loss(events, "spool", since))
        first = min((row.number for row in rows), default=segment.last)
        before = self._state
        self._change(
            cut=(first, segment.last),
            events=self.events - events,
            losses=join_losses((*before.losses, *gone)),
        )
        try:
            self._directory.write_state(self._state, sync=True)
        except BaseException:
            self._state = replace(before, turn=self._state.turn)
            raise
        self.events -= events
        self.rows -= segment.rows
        self._drop_segment(segment)

    def first(self) -> Row | None:
        """See Store."""
        self._use()
        return self._find_first()

    def _find_first(self) -> Row | None:
        if self._first is None and self.rows:
            with self._translated():
                self._first = self._read_first()
        return None if self._first is None else self._first[1]

    def _read_first(self) -> tuple[Head | None, Row] | None:
        while self._segments:
            segment = self._segments[0]
            head, packed = None, None
            with suppress(FileNotFoundError):
                file = self._open_reader(segment)
                head = find_head(file, segment.at, segment.size)
                while head is not None and self._state.is_gone(head.number):
                    head = find_head(file, head.end, segment.size)
                if head is not None:
                    packed = read_packed(file, head)
            if head is not None:
                blank = PackedBatch(b"", head.events, head.oldest)
                return head, Row(head.number, packed or blank, packed is not None)
            if segment.rows > 0 or segment.events > 0:
                # All that can be read of it has been: what is missing stood in what cannot.
                return None, Row(segment.last, PackedBatch(b"", segment.events), intact=False)
            if len(self._segments) == 1 and self._writer is not None:
                return None
            self._drop_segment(segment)
        return None

    def remove(self, row: Row) -> None:
        """See Store."""
        with suppress(SpoolError):
            self._find_first()
        first, self._first = self._first, None
        if first is None or first[1].number != row.number:
            self._forget(row)
            return
        head, segment = first[0], self._segments[0]
        done = 1 if head is not None else segment.rows
        segment.rows -= done
        segment.events -= row.packed.events
        segment.at = segment.size if head is None else head.end
        self.rows -= done
        self.events -= row.packed.events
        losses = self._state.losses
        if not row.intact:
            lost = self._make_loss(row.packed.events, "damaged", row.packed.oldest)
            losses = join_losses((*losses, *row.packed.losses, *([lost] if row.packed.events else ())))
        self._change(done=max(self._state.done, row.number), events=self.events, losses=losses)
        with self._translated():
            if not row.intact and not segment.is_kept:
                segment.is_kept = True
                with suppress(OSError):
                    self._directory.keep(segment.path, copy=True)
            self._directory.write_state(self._state, sync=not row.intact)
            self._give_back()

    def _forget(self, row: Row) -> None:
        """It was delivered from memory, and cannot be read any more: it is none of those that are missing."""
        if self._segments and row.number > self._state.done:
            self._segments[0].events -= row.packed.events
            self.events -= row.packed.events
            self._change(done=row.number, events=self.events)

    def _give_back(self) -> None:
        """The disk of what is done with."""
        while self._segments and not self._segments[0].rows:
            segment = self._segments[0]
            is_last = len(self._segments) == 1
            if is_last and self._writer is not None and segment.size <= SHRINK_ABOVE:
                return
            self._directory.write_state(self._state, sync=True)
            self._drop_segment(segment)

    def note(self, losses: Sequence[Lost]) -> None:
        """See Store."""
        if losses:
            self._use()
            self._change(losses=join_losses((*self._state.losses, *losses)))
            with self._translated():
                self._directory.write_state(self._state, sync=True)

    # ---- files ----------------------------------------------------------------------------------------

    def _use(self) -> None:
        if not self._directory.is_open:
            try:
                self._open()
            except ConfigError as error:  # it was right when the daemon started
                raise SpoolError(error.message) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                self._disconnect()  # the directory is gone: the next use makes it anew
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> SpoolError:
        return SpoolError(f"the spool {self._path}: {error.strerror}")

    def _change(self, **changes: object) -> None:
        self._state = replace(self._state, turn=self._state.turn + 1, **changes)  # type: ignore[arg-type]

    def _open_reader(self, segment: Segment) -> int:
        if self._reader is not None and self._reader[0] == segment.path:
            return self._reader[1]
        self._close_reader()
        file = os.open(segment.path, os.O_RDONLY | SAFE)
        self._reader = (segment.path, file)
        return file

    def _drop_segment(self, segment: Segment) -> None:
        if segment is self._segments[0]:
            self._close_reader()
            self._first = None
        if segment is self._segments[-1]:
            self._close_writer()
        self._segments.remove(segment)
        segment.path.unlink(missing_ok=True)

    def set_aside(self) -> str:
        """See Store. All of its events are losses from then on."""
        lost = self.events
        kept = ""
        with self._translated():
            self._disconnect()
            for segment in list(self._segments):
                with suppress(FileNotFoundError):
                    kept = self._directory.keep(segment.path)
            self._segments.clear()
            self.rows = self.events = 0
            loss = [self._make_loss(lost, "damaged")] if lost else []
            self._change(
                done=self._state.next - 1, events=0, losses=join_losses((*self._state.losses, *loss))
            )
            self._directory.write_state(self._state, sync=True)
        return kept

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            os.close(reader[1])

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            os.close(writer)

    def _disconnect(self) -> None:
        self._close_reader()
        self._close_writer()
        self._first = None
        self._directory.close()

    def close(self) -> None:
        """Let another process have it."""
        self._disconnect()
        self._directory.unlock()


def _drop_reported(losses: Losses, reported: Sequence[Lost]) -> Losses:
    """By their kind: a state that is older than the report may hold a smaller number than that."""
    return tuple(lost for lost in losses if not any(is_alike(lost, other) for other in reported))
