"""The reader's side of an outbox: what it takes, drops, reports, and writes at once where it can."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from conntrackd.delivery.delays import Delays
from conntrackd.delivery.disk_buffer import DiskBuffer
from conntrackd.delivery.loan import Loan, Passed, Writer
from conntrackd.delivery.queue import InFlight, Queue
from conntrackd.delivery.sink import DirectSink, FileSink, Sink, SinkState, describe
from conntrackd.delivery.store import Store
from conntrackd.flow import Lost
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats

logger = logging.getLogger(__name__)

OUT: Final = (SinkState.DISABLED, SinkState.FAILED)


class Inlet:
    """Before one sink's thread. put(), drop() and report() never wait for the sink and never fail.

    Counters change only under the lock, which is never held while anything is spooled, or written in a way
    that may block: whenever it is free, restored + taken = delivered + queued + spooled + dropped ones.
    """

    def __init__(
        self,
        sink: Sink,
        queue: int,
        stats: SinkStats,
        spool: Store | None,
        clock: Callable[[], float],
        name: str = "",
        writer: Writer | None = None,
    ) -> None:
        self.name = name or sink.name
        self.queue = queue
        self.template = sink.template
        """How events are to be rendered: as the sink in force writes them, or the one to come."""
        self._stats = stats
        self._clock = clock
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # Guarded by the lock:
        self._delays = Delays()
        self._state = SinkState.STARTING
        self._waiting = Queue()
        self._in_flight = InFlight(stats, self._delays)
        self._news = False  # something happened that the thread has to look at before it sleeps
        self._rests = False  # nothing is under way that a direct write could overtake or come between
        self._is_lent = False  # the sink is the reader's
        self._next_sink: Sink | None = None
        self._use(sink)
        self._writer = writer
        self._writer_since = 0  # time of the first record that the writer has, 0 for none
        self._uncounted = 0  # events of relays that are under way, which have left them for the writer
        self._opened = False
        # The thread's own:
        self._disk = None if spool is None else DiskBuffer(spool, self.name, stats, self._lock, clock=clock)

    def _use(self, sink: Sink) -> None:
        self._sink = sink
        self._direct = sink if isinstance(sink, DirectSink) else None
        self._file = sink if isinstance(sink, FileSink) else None

    @property
    def batch_wait(self) -> float:
        """Seconds that an event may wait for others, before it is written."""
        return self._sink.batch_wait

    def get_room(self) -> int:
        """How many events would be taken now; 0 also when the sink is out."""
        room = self.queue - self._stats.sink_events_queued
        return room if room > 0 and self._state not in OUT else 0

    def lend_writer(self, most: int) -> Writer | None:
        """Who takes text for the thread, of any reader, when so many events may be left for it.

        What a reader has left is shown in counters from its end_loan() on.
        """
        with self._lock:
            self._count_writer()
            return self._writer if self._file is not None and self.get_room() >= most else None

    def put(self, rendered: Rendered, *, is_timed: bool = False, waited: float = 0.0) -> None:
        """Take the events, or as many of them as there is room for.

        `is_timed`: by the kernel's clock. `waited`: seconds of `batch_wait` that are over already.
        """
        with self._lock:
            self._delays.is_timed = is_timed
            self._stats.sink_events_taken_total += rendered.events
            if self._rests and self._direct is not None:
                written = self._write_directly(self._direct, rendered)
                if written == rendered.events:
                    return
                rendered = rendered.split(written)[1] if written else rendered
            room = self.get_room()
            if room >= rendered.events:
                self._append(rendered, waited)
                return
            fitting, rest = rendered.split(room)  # there is less than when it was rendered
            if room:
                self._append(fitting, waited)
            self._drop(rest.events, rest.time, time.time_ns(), self._drop_reason())

    def lend(self) -> Loan | None:
        """What the sink writes to, where nothing waits for it: the sink is the caller's until end_loan().

        The only one to put anything is the caller, who does so after that. What the thread has to do with the
        sink meanwhile waits, so be quick.
        """
        with self._lock:
            loan = self._direct.lend() if self._direct is not None and self._rests else None
            self._is_lent = loan is not None
            return loan

    def end_loan(self, passed: Passed, waited: float = 0.0) -> None:
        """What was written to it meanwhile, and what was not, which may have waited so long (seconds)."""
        with self._lock:
            self._count_writer()
            self._uncounted -= passed.left
            self._stats.sink_events_taken_total += self._count_writes(passed.written)
            if self._is_lent and self._direct is not None:
                self._direct.end_loan(passed)
            if passed.rest.events:
                # What was reported meanwhile follows them: it would come between the halves of a line.
                reported = self._waiting.pop_waiting() if self._is_lent else []
                self.put(passed.rest, is_timed=passed.is_timed, waited=waited)
                for lost in reported:
                    self._append_lost(lost)
            self._is_lent = False
            if self._news:  # else the thread sleeps, and has no reason to be woken each time
                self._changed.notify_all()

    def drop(self, events: int, since: int, until: int) -> None:
        """Count events that there was no room for, and report them where they would have been."""
        with self._lock:
            self._stats.sink_events_taken_total += events
            self._drop(events, since, until, self._drop_reason())

    def leave_out(self, events: int) -> None:
        """Counts events that are none for this sink: its own filter says so."""
        with self._lock:
            self._stats.sink_events_filtered_total += events

    def report(self, lost: Lost) -> None:
        """A LOST record for the sink, behind all that waits now. Takes no room in the queue."""
        with self._lock:
            self._append_lost(self.template.conceal(lost))  # for it may have to wait on disk

    def has_room(self, events: int) -> bool:
        """Whether so many could be put now; also where it makes no sense to wait for that."""
        queued = self._stats.sink_events_queued
        return queued == 0 or queued + events <= self.queue or self.is_out()

    def is_out(self) -> bool:
        """Whether the sink takes nothing until somebody enables it."""
        return self._state in OUT

    def _drop(self, events: int, since: int, until: int, reason: str) -> None:
        self._stats.count_dropped(reason, events)
        self._append_lost(Lost(events, since, until, self.name, reason))

    def _drop_reason(self) -> str:
        return self._state.value if self.is_out() else "queue"

    def _write_directly(self, sink: DirectSink, rendered: Rendered) -> int:
        """How many events went out at once: the thread, which would have to be woken, gets the others."""
        try:
            written, size = sink.try_write(rendered)
        except Exception as error:  # a mistake in a sink must not end the reader; write() will show it
            logger.debug("sink %s: direct write: %s", self.name, describe(error))
            return 0
        if written:
            self._count_written(written, size, rendered.time)
        return written

    def _count_written(self, events: int, size: int, time_ns: int, done_ns: int | None = None) -> None:
        """Events that went out in one write, past the queue."""
        self._stats.sink_events_delivered_total += events
        self._stats.sink_batches_delivered_total += 1
        self._stats.sink_bytes_total += size
        self._delays.add(time_ns, events, done_ns)

    def _count_writer(self) -> None:
        """Count what a relay has left for the writer by now, and what that has written."""
        if self._writer is None:
            return
        taken, self._writer_since, written = self._writer.take_counts()
        self._uncounted += taken
        self._stats.sink_events_taken_total += taken
        self._stats.sink_events_queued += taken - self._count_writes(written)

    def _show_counted(self) -> SinkStats:
        """The counters without what no reader has counted: of that some may wait, the rest is written."""
        shown, left = replace(self._stats), self._uncounted
        waiting = min(left, shown.sink_events_queued)
        shown.sink_events_taken_total -= left
        shown.sink_events_queued -= waiting
        shown.sink_events_delivered_total -= left - waiting
        return shown

    def _count_writes(self, written: Sequence[tuple[int, int, int, int]]) -> int:
        """By the core: see Written. How many events that were."""
        for time_ns, done_ns, events, size in written:
            self._delays.is_timed = bool(time_ns)
            self._count_written(events, size, time_ns, done_ns)
        return sum(events for _, _, events, _ in written)

    def _part_with_writer(self) -> None:
        """What it has is counted with what else is dropped: no write follows one that hangs."""
        self._count_writer()
        if self._writer is not None:
            self._writer.give_up()
            self._writer = None

    def _append(self, rendered: Rendered, waited: float) -> None:
        before, wanted = self._waiting.events, self._sink.batch_events
        if not self._waiting or before < wanted <= before + rendered.events:
            self._wake()
        self._waiting.append(rendered, self._clock() - waited)
        self._stats.sink_events_queued += rendered.events

    def _append_lost(self, lost: Lost) -> None:
        if not self._waiting and not self.is_out():  # a sink that is out gets it when it is in again
            self._wake()
        self._waiting.append_lost(lost, self._clock())

    def _wake(self) -> None:
        self._news, self._rests = True, False
        if self._writer is not None:
            self._writer.stop()  # what comes now is newer than what was left
        self._changed.notify_all()
