"""The disk side of an outbox: what becomes of the spool's troubles, and of the counters with them."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from conntrackd.delivery.batch import Batch, is_packed, pack_batch, unpack_batch
from conntrackd.delivery.old_spool import read_old_payload
from conntrackd.delivery.store import PackedBatch, Row, SpoolError, Store
from conntrackd.flow import Lost
from conntrackd.logs import Repeats
from conntrackd.stats import SinkStats

logger = logging.getLogger(__name__)

# A disk that did not take a batch is tried again after this long; until then the queue in memory must do.
PAUSE: Final = 10.0
# As often a disk may refuse to give back the oldest row, before newer events do not wait for it any longer.
MAX_FAILURES: Final = 30


class DiskBuffer:
    """A spool whose methods never raise. Used by the outbox's thread; counters change under its lock."""

    def __init__(
        self,
        store: Store,
        name: str,
        stats: SinkStats,
        lock: AbstractContextManager[object],
        *,
        clock: Callable[[], float],
    ) -> None:
        self.oldest = store.oldest
        self.error = ""
        self._name = name
        self._complaints = Repeats(clock)
        self._store = store
        self._stats = stats
        self._lock = lock
        self._clock = clock
        self._write_at = 0.0
        self._read_at = 0.0
        self._failures = 0
        self._is_counted = False
        self._count_restored()

    def _count_restored(self) -> None:
        """What an earlier process left, as soon as the disk lets it be seen."""
        store, stats = self._store, self._stats
        if self._is_counted or store.restored is None:
            return
        with self._lock:
            self._is_counted = True
            stats.sink_events_restored_total += store.restored + store.missing
            stats.sink_events_spooled += store.restored
            stats.sink_events_dropped_damaged_total += store.missing
            stats.sink_spool_damaged_total += bool(store.damage)
            self.error = store.damage
        if store.damage:
            logger.error("sink %s: %s", self._name, store.damage)

    @property
    def rows(self) -> int:
        """Batches on disk."""
        return self._store.rows

    def is_full(self) -> bool:
        """Whether the disk did not take the last batch, and is not asked again yet."""
        return self._clock() < self._write_at

    @property
    def pause(self) -> float:
        """Seconds until the disk is asked again for the oldest row, which it would not give."""
        return max(0.0, self._read_at - self._clock())

    def put(self, batches: tuple[Batch, ...], held: Row | None = None, *, is_report: bool = False) -> bool:
        """Batches that were queued, to disk: all of them or none.

        `held` is the row that is being written: it never has to go for newer ones.
        """
        packed = [_pack(batch) for batch in batches]
        keep = None if held is None else held.number
        try:
            gone = self._store.append(packed, keep=keep, is_report=is_report)
        except SpoolError as error:
            self._write_at = self._clock() + PAUSE
            self._note(error)
            return False
        self._count_restored()
        events = sum(batch.events for batch in batches)
        dropped = sum(row.packed.events for row in gone)
        with self._lock:
            self._stats.sink_events_queued -= events
            self._stats.sink_events_spooled += events - dropped
            self._stats.sink_events_dropped_spool_total += dropped
            self.oldest = self._store.oldest
        return True

    def report_losses(self) -> None:
        """What is gone, as rows behind all others: the number on disk is one or the other at any time."""
        if self.is_full():
            return
        if not self._is_counted:
            self._open()
        losses = self._store.losses
        if losses:
            self.put(tuple(map(Batch.of_loss, losses)), is_report=True)

    def _open(self) -> None:
        """Again: the disk did not let it at the start."""
        try:
            self._store.first()
            self._count_restored()
        except SpoolError as error:
            self._write_at = self._clock() + PAUSE
            self._note(error)

    def note(self, losses: Sequence[Lost]) -> None:
        """Store losses for the next process to report: a number fits where a row does not."""
        try:
            self._store.note(losses)
        except SpoolError as error:
            self._note(error)

    def find_first(self) -> tuple[Row, tuple[Batch, ...]] | None:
        """The oldest row. None when there is none, none can be read now, or none can be read any more."""
        if self.pause:
            return None
        try:
            while (row := self._store.first()) is not None:
                self._failures = 0
                if row.intact and (batches := _unpack(row.packed)):
                    return row, batches
                self._drop_damaged(row)
        except SpoolError as error:
            self._failures += 1
            if self._failures < MAX_FAILURES:
                self._read_at = self._clock() + PAUSE
                self._note(error)
            else:
                self._set_aside(error)
        return None

    def _drop_damaged(self, row: Row) -> None:
        with self._lock:
            lost = min(row.packed.events, self._stats.sink_events_spooled)
            self._stats.sink_events_spooled -= lost
            self._stats.sink_events_dropped_damaged_total += lost
        logger.error(
            "sink %s: the spool returned other bytes than were stored, dropping %d events", self._name, lost
        )
        self._store.remove(replace(row, intact=False))  # also one that is what was stored, and no batch

    def remove(self, row: Row) -> None:
        """The row has been delivered or refused; its events are not counted as spooled any more."""
        try:
            self._store.remove(row)
        except SpoolError as error:
            self._note(error)
        with self._lock:
            self.oldest = self._store.oldest

    def close(self) -> None:
        """Let another process have it."""
        self._store.close()

    def _set_aside(self, error: SpoolError) -> None:
        with self._lock:
            lost = self._stats.sink_events_spooled
            self._stats.sink_events_spooled = 0
            self._stats.sink_events_dropped_damaged_total += lost
            self._stats.sink_spool_damaged_total += 1
            self.error = str(error)
        try:
            path = self._store.set_aside()
            logger.error("sink %s: %s, keeping it as %s with %d events", self._name, error, path, lost)
        except SpoolError as trouble:
            self._note(trouble)

    def _note(self, error: SpoolError) -> None:
        with self._lock:
            self.error = str(error)
            self._stats.sink_spool_errors_total += 1
        self._complaints.warn(logger, "sink %s: %s, trying again in %d s", self._name, error, PAUSE)


def _pack(batch: Batch) -> PackedBatch:
    losses = () if batch.lost is None else (batch.lost,)
    return PackedBatch(pack_batch(batch), batch.events, batch.oldest, losses)


def _unpack(packed: PackedBatch) -> tuple[Batch, ...]:
    """The batch that was packed, by this version or an older one; none where it cannot be read."""
    payload = packed.payload
    try:
        is_ours = is_packed(payload)
        batches = (unpack_batch(payload),) if is_ours else read_old_payload(payload, packed.oldest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return ()
    return batches if sum(batch.events for batch in batches) == packed.events else ()
