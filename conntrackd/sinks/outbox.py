"""The bounded queue and the thread before each sink: retries, drops, states and counters live here.

A sink knows how to write a payload and how to say why it could not; everything about waiting, repeating,
counting and order is the Outbox's, once for all sinks.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from conntrackd.flow import Flow, Lost, Piece
from conntrackd.sinks.backoff import Backoff, Repeats
from conntrackd.sinks.encode import Form
from conntrackd.sinks.losses import describe_losses
from conntrackd.sinks.parcels import Parcels
from conntrackd.sinks.queue import Queue, Waiting
from conntrackd.sinks.shelf import Shelf
from conntrackd.sinks.sink import (
    Parcel,
    Sink,
    SinkFailed,
    SinkRefused,
    SinkRevised,
    SinkState,
    SinkUnavailable,
    describe,
)
from conntrackd.sinks.spool import Store
from conntrackd.stats import SinkStats

logger = logging.getLogger(__name__)

P = TypeVar("P")


class Outbox(Generic[P]):
    """One sink's queue and thread. put() and tell_lost() never wait for the sink and never fail.

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
        on_failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`queue` is in events. `on_failed` gets the reason when the sink is out for good, in the thread."""
        self.name = sink.name
        self.queue = queue
        self._sink = sink
        self._stats = stats
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._on_failed = on_failed
        self._thread = threading.Thread(target=self._run, name=f"sink-{self.name}", daemon=True)
        self._lock = threading.Condition()
        # Guarded by the lock:
        self._state = SinkState.STARTING
        self._error = ""
        self._waiting = Queue()
        self._parcels: Parcels[P] = Parcels(stats)
        self._flush_until = 0  # what count_settled() gives when all has left that flush() found waiting
        self._news = False  # something happened that the thread has to look at before it sleeps
        self._next_sink: Sink[P] | None = None
        self._deadline: float | None = None
        self._abandoned = False  # stop() has taken over what the thread left
        # The thread's own:
        self._shelf = None if spool is None else Shelf(spool, sink.name, stats, self._lock, clock=clock)
        self._opened = False
        self._retry_at = 0.0
        self._refusals = Repeats(clock)
        self._absences = Repeats(clock)
        self._told_absence = False

    # ---- for the reader -------------------------------------------------------------------------------

    def find_form(self, events: int) -> Form | None:
        """How the sink writes events, if it has a form and there is room for so many."""
        has_room = not self.is_out() and self._stats.sink_events_queued + events <= self.queue
        return (self._next_sink or self._sink).form if has_room else None

    def put(self, flows: list[Flow], piece: Piece | None = None) -> None:
        """Takes the batch, or as much of it as there is room for. The list is kept: do not change it.

        `piece` is the batch in the sink's form, kept in its place when there is room for all of it.
        """
        if not flows:
            return
        events, stats = len(flows), self._stats
        with self._lock:
            stats.sink_events_taken_total += events
            if self.is_out():
                self._drop(events, flows[0].time, flows[-1].time, self._state.value)
                return
            room = max(0, self.queue - stats.sink_events_queued)
            if room >= events:
                self._append(flows if piece is None else [piece], events)
                return
            if room:
                self._append(flows[:room], room)
            self._drop(events - room, flows[room].time, flows[-1].time, "queue")

    def tell_lost(self, lost: Lost) -> None:
        """A LOST record for the sink, behind all that waits now. Takes no room in the queue."""
        with self._lock:
            self._append_lost(lost)

    def has_room(self, events: int) -> bool:
        """Whether so many could be put now; also where it makes no sense to wait for that."""
        queued = self._stats.sink_events_queued
        return queued == 0 or queued + events <= self.queue or self.is_out()

    def is_out(self) -> bool:
        """Whether the sink takes nothing until somebody enables it."""
        return self._state in (SinkState.DISABLED, SinkState.FAILED)

    def _drop(self, events: int, since: int, until: int, reason: str) -> None:
        self._stats.count_dropped(reason, events)
        self._append_lost(Lost(events, since, until, self.name, reason))

    def _append(self, batch: Sequence[Flow | Piece], events: int) -> None:
        before, wanted = self._waiting.events, self._sink.batch_events
        if not self._waiting or before < wanted <= before + events:
            self._wake()
        self._waiting.append(batch, events, self._clock())
        self._stats.sink_events_queued += events

    def _append_lost(self, lost: Lost) -> None:
        if not self._waiting and not self.is_out():  # a sink that is out is told when it is in again
            self._wake()
        self._waiting.append_lost(lost, self._clock())

    def _wake(self) -> None:
        self._news = True
        self._lock.notify_all()

    @property
    def state(self) -> SinkState:
        """What the sink is doing."""
        return self._state

    @property
    def error(self) -> str:
        """The last trouble, in one line, empty for none yet; kept when the sink works again."""
        return self._error or (self._shelf.error if self._shelf is not None else "")

    def snapshot(self) -> SinkStats:
        """All counters of one moment."""
        with self._lock:
            return replace(self._stats, sink_oldest_event_ns=self._find_oldest())

    def _find_oldest(self) -> int:
        if self._shelf is not None and self._stats.sink_events_spooled:
            return self._shelf.oldest
        first = self._parcels.first if self._parcels else self._waiting.head
        return first.oldest if first is not None else 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def enable(self) -> None:
        """Takes events again, after disable() or a failure."""
        with self._lock:
            if self.is_out():
                self._state = SinkState.STARTING
                self._retry_at = 0.0
                self._wake()

    def disable(self) -> None:
        """Takes no more events. What waits stays on disk where there is a spool, else it is dropped."""
        with self._lock:
            self._state = SinkState.DISABLED
            self._wake()

    def replace(self, sink: Sink[P], queue: int) -> None:
        """From the next write on another sink of the same kind: what is encoded already goes out by it."""
        with self._lock:
            self._next_sink, self.queue = sink, queue
            self._retry_at = 0.0
            self._wake()

    def reopen(self) -> None:
        """Closes and opens the sink before the next write: a file that was moved away, a new secret."""
        self.replace(self._next_sink or self._sink, self.queue)

    def flush(self, timeout: float) -> bool:
        """Tries now, without waiting for more to join. True when all that waits now has left in time."""
        with self._lock:
            waiting = self._stats.sink_events_queued + self._stats.sink_events_spooled
            target = self._stats.count_settled() + waiting
            self._flush_until = max(self._flush_until, target)
            self._retry_at = 0.0
            self._wake()
            return self._lock.wait_for(lambda: self._stats.count_settled() >= target, timeout)

    def begin_stop(self, deadline: float) -> None:
        """No more puts will come: the thread ends when nothing waits in memory, or at the deadline."""
        with self._lock:
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            self._retry_at = 0.0
            self._wake()

    def hurry(self) -> None:
        """The time to stop is over now: a write that hangs ends, what waits goes to disk or is counted."""
        self.begin_stop(self._clock())
        self._close_sink()

    def stop(self, deadline: float) -> None:
        """Drains until the deadline (a time of the clock), spools or counts the rest. Ends on time."""
        self.begin_stop(deadline)
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - self._clock()))
        with self._lock:
            self._abandoned = True
            self._wake()
        if self._thread.is_alive():
            self._close_sink()
            self._thread.join(0.1)
        self._finish()

    def _finish(self) -> None:
        """The thread is over, or hangs in a write after which it touches nothing more."""
        if dropped := self._clear_memory("shutdown"):
            logger.warning("sink %s: the time to stop is over, dropping %d events", self.name, dropped)
        self._close_sink()
        losses = self._waiting.take_losses()
        if self._shelf is not None:
            self._shelf.note(losses)
            self._shelf.close()
        elif untold := describe_losses(losses, "shutdown"):
            logger.warning("sink %s: ended before it could be told what was lost (%s)", self.name, untold)

    # ---- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_over():
            with self._lock:
                self._news = False
            try:
                wait = self.step()
            except Exception as error:  # a mistake of ours costs one sink, which says so, and no thread
                self._fail(f"unexpected {describe(error)}")
                wait = 1.0  # and not 0: it may go wrong in the same way again
            with self._lock:
                if self._flush_until:
                    self._lock.notify_all()
                if not self._news and wait != 0 and not self._is_over():
                    self._lock.wait(wait)

    def _is_over(self) -> bool:
        """Whether the thread has nothing more to do. What is on disk is delivered after the next start."""
        if self._deadline is None:
            return False
        held = not self.is_out() and (self._waiting or (self._parcels and self._parcels.row is None))
        return self._abandoned or not held or self._clock() >= self._deadline

    def step(self) -> float | None:
        """Does one thing that is due. Seconds until the next may be due, 0 for at once, None: when woken.

        The thread is nothing but this in a loop; tests call it with a clock of their own instead.
        """
        now = self._clock()
        if self.is_out():
            self._close_sink()
            self._clear_memory()
            return None
        if self._next_sink is not None:
            self._close_sink()
            self._sink, self._next_sink = self._next_sink, None
        if now < self._retry_at:
            if self._move_to_disk(now):
                return 0
            # Until the next attempt, or until the next batch has to go to disk.
            ready = None if self._shelf is None or self._shelf.is_full() else self._find_ready(now)
            return min(self._retry_at - now, ready or math.inf)
        if not self._opened:
            self._attempt(self._open)
            return 0
        if not self._parcels and not self._load(now):
            return self._find_ready(now) if self._shelf is None or not self._shelf.rows else self._shelf.pause
        self._attempt(self._write)
        return 0

    def _find_ready(self, now: float) -> float | None:
        """Seconds until what waits is to be written: 0 when that is now, None when nothing waits."""
        with self._lock:
            head = self._waiting.head
            if head is None:
                return None
            flushing = self._stats.count_settled() < self._flush_until
            if self._deadline is not None or flushing or self._waiting.events >= self._sink.batch_events:
                return 0.0
            return max(0.0, head.came + self._sink.batch_wait - now)

    def _take(self, now: float, *, everything: bool = False) -> Waiting | None:
        """Batches that waited long enough, joined to one; they stay counted as queued."""
        if not everything and self._find_ready(now) != 0:
            return None
        with self._lock:
            return self._waiting.take(self._sink.batch_events)

    def _load(self, now: float) -> bool:
        """Gets the next thing to write: from disk while there is anything, else from the queue."""
        if self._shelf is not None:
            self._shelf.report_losses(lambda losses: self._sink.encode([*losses]))
        if self._shelf is not None and self._shelf.rows:
            self._move_to_disk(now)  # what is newer goes behind what is on disk, never before it
            row = self._shelf.find_first()
            if row is not None:
                with self._lock:
                    self._parcels.row = row
                    self._parcels.append(row.parcel)
            return row is not None
        taken = self._take(now)
        if taken is None:
            return False
        parcel = self._encode(taken)
        if parcel is not None:
            with self._lock:
                self._parcels.append(parcel)
        return True

    def _encode(self, taken: Waiting) -> Parcel[P] | None:
        """None when it cannot be encoded, which is a mistake of ours: counted as refused."""
        try:
            reports = tuple(record for record in taken.batch if isinstance(record, Lost))
            return Parcel(self._sink.encode(taken.batch), taken.events, taken.oldest, reports)
        except Exception as error:  # one record that nobody thought of must not end the thread
            self._complain(f"cannot encode a batch: {describe(error)}", taken.events)
            with self._lock:
                self._stats.sink_events_queued -= taken.events
                self._stats.sink_events_dropped_refused_total += taken.events
                losses = [record for record in taken.batch if isinstance(record, Lost)]
                self._tell_refused(taken.oldest, taken.events, losses, accepted=False)
            return None

    def _move_to_disk(self, now: float, *, everything: bool = False) -> bool:
        """Stores what was being written, or the next that is ready. False when nothing was or could be."""
        shelf = self._shelf
        if shelf is None or (shelf.is_full() and not everything):
            return False
        parcels = self._parcels
        if parcels and parcels.row is None:
            stored = shelf.put(parcels.all)
            if stored:
                with self._lock:
                    parcels.clear()
            return stored
        taken = self._take(now, everything=everything)
        if taken is None:
            return False
        parcel = self._encode(taken)
        if parcel is None:
            return True
        stored = shelf.put((parcel,), parcels.row)
        with self._lock:
            if not stored:
                self._waiting.put_back(taken)
        return stored

    def _clear_memory(self, reason: str = "") -> int:
        """To disk with all that can go there; the rest is dropped and counted. Returns their number."""
        while self._move_to_disk(self._clock(), everything=True):
            pass
        with self._lock:
            if not reason and not self.is_out():  # somebody has enabled it just now
                return 0
            dropped, oldest = self._stats.sink_events_queued, self._find_oldest()
            self._stats.sink_events_queued = 0
            self._waiting.clear(self._clock())
            if self._parcels.row is None:
                for lost in self._parcels.clear():
                    self._append_lost(lost)
            if dropped:
                self._drop(dropped, oldest, time.time_ns(), reason or self._state.value)
            return dropped

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
            self._retry(SinkUnavailable(describe(error)))
        except Exception as error:  # a mistake in a sink costs the batch and not the thread
            self._close_sink()
            self._refuse(SinkRefused(f"unexpected {describe(error)}"))

    def _open(self) -> None:
        self._sink.open()
        self._opened = True
        if not self._parcels and not self._waiting:
            self._recover()

    def _write(self) -> None:
        if self._parcels:
            self._settle(refused=0, written=self._sink.write(self._parcels.first.payload))
            self._recover()

    def _settle(self, *, refused: int, written: int, losses: Sequence[Lost] = ()) -> None:
        """The first parcel is done with: all of it was delivered, but for what was refused."""
        with self._lock:
            if self._abandoned or not self._parcels:
                return
            parcel, done = self._parcels.settle(refused)
            self._tell_refused(
                parcel.oldest, refused, losses, accepted=written > 0 or parcel.events > refused
            )
            self._stats.sink_batches_delivered_total += 1 if written else 0
            self._stats.sink_bytes_total += written
        if done is not None and self._shelf is not None:
            self._shelf.remove(done)

    def _tell_refused(self, oldest: int, events: int, losses: Sequence[Lost], *, accepted: bool) -> None:
        """Where it was refused too, as soon as something is accepted there; and the losses with it, again."""
        refused = [Lost(events, oldest, 0, self.name, "refused")] if events else []
        for lost in (*losses, *refused):
            self._waiting.hold_lost(replace(lost, until=time.time_ns()))
        for lost in self._waiting.take_held() if accepted else ():
            self._append_lost(lost)

    def _recover(self) -> None:
        self._backoff.reset()
        with self._lock:
            if self._state in (SinkState.STARTING, SinkState.RETRYING):
                self._state = SinkState.OK
        if self._told_absence:
            self._told_absence = False
            logger.info("sink %s: works again", self.name)

    def _revise(self, revision: SinkRevised) -> None:
        """Writes the parts instead; events that are in none of them have been refused."""
        with self._lock:
            if self._abandoned or not self._parcels:
                return
            whole, missing = self._parcels.revise(revision)
            self._tell_refused(whole.oldest, missing, (), accepted=revision.delivered > 0)
        if missing:
            self._complain(revision.reason, missing)

    def _refuse(self, refusal: SinkRefused) -> None:
        if not self._parcels:  # it was the opening that went wrong, and nothing has been lost by that
            self._retry(SinkUnavailable(refusal.reason))
            return
        events = self._parcels.first.events
        refused = events if refusal.events is None else min(refusal.events, events)
        self._error = refusal.reason
        self._complain(refusal.reason, refused)
        self._settle(refused=refused, written=0, losses=refusal.losses)
        self._recover()

    def _retry(self, absence: SinkUnavailable) -> None:
        self._close_sink()
        delay = self._backoff.next_delay(absence.retry_after)
        with self._lock:
            if self._abandoned:
                return
            self._retry_at = self._clock() + delay
            self._error = absence.reason
            self._stats.sink_retries_total += 1 if self._parcels else 0
            if absence.rest is not None and self._parcels:
                self._parcels.shorten(absence.rest)
            if self._state is not SinkState.DISABLED:
                self._state = SinkState.RETRYING
        text = "sink %s: %s, retrying in %.1f s"
        self._told_absence |= self._absences.warn(logger, text, self.name, absence.reason, delay)

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._error, self._state = reason, SinkState.FAILED
        self._on_failed(reason)

    def _complain(self, reason: str, events: int) -> None:
        self._refusals.warn(logger, "sink %s: %s, dropping %d events", self.name, reason, events)

    def _close_sink(self) -> None:
        self._opened = False
        try:
            self._sink.close()
        except Exception as error:  # whatever it is, there is nothing left to lose
            logger.debug("sink %s: closing: %s", self.name, describe(error))
