"""The bounded queue and the thread before each sink: retries, drops, states and counters live here.

A sink knows how to write what is rendered and how to say why it could not; everything about waiting,
repeating, counting and order is the Outbox's, once for all sinks.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.batch import Batch
from conntrackd.delivery.delays import DelayCounts
from conntrackd.delivery.inlet import Inlet
from conntrackd.delivery.loan import Writer
from conntrackd.delivery.losses import describe_losses
from conntrackd.delivery.sink import (
    Sink,
    SinkFailed,
    SinkRefused,
    SinkRevised,
    SinkState,
    SinkUnavailable,
    Successor,
    describe,
)
from conntrackd.delivery.store import Row, Store
from conntrackd.flow import Lost
from conntrackd.logs import Repeats
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats

logger = logging.getLogger(__name__)

HURRY_SECONDS: Final = 0.1  # how soon a stop sees that it has less time, or is_out() that a relay is over


class Outbox(Inlet):
    """One sink's queue and thread. What the reader does with it: see Inlet."""

    def __init__(
        self,
        sink: Sink,
        *,
        queue: int,
        stats: SinkStats,
        spool: Store | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[str], None] = lambda _: None,
        name: str = "",
        writer: Writer | None = None,
    ) -> None:
        """`queue` is in events. `on_failed` gets the reason when the sink is out for good, in the thread.

        `name`: where the configuration gives the sink another one than that of its kind. `writer`: what
        the thread runs while it has nothing else to do, where the sink is a FileSink.
        """
        super().__init__(sink, queue, stats, spool, clock, name, writer)
        self._backoff = backoff or Backoff()
        self._on_failed = on_failed
        self._thread = threading.Thread(target=self._run, name=f"sink-{self.name}", daemon=True)
        # Guarded by the lock:
        self._error = ""
        self._flush_until = 0  # what count_settled() gives when all has left that flush() found waiting
        self._deadline: float | None = None
        self._abandoned = False  # stop() has taken over what the thread left
        self._moving: Batch | None = None  # between the queue and the disk
        # The thread's own:
        self._retry_at = 0.0
        self._refusals = Repeats(clock)
        self._absences = Repeats(clock)
        self._reported_absence = False

    @property
    def state(self) -> SinkState:
        """What the sink is doing."""
        return self._state

    @property
    def error(self) -> str:
        """The last trouble, in one line, empty for none yet; kept when the sink works again."""
        return self._error or (self._disk.error if self._disk is not None else "")

    @property
    def has_spool(self) -> bool:
        """Whether what cannot be delivered now can wait on disk."""
        return self._disk is not None

    def snapshot(self) -> SinkStats:
        """All counters of one moment, but for what relays that are under way have left for a writer."""
        with self._lock:
            self._count_writer()
            return replace(self._show_counted(), sink_oldest_event_ns=self._get_oldest())

    def count_delays(self) -> DelayCounts:
        """How late events were, as far as the kernel gives their time."""
        with self._lock:
            self._count_writer()
            return self._delays.snapshot()

    def _get_oldest(self) -> int:
        if self._disk is not None and self._stats.sink_events_spooled:
            return self._disk.oldest
        if self._writer_since:  # then nothing is in flight, and what waits is newer
            return self._writer_since
        first = self._in_flight.first if self._in_flight else self._waiting.head
        return first.oldest if first is not None else 0

    def find_oldest(self) -> int | None:
        """The time of the oldest record that is in memory alone, of a sink that is to get it."""
        with self._lock:
            if self.is_out():
                return None
            self._count_writer()
            in_flight = self._in_flight.all if self._in_flight.row is None else ()
            times = [batch.oldest for batch in (self._moving, *in_flight) if batch is not None]
            times += [self._writer_since] if self._writer_since else []
            waiting = self._waiting.find_oldest()
            return min(times if waiting is None else [*times, waiting], default=None)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def enable(self) -> None:
        """Take events again, after disable() or a failure."""
        with self._lock:
            if self.is_out():
                self._state = SinkState.STARTING
                self._retry_at = 0.0
                self._wake()

    def disable(self) -> None:
        """Take no more events. What waits stays on disk where there is a spool, else it is dropped."""
        with self._lock:
            self._state = SinkState.DISABLED
            self._wake()

    def replace(self, sink: Sink, queue: int) -> None:
        """From the next write on another sink of the same kind: what is encoded already goes out by it."""
        with self._lock:
            self._next_sink, self.queue, self.template = sink, queue, sink.template
            self._retry_at = 0.0
            self._wake()

    def reopen(self) -> None:
        """Close and open the sink before the next write: a file that was moved away, a new secret."""
        self.replace(self._next_sink or self._sink, self.queue)

    def flush(self, timeout: float, *, at_once: bool = True) -> bool:
        """Write what waits now, `at_once` even before a retry is due. Whether all of it has left in time."""
        with self._lock:
            self._count_writer()
            waiting = self._stats.sink_events_queued + self._stats.sink_events_spooled
            target = self._stats.count_settled() + waiting
            self._flush_until = max(self._flush_until, target)
            if at_once:
                self._retry_at = 0.0
            self._wake()
            return self._changed.wait_for(lambda: self._stats.count_settled() >= target, timeout)

    def begin_stop(self, deadline: float) -> None:
        """No more puts will come: the thread ends when nothing waits in memory, or at the deadline."""
        with self._lock:
            # Who is in a hurry may say so later.
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            self._retry_at = 0.0
            self._wake()

    def stop(self, deadline: float) -> None:
        """Drain until the deadline (a time of the clock), spool or count the rest. Ends on time."""
        self.begin_stop(deadline)
        while self._thread.is_alive() and (left := (self._deadline or 0.0) - self._clock()) > 0:
            self._thread.join(min(left, HURRY_SECONDS))
        self.begin_stop(deadline)  # which wakes the thread: it is over now
        if self._thread.is_alive():
            self._close_sink()  # a write that waits ends, and says what of it is there
            self._thread.join(HURRY_SECONDS)
        with self._lock:
            self._abandoned = True
            self._part_with_writer()
        self._finish()

    def _finish(self) -> None:
        """The thread is over, or hangs in a write after which it touches nothing more."""
        if dropped := self._clear_memory("shutdown"):
            logger.warning("sink %s: the time to stop is over, dropping %d events", self.name, dropped)
        self._close_sink()
        losses = self._waiting.pop_losses()
        if self._disk is not None:
            self._disk.note(losses)
            self._disk.close()
        elif missed := describe_losses(losses, "shutdown"):
            logger.warning("sink %s: ended before the loss could be reported (%s)", self.name, missed)

    # ---- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_over():
            with self._lock:
                self._changed.wait_for(lambda: not self._is_lent)
            try:
                if (wait := self.step()) is None and self.run_writer():
                    wait = 0.0
            except Exception as error:  # a mistake of ours costs one sink, which says so, and no thread
                self._fail(f"unexpected {describe(error)}")
                wait = 1.0  # and not 0: it may go wrong in the same way again
            with self._lock:
                if self._flush_until:
                    self._changed.notify_all()
                if not self._news and wait != 0 and not self._is_over():
                    self._changed.wait(wait)
        self._close_sink()  # what stop() could not, while a write hung

    def _is_over(self) -> bool:
        """Whether the thread has nothing more to do. What is on disk is delivered after the next start."""
        if self._deadline is None:
            return False
        held = not self.is_out() and (self._waiting or (self._in_flight and self._in_flight.row is None))
        return self._abandoned or not held or self._clock() >= self._deadline

    def step(self) -> float | None:
        """Do one thing that is due. Seconds until the next may be due, 0 for at once, None: when woken.

        The thread is nothing but this in a loop; tests call it with a clock of their own instead.
        """
        # One action a call, the most urgent first. Disabled or failed: free memory, sleep until woken. A
        # new sink replaces the old one between two writes. During a back-off nothing is written, but a batch
        # that is due moves to disk. Else: open, load the next batch, write it; _attempt() turns errors into
        # a state. What is on disk is always older than the queue, and goes first.
        now = self._clock()
        with self._lock:
            self._news = False
        if self.is_out():
            wait = HURRY_SECONDS if self._uncounted else None  # what is dropped could not be shown yet
            self._close_sink()
            self._clear_memory()
            return wait
        if self._next_sink is not None:
            self._close_sink()
            with self._lock:
                old, new, self._next_sink = self._sink, self._next_sink, None
                if isinstance(new, Successor):
                    new.succeed(old)
                self._use(new)
        if now < self._retry_at:
            if self._move_to_disk(now):
                return 0
            # Until the next attempt, or until the next batch has to go to disk.
            ready = None if self._disk is None or self._disk.is_full() else self._find_ready(now)
            return min(self._retry_at - now, ready or math.inf)
        if not self._opened:
            self._attempt(self._open)
            return 0
        if not self._in_flight and not self._load(now):
            return self._find_ready(now) if self._disk is None or not self._disk.rows else self._disk.pause
        self._attempt(self._write)
        return 0

    def run_writer(self) -> bool:
        """Where step() has nothing to do, write what a relay leaves until somebody wakes the thread.

        False where that is not possible. Of the thread, as step().
        """
        with self._lock:
            file, writer = self._file, self._writer
            # While the writer takes anything nothing waits here: _wake() stops it before something does.
            is_idle = self._rests and not (self._reported_absence or self._is_over())
            if file is None or writer is None or not is_idle or not file.can_run_writer():
                return False
            self._rests = False  # what is put would overtake what is left
            writer.start()
        try:
            file.run_writer(writer)
        finally:
            with self._lock:
                writer.stop()
                if not self._abandoned:
                    rests = writer.take_rest()
                    self._count_writer()  # which finds that nothing is left there any more
                    for rest, is_timed in rests:
                        self._in_flight.extend((Batch.of((Rendered(*rest),)),))
                        self._delays.is_timed = is_timed
        return True

    def _find_ready(self, now: float) -> float | None:
        """Seconds until what waits is to be written: 0 when that is now, None when nothing waits."""
        with self._lock:
            head = self._waiting.head
            if head is None:
                self._rests = self._state is SinkState.OK and not self._news and self._disk is None
                return None
            flushing = self._stats.count_settled() < self._flush_until
            if self._deadline is not None or flushing or self._waiting.events >= self._sink.batch_events:
                return 0.0
            return max(0.0, head.came + self._sink.batch_wait - now)

    def _load(self, now: float) -> bool:
        """Get the next thing to write: from disk while there is anything, else from the queue."""
        if self._disk is not None:
            self._disk.report_losses()
        if self._disk is not None and self._disk.rows:
            self._move_to_disk(now)  # what is newer goes behind what is on disk, never before it
            if (found := self._disk.find_first()) is not None:
                with self._lock:
                    self._in_flight.row = found[0]
                    self._in_flight.extend(found[1])
            return found is not None
        if self._find_ready(now) != 0:
            return False
        with self._lock:  # it is never in neither of the two, or a direct write could overtake it
            batch = self._take()
            if batch is not None:
                self._in_flight.extend((batch,))
            return batch is not None

    def _take(self) -> Batch | None:
        """What makes one write. Of streams apart nobody sees between which events a loss was reported."""
        return self._waiting.take(self._sink.batch_events, past_losses=self._sink.template.by_stream)

    def _move_to_disk(self, now: float, *, everything: bool = False) -> bool:
        """Store what was being written, or the next that is ready. False when nothing was or could be."""
        disk, in_flight = self._disk, self._in_flight
        if disk is None or (disk.is_full() and not everything):
            return False
        if in_flight and in_flight.row is None:
            stored = disk.put(in_flight.all)
            if stored:
                with self._lock:
                    in_flight.clear()
            return stored
        if not everything and self._find_ready(now) != 0:
            return False
        with self._lock:
            came = self._waiting.head.came if self._waiting.head is not None else now
            self._moving = batch = self._take()
        if batch is None:
            return False
        stored = disk.put((batch,), in_flight.row)
        with self._lock:
            self._moving = None
            if not stored:
                self._waiting.put_back(batch, came)
        return stored

    def _clear_memory(self, reason: str = "") -> int:
        """To disk with all that can go there; the rest is dropped and counted. Returns their number."""
        while self._move_to_disk(self._clock(), everything=True):
            pass
        with self._lock:
            if not reason and (self._uncounted or not self.is_out()):  # or somebody has enabled it just now
                return 0
            dropped, oldest = self._stats.sink_events_queued, self._get_oldest()
            self._stats.sink_events_queued = self._writer_since = 0
            self._flush_until = 0  # or batches would not wait for others until as many have left
            self._waiting.clear(self._clock())
            if self._in_flight.row is None:
                for batch in self._in_flight.all:
                    if batch.lost is not None:
                        self._append_lost(batch.lost)
                self._in_flight.clear()
            if dropped:
                self._drop(dropped, oldest, time.time_ns(), reason or self._state.value)
            return dropped

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SinkRevised as revision:
            if self._in_flight and not self._in_flight.first.events:  # a loss, of which there are no parts
                self._refuse(SinkRefused(revision.reason))
            else:
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
        # Where nothing waits it works as far as anybody knows, unless it refused what came before.
        if not (self._in_flight or self._waiting or self._stats.sink_events_spooled):
            self._recover(SinkState.REFUSED if self._state is SinkState.REFUSED else SinkState.OK)

    def _write(self) -> None:
        for batch in self._in_flight.all[:1]:
            self._settle(refused=0, written=self._sink.write(batch.render(self._sink.template)))
            self._recover(delivered=True)

    def _settle(self, *, refused: int, written: int = 0) -> None:
        """The first batch is done with: all of it was delivered, but for what was refused."""
        with self._lock:
            if self._abandoned or not self._in_flight:
                return
            batch = self._in_flight.first
            done = self._in_flight.settle(refused)
            self._report_refused(batch, refused, accepted=written > 0 or batch.events > refused)
            self._stats.sink_batches_delivered_total += 1 if written else 0
            self._stats.sink_bytes_total += written
        self._remove(done)

    def _remove(self, row: Row | None) -> None:
        if row is not None and self._disk is not None:
            self._disk.remove(row)

    def _report_refused(self, batch: Batch, events: int, *, accepted: bool) -> None:
        """As soon as something is accepted: where it was refused, the record would have been refused too."""
        if events:
            self._waiting.hold_lost(Lost(events, batch.oldest, time.time_ns(), self.name, "refused"))
        for lost in self._waiting.pop_held() if accepted else ():
            self._append_lost(lost)

    def _recover(self, state: SinkState = SinkState.OK, *, delivered: bool = False) -> None:
        """The receiver answers. Whether it works again shows in a delivery alone."""
        self._backoff.reset()
        with self._lock:
            if not self.is_out():
                self._state = state
        if delivered and self._reported_absence:
            self._reported_absence = False
            logger.info("sink %s: works again", self.name)

    def _revise(self, revision: SinkRevised) -> None:
        """Write the parts or the rest instead; events that are in none of them have been refused."""
        with self._lock:
            if self._abandoned or not self._in_flight:
                return
            batch, done = self._in_flight.first, None
            if revision.parts is None:
                refused, done = revision.refused, self._in_flight.advance(revision.written, revision.refused)
            else:
                refused = self._in_flight.revise(revision.parts, revision.written)
            self._report_refused(batch, refused, accepted=revision.written > 0)
        self._remove(done)
        if revision.written:
            self._recover(delivered=True)
        if refused:
            self._complain(revision.reason, refused)

    def _refuse(self, refusal: SinkRefused) -> None:
        if not self._in_flight:  # it was the opening that went wrong, and nothing has been lost by that
            self._retry(SinkUnavailable(refusal.reason))
            return
        batch = self._in_flight.first
        refused = batch.events if refusal.events is None else min(refusal.events, batch.events)
        self._error = refusal.reason
        self._complain(refusal.reason, refused)
        if batch.lost is not None:  # to be reported again, with the time at which it is
            with self._lock:
                self._waiting.hold_lost(replace(batch.lost, until=time.time_ns()))
        self._settle(refused=refused)
        is_whole = refused == batch.events
        self._recover(SinkState.REFUSED if is_whole else SinkState.OK, delivered=not is_whole)

    def _retry(self, absence: SinkUnavailable) -> None:
        self._close_sink()
        delay = self._backoff.next_delay(absence.retry_after)
        with self._lock:
            if self._abandoned:
                return
            self._retry_at = self._clock() + delay
            self._error = absence.reason
            self._stats.sink_retries_total += 1 if self._in_flight else 0
            done = self._in_flight.advance(absence.written) if self._in_flight else None
            if self._state is not SinkState.DISABLED:
                self._state = SinkState.RETRYING
            is_over = self._is_over()  # stop() may have closed it
        self._remove(done)
        if not is_over:
            words = (self.name, absence.reason, max(0.1, delay))
            self._reported_absence |= self._absences.warn(logger, "sink %s: %s, retrying in %.1f s", *words)

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
