"""The disk side of an outbox: what becomes of the spool's troubles, and of the counters with them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Condition
from typing import Final

from conntrackd.delivery.backoff import Repeats
from conntrackd.delivery.batch import Batch, is_packed, pack_batch, unpack_batch
from conntrackd.delivery.old_spool import read_old_payload
from conntrackd.delivery.spool import Parcel, Row, SpoolDamagedError, SpoolError, Store
from conntrackd.flow import Lost
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
        lock: Condition,
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
        self._lost: Lost | None = None
        self._write_at = 0.0
        self._read_at = 0.0
        self._failures = 0
        stats.sink_events_restored_total += store.events
        stats.sink_events_spooled += store.events
        if store.damage:
            stats.sink_spool_damaged_total += 1
            self.error = store.damage
            logger.error("sink %s: %s", name, store.damage)

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

    def put(self, batches: tuple[Batch, ...], held: Row | None = None, rest: int = 0) -> bool:
        """Batches that were queued, to disk: all of them or none.

        `held` is the row that is being written, `rest` the events of it that still are: it never has to go
        for newer ones. When the spool proves to be damaged, they are counted as queued from then on.
        """
        parcels = [Parcel(pack_batch(batch), batch.events, batch.oldest) for batch in batches]
        try:
            gone = self._store.append(parcels, keep=None if held is None else held.number)
        except SpoolDamagedError as error:
            # Not tried again at once: the caller first has to see that what it holds is on disk no more.
            self._set_aside(error, rest)
            return False
        except SpoolError as error:
            self._write_at = self._clock() + PAUSE
            self._note(error)
            return False
        events = sum(parcel.events for parcel in parcels)
        dropped = sum(row.parcel.events for row in gone)
        with self._lock:
            self._stats.sink_events_queued -= events
            self._stats.sink_events_spooled += events - dropped
            self._stats.sink_events_dropped_spool_total += dropped
            self.oldest = self._store.oldest
        if dropped:
            self._note_lost(Lost(dropped, gone[0].parcel.oldest, self.oldest, self._name, "spool"))
        return True

    def _note_lost(self, lost: Lost) -> None:
        before = self._lost
        if before is not None:
            lost = replace(lost, count=lost.count + before.count, since=min(lost.since, before.since))
        self._lost = lost

    def take_lost(self) -> Lost | None:
        """What had to go since the last call. To be told when the sink works: on disk it would go as well."""
        lost, self._lost = self._lost, None
        return lost

    def find_first(self) -> tuple[Row, tuple[Batch, ...]] | None:
        """The oldest row. None when there is none, none can be read now, or none can be read any more."""
        if self.pause:
            return None
        try:
            while (row := self._store.first()) is not None:
                self._failures = 0
                if row.intact and (batches := _unpack(row.parcel)):
                    return row, batches
                self._drop_damaged(row)
        except SpoolDamagedError as error:
            self._set_aside(error, 0)
        except SpoolError as error:
            self._failures += 1
            if self._failures < MAX_FAILURES:
                self._read_at = self._clock() + PAUSE
                self._note(error)
            else:
                self._set_aside(error, 0)
        return None

    def _drop_damaged(self, row: Row) -> None:
        with self._lock:
            lost = min(row.parcel.events, self._stats.sink_events_spooled)
            self._stats.sink_events_spooled -= lost
            self._stats.sink_events_dropped_damaged_total += lost
        logger.error(
            "sink %s: the spool gives back other bytes than it got, dropping %d events", self._name, lost
        )
        self._store.remove(row)

    def remove(self, row: Row) -> None:
        """The row has been delivered or refused; its events are not counted as spooled any more."""
        try:
            self._store.remove(row)
        except SpoolDamagedError as error:
            self._set_aside(error, 0)
        except SpoolError as error:
            self._note(error)
        with self._lock:
            self.oldest = self._store.oldest

    def holds(self, row: Row) -> bool:
        """Whether the row is still on disk."""
        return self._store.holds(row.number)

    def close(self) -> None:
        """Lets another process have it."""
        self._store.close()

    def _set_aside(self, error: SpoolError, rest: int) -> None:
        with self._lock:
            lost = self._stats.sink_events_spooled - rest
            self._stats.sink_events_spooled = 0
            self._stats.sink_events_queued += rest
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


def _unpack(parcel: Parcel) -> tuple[Batch, ...]:
    """What was put, or what a version before this one did; nothing where it is neither."""
    payload = parcel.payload
    try:
        is_ours = is_packed(payload)
        batches = (unpack_batch(payload),) if is_ours else read_old_payload(payload, parcel.oldest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return ()
    return batches if sum(batch.events for batch in batches) == parcel.events else ()
