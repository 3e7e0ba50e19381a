"""The bounded queue and the thread before each sink: retries, drops, states and counters live here.

A sink knows how to write a payload and how to say why it could not; everything about waiting, repeating,
counting and order is the Outbox's, once for all sinks.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar

from conntrackd.flow import Flow, Lost
from conntrackd.sinks.backoff import Backoff, Repeats
from conntrackd.sinks.queue import Queue, Waiting
from conntrackd.sinks.sink import (
    Parcel,
    Sink,
    SinkFailed,
    SinkRefused,
    SinkRevised,
    SinkState,
    SinkUnavailable,
)
from conntrackd.sinks.spool import Row, SpoolDamagedError, SpoolError, Store
from conntrackd.stats import SinkStats

logger = logging.getLogger(__name__)

P = TypeVar("P")

# A spool that could not be written is tried again after this long; until then the queue in memory must do.
SPOOL_PAUSE: Final = 10.0


class Outbox(Generic[P]):
    """One sink's queue and thread. put() and tell_lost() never block and never fail.

    Counters change only under the lock, which is never held while anything is encoded, written or spooled:
    whenever it is free, restored + taken = delivered + queued + spooled + all the dropped ones.
    """

    def __init__(
        self,
        sink: Sink[P],
        *,
        queue: int,
        stats: SinkStats,
        spool: Store[P] | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[str], None] | None = None,
    ) -> None:
        """`queue` is in events. `on_failed` gets the reason when the sink is out for good, in the thread."""
        self.name = sink.name
        self.queue = queue
        self._sink = sink
        self._stats = stats
        self._spool = spool
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._on_failed = on_failed
        self._refusals = Repeats(clock)
        self._absences = Repeats(clock)
        self._thread = threading.Thread(target=self._run, name=f"sink-{self.name}", daemon=True)
        self._changed = threading.Condition()
        # Guarded by the lock in _changed:
        self._state = SinkState.STARTING
        self._error = ""
        self._waiting = Queue()
        self._parcels: deque[Parcel[P]] = deque()  # what is being written: a batch, or the parts it became
        self._row: Row[P] | None = None  # where the parcels are on disk
        self._spool_oldest = 0
        self._settled = 0  # events that left, whatever became of them
        self._flush_until = 0  # the value of _settled at which nothing waits that waited when flush() came
        self._news = False  # something happened that the thread has to look at before it sleeps
        self._reopen = False
        self._deadline: float | None = None
        self._abandoned = False  # stop() has taken over what the thread left
        # The thread's own:
        self._opened = False
        self._retry_at = 0.0
        self._spool_retry_at = 0.0
        if spool is not None:
            stats.sink_events_restored_total = stats.sink_events_spooled = spool.events
            self._spool_oldest = spool.oldest

    # ---- for the reader -------------------------------------------------------------------------------

    def put(self, batch: list[Flow]) -> None:
        """Takes the batch, or as much of it as there is room for. The list is kept: do not change it."""
        events = len(batch)
        if not events:
            return
        stats = self._stats
        with self._changed:
            stats.sink_events_taken_total += events
            if self._state is SinkState.DISABLED:
                stats.sink_events_dropped_disabled_total += events
                return
            if self._state is SinkState.FAILED:
                stats.sink_events_dropped_failed_total += events
                return
            room = self.queue - stats.sink_events_queued
            if room >= events:
                self._append(batch)
                return
            if room > 0:
                self._append(batch[:room])
            dropped = batch[max(room, 0) :]
            stats.sink_events_dropped_queue_total += len(dropped)
            self._append_lost(Lost(len(dropped), dropped[0].time, dropped[-1].time, self.name, "queue"))

    def tell_lost(self, lost: Lost) -> None:
        """A LOST record for the sink, behind all that waits now. Takes no room in the queue."""
        with self._changed:
            self._append_lost(lost)

    def _append(self, flows: list[Flow]) -> None:
        before, wanted = self._waiting.events, self._sink.batch_events
        if not self._waiting or before < wanted <= before + len(flows):
            self._wake()
        self._waiting.append(flows, self._clock())
        self._stats.sink_events_queued += len(flows)

    def _append_lost(self, lost: Lost) -> None:
        if not self._waiting:
            self._wake()
        self._waiting.append_lost(lost, self._clock())

    def _wake(self) -> None:
        self._news = True
        self._changed.notify_all()

    # ---- for the daemon -------------------------------------------------------------------------------

    @property
    def state(self) -> SinkState:
        """What the sink is doing."""
        return self._state

    @property
    def error(self) -> str:
        """The last trouble, in one line, empty for none yet; kept when the sink works again."""
        return self._error

    def snapshot(self) -> SinkStats:
        """All counters of one moment."""
        with self._changed:
            return replace(self._stats, sink_oldest_event_ns=self._find_oldest())

    def _find_oldest(self) -> int:
        if self._stats.sink_events_spooled:
            return self._spool_oldest
        if self._parcels:
            return self._parcels[0].oldest
        head = self._waiting.head
        return head.oldest if head is not None else 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def enable(self) -> None:
        """Takes events again, after disable() or a failure."""
        with self._changed:
            if self._state in (SinkState.DISABLED, SinkState.FAILED):
                self._state = SinkState.STARTING
                self._retry_at = 0.0
                self._wake()

    def disable(self) -> None:
        """Takes no more events. What waits stays on disk where there is a spool, else it is dropped."""
        with self._changed:
            self._state = SinkState.DISABLED
            self._wake()

    def reopen(self) -> None:
        """Closes and opens the sink before the next write: a file that was moved away, a new secret."""
        with self._changed:
            self._reopen = True
            self._retry_at = 0.0
            self._wake()

    def flush(self, timeout: float) -> bool:
        """Tries now, without waiting for more to join. True when all that waits now has left in time."""
        with self._changed:
            target = self._settled + self._stats.sink_events_queued + self._stats.sink_events_spooled
            self._flush_until = max(self._flush_until, target)
            self._retry_at = 0.0
            self._wake()
            return self._changed.wait_for(lambda: self._settled >= target, timeout)

    def begin_stop(self, deadline: float) -> None:
        """No more puts will come: the thread ends when nothing waits in memory, or at the deadline."""
        with self._changed:
            self._deadline = deadline
            self._retry_at = 0.0
            self._wake()

    def stop(self, deadline: float) -> None:
        """Drains until the deadline (a time of the clock), spools or counts the rest, closes all. Ends on time."""
        self.begin_stop(deadline)
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - self._clock()))
        with self._changed:
            self._abandoned = True
        if self._thread.is_alive():
            self._close_sink()
            self._thread.join(0.1)
        self._finish()

    # ---- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._news = False
            wait = self.step()
            with self._changed:
                if self._is_over():
                    return
                if not self._news and wait != 0:
                    self._changed.wait(wait)

    def _is_over(self) -> bool:
        """Whether the thread has nothing more to do. What is on disk is delivered after the next start."""
        if self._deadline is None:
            return False
        held = self._waiting or (self._parcels and self._row is None)
        return self._abandoned or not held or self._clock() >= self._deadline

    def step(self) -> float | None:
        """Does one thing that is due. Seconds until the next may be due, 0 for at once, None: when woken.

        The thread is nothing but this in a loop; tests call it with a clock of their own instead.
        """
        now = self._clock()
        if self._state in (SinkState.DISABLED, SinkState.FAILED):
            self._park()
            return None
        if self._reopen:
            self._reopen = False
            self._close_sink()
        if now < self._retry_at:
            if self._move_to_spool(now):
                return 0
            ready = self._find_ready(now) if self._spool is not None else None
            return min(self._retry_at - now, ready or self._retry_at - now)
        if not self._opened:
            self._attempt(self._open)
            return 0
        if not self._parcels and not self._load(now):
            return self._find_ready(now)
        self._attempt(self._write)
        return 0

    def _find_ready(self, now: float) -> float | None:
        """Seconds until what waits is to be written: 0 when that is now, None when nothing waits."""
        with self._changed:
            head = self._waiting.head
            if head is None:
                return None
            if self._waiting.events >= self._sink.batch_events or self._is_urgent():
                return 0.0
            return max(0.0, head.came + self._sink.batch_wait - now)

    def _is_urgent(self) -> bool:
        return self._deadline is not None or self._settled < self._flush_until

    def _take(self, now: float, *, everything: bool = False) -> Waiting | None:
        """Batches that waited long enough, joined to one; they stay counted as queued."""
        if not everything and self._find_ready(now) != 0:
            return None
        with self._changed:
            return self._waiting.take(self._sink.batch_events)

    def _load(self, now: float) -> bool:
        """Gets the next thing to write: from disk while there is anything, else from the queue."""
        if self._spool is not None and self._spool.rows:
            self._move_to_spool(now)
            row = self._read_spool()
            if row is not None:
                with self._changed:
                    self._row = row
                    self._parcels.append(row.parcel)
                return True
        taken = self._take(now)
        if taken is None:
            return False
        parcel = self._encode(taken)
        if parcel is not None:
            with self._changed:
                self._parcels.append(parcel)
        return True

    def _encode(self, taken: Waiting) -> Parcel[P] | None:
        """None when it cannot be encoded, which is a mistake of ours: counted as refused."""
        try:
            return Parcel(self._sink.encode(taken.batch), taken.events, taken.oldest)
        except Exception as error:  # one record that nobody thought of must not end the thread
            self._complain(f"cannot encode a batch: {_describe(error)}", taken.events)
            with self._changed:
                self._stats.sink_events_queued -= taken.events
                self._stats.sink_events_dropped_refused_total += taken.events
                self._leave(taken.events)
            return None

    def _leave(self, events: int) -> None:
        self._settled += events
        self._changed.notify_all()

    # ---- attempts -------------------------------------------------------------------------------------

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SinkRevised as revision:
            self._revise(revision)
        except SinkRefused as refusal:
            self._refuse(refusal)
        except SinkUnavailable as absence:
            self._retry(absence)
        except SinkFailed as failure:
            self._fail(failure.reason)
        except OSError as error:
            self._retry(SinkUnavailable(_describe(error)))
        except Exception as error:  # a mistake in a sink costs the batch and not the thread
            self._close_sink()
            self._refuse(SinkRefused(f"unexpected {_describe(error)}"))

    def _open(self) -> None:
        self._sink.open()
        self._opened = True
        if not self._parcels and not self._waiting:
            self._recover()

    def _write(self) -> None:
        if not self._parcels:
            return
        parcel = self._parcels[0]
        written = self._sink.write(parcel.payload)
        self._settle(delivered=parcel.events, written=written)
        self._recover()

    def _settle(self, *, delivered: int, refused: int = 0, written: int = 0) -> None:
        """The first parcel is done with."""
        stats = self._stats
        with self._changed:
            if self._abandoned or not self._parcels:
                return
            self._parcels.popleft()
            self._uncount(delivered + refused)
            stats.sink_events_delivered_total += delivered
            stats.sink_events_dropped_refused_total += refused
            stats.sink_batches_delivered_total += bool(written or delivered)
            stats.sink_bytes_total += written
            self._leave(delivered + refused)
            row = None if self._parcels else self._row
            if row is not None:
                self._row = None
        if row is not None:
            self._remove(row)

    def _uncount(self, events: int) -> None:
        if self._row is None:
            self._stats.sink_events_queued -= events
        else:
            self._stats.sink_events_spooled -= events

    def _recover(self) -> None:
        self._backoff.reset()
        if self._state is SinkState.RETRYING:
            logger.info("sink %s: works again", self.name)
            self._absences.reset()
        with self._changed:
            if self._state in (SinkState.STARTING, SinkState.RETRYING):
                self._state = SinkState.OK

    def _revise(self, revision: SinkRevised) -> None:
        """Writes the parts instead; events that are in none of them have been refused."""
        with self._changed:
            if self._abandoned or not self._parcels:
                return
            whole = self._parcels.popleft()
            self._parcels.extendleft(reversed(revision.parcels))
            missing = whole.events - sum(parcel.events for parcel in revision.parcels)
            self._uncount(missing)
            self._stats.sink_events_dropped_refused_total += missing
            self._leave(missing)
        if missing:
            self._complain(revision.reason, missing)

    def _refuse(self, refusal: SinkRefused) -> None:
        if not self._parcels:
            self._retry(SinkUnavailable(refusal.reason))
            return
        events = self._parcels[0].events
        refused = events if refusal.events is None else min(refusal.events, events)
        self._error = refusal.reason
        self._complain(refusal.reason, refused)
        self._settle(delivered=events - refused, refused=refused)
        self._recover()

    def _complain(self, reason: str, events: int) -> None:
        repeats = self._refusals.find_repeats()
        if repeats is not None:
            more = f" ({repeats} more batches since the last message)" if repeats else ""
            logger.warning("sink %s: %s, dropping %d events%s", self.name, reason, events, more)

    def _retry(self, absence: SinkUnavailable) -> None:
        self._close_sink()
        delay = self._backoff.next_delay(absence.retry_after)
        self._retry_at = self._clock() + delay
        with self._changed:
            if self._abandoned:
                return
            self._error = absence.reason
            self._stats.sink_retries_total += bool(self._parcels)
            if absence.rest is not None and self._parcels:
                done = self._parcels[0].events - absence.rest.events
                self._parcels[0] = absence.rest
                self._uncount(done)
                self._stats.sink_events_delivered_total += done
                self._leave(done)
            if self._state is not SinkState.DISABLED:
                self._state = SinkState.RETRYING
        repeats = self._absences.find_repeats()
        if repeats is not None:
            more = f" ({repeats} more attempts since the last message)" if repeats else ""
            logger.warning("sink %s: %s, retrying in %.1f s%s", self.name, absence.reason, delay, more)

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._error = reason
            self._state = SinkState.FAILED
        logger.error("sink %s: %s, out until it is enabled again", self.name, reason)
        if self._on_failed is not None:
            self._on_failed(reason)

    def _close_sink(self) -> None:
        self._opened = False
        try:
            self._sink.close()
        except Exception as error:  # whatever it is, there is nothing left to lose
            logger.debug("sink %s: closing: %s", self.name, _describe(error))

    def _park(self) -> None:
        """The sink is out: what waits goes to disk, or is dropped by the name of the reason."""
        self._close_sink()
        while self._move_to_spool(self._clock(), everything=True):
            pass
        with self._changed:
            dropped = self._drop_held()
            if self._state is SinkState.FAILED:
                self._stats.sink_events_dropped_failed_total += dropped
            else:
                self._stats.sink_events_dropped_disabled_total += dropped

    def _drop_held(self) -> int:
        """Forgets all that is in memory only. Returns the number of events."""
        dropped = self._stats.sink_events_queued
        self._stats.sink_events_queued = 0
        self._waiting.clear()
        if self._row is None:
            self._parcels.clear()
        self._leave(dropped)
        return dropped

    # ---- the disk -------------------------------------------------------------------------------------

    def _move_to_spool(self, now: float, *, everything: bool = False) -> bool:
        """Stores what was being written, or the next that is ready. False when nothing was or could be."""
        if self._spool is None or (now < self._spool_retry_at and not everything):
            return False
        if self._parcels and self._row is None:
            stored = self._store(tuple(self._parcels))
            if stored:
                with self._changed:
                    self._parcels.clear()
            return stored
        taken = self._take(now, everything=everything)
        if taken is None:
            return False
        parcel = self._encode(taken)
        if parcel is None or self._store((parcel,)):
            return True
        with self._changed:
            self._waiting.put_back(taken)
        return False

    def _store(self, parcels: tuple[Parcel[P], ...]) -> bool:
        assert self._spool is not None
        try:
            try:
                gone = self._spool.append(parcels)
            except SpoolDamagedError as error:
                self._set_aside(error)
                gone = self._spool.append(parcels)
        except SpoolError as error:
            self._note_spool_error(error)
            return False
        events = sum(parcel.events for parcel in parcels)
        with self._changed:
            self._stats.sink_events_queued -= events
            self._stats.sink_events_spooled += events
            self._spool_oldest = self._spool.oldest
            if gone:
                self._drop_rows(gone)
        return True

    def _drop_rows(self, gone: list[Row[P]]) -> None:
        dropped = 0
        for row in gone:
            if self._row is not None and row.number == self._row.number:
                dropped += sum(parcel.events for parcel in self._parcels)
                self._parcels.clear()
                self._row = None
            else:
                dropped += row.parcel.events
        self._stats.sink_events_spooled -= dropped
        self._stats.sink_events_dropped_spool_total += dropped
        self._leave(dropped)
        if dropped:
            self._append_lost(Lost(dropped, gone[0].parcel.oldest, self._spool_oldest, self.name, "spool"))

    def _read_spool(self) -> Row[P] | None:
        assert self._spool is not None
        try:
            return self._spool.first()
        except SpoolDamagedError as error:
            self._set_aside(error)
        return None

    def _remove(self, row: Row[P]) -> None:
        assert self._spool is not None
        try:
            self._spool.remove(row)
        except SpoolDamagedError as error:
            self._set_aside(error)
        with self._changed:
            self._spool_oldest = self._spool.oldest

    def _set_aside(self, error: SpoolDamagedError) -> None:
        assert self._spool is not None
        with self._changed:
            lost = self._stats.sink_events_spooled
            self._stats.sink_events_spooled = 0
            self._stats.sink_events_dropped_damaged_total += lost
            self._stats.sink_spool_damaged_total += 1
            self._leave(lost)
            if self._row is not None:
                self._row = None
                self._parcels.clear()
        logger.error("sink %s: %s, %d events are kept aside", self.name, error, lost)
        try:
            self._spool.set_aside()
        except SpoolError as trouble:
            self._note_spool_error(trouble)

    def _note_spool_error(self, error: SpoolError) -> None:
        self._spool_retry_at = self._clock() + SPOOL_PAUSE
        with self._changed:
            self._error = str(error)
            self._stats.sink_spool_errors_total += 1
        logger.error("sink %s: %s, keeping events in memory", self.name, error)

    # ---- the end --------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Spools or counts what is left. The thread is over, or hangs in a write and touches nothing more."""
        while self._move_to_spool(self._clock(), everything=True):
            pass
        with self._changed:
            dropped = self._drop_held()
            self._stats.sink_events_dropped_shutdown_total += dropped
        if dropped:
            logger.warning("sink %s: the time to stop is over, dropping %d events", self.name, dropped)
        self._close_sink()
        if self._spool is not None:
            self._spool.close()


def _describe(error: Exception) -> str:
    """One line without the arguments of nested errors."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]
