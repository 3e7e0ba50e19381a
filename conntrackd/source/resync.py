"""Which flows are reported, and the connection table for those that are not: at the start, after a loss.

The table is read in the first reader's thread, a little in each of its turns and only when no reader has left
an event waiting, so that events always come first. Where they never leave time, the table is not read.
"""

import time
from collections.abc import Callable
from typing import Final

from conntrackd.engine import Engine, EventBatch, Selection
from conntrackd.errors import UnavailableError
from conntrackd.flow import EventType
from conntrackd.netlink.table import ConntrackTable
from conntrackd.stats import Stats

# A flow is in the table a moment before its NEW is queued: what was read is decided so much later.
SETTLE_SECONDS: Final = 0.002
# Losses that go on are answered by a reading now and then.
PAUSE_SECONDS: Final = 10.0
# A filter may leave out the DESTROY that would have an id forgotten. So the table is asked which of the ids
# are still there when they have doubled, and this many more.
SLACK: Final = 65_536


class Resync:
    """Remembers the ids of flows that sinks have heard of; finds those in the table that they have not.

    A remembered flow takes 8 to 16 bytes. Not more than one thread at a time may be in here.
    """

    def __init__(
        self,
        table: ConntrackTable,
        engine: Engine,
        stats: Stats,
        *,
        after_loss: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.batch: EventBatch = engine.open_batch()
        """Flows of the table, where step() has found some."""
        self._table = table
        self._engine = engine
        self._stats = stats
        self._after_loss = after_loss
        self._clock = clock
        self._reported = engine.open_ids()
        self._bound = SLACK
        self._is_wanted = False
        self._next_at = 0.0
        # While the table is read:
        self.is_reading = False
        self._reports = False  # else it is only asked which of the ids are there
        self._settled_at = 0.0
        self._is_decided = False  # what is in the batch; else it has to settle first
        self._there = engine.open_ids()
        self._gone = engine.open_ids()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to be done any more: the table of the start was all that was asked for."""
        return not (self._after_loss or self._is_wanted or self.is_reading)

    def is_settled(self, emptied_at: float) -> bool:
        """Whether a reader that had read all events of that time knows enough for the next step."""
        return not self.is_reading or self._is_decided or emptied_at >= self._settled_at

    def request(self, *, at_start: bool = False) -> None:
        """Events are missing, or the daemon has just begun: read the table soon."""
        self._is_wanted = self._is_wanted or at_start or self._after_loss

    def note(self, batch: EventBatch, kept: Selection) -> None:
        """A batch of events, and those of it that the sinks hear of."""
        self.note_reported(batch, batch.of_types(kept, EventType.NEW | EventType.UPDATE))
        ended = batch.of_types(None, EventType.DESTROY)
        self._reported.discard(batch, ended)
        if self.is_reading:
            self._gone.add(batch, ended)

    def note_reported(self, batch: EventBatch, flows: Selection) -> None:
        """Flows that live, and that the sinks hear of."""
        self._reported.add(batch, flows)
        if self.is_reading:
            self._there.add(batch, flows)

    def step(self) -> Selection:
        """Go on by one step, when no event waits. Flows in `batch` that nobody has reported yet."""
        now = self._clock()
        if not self.is_reading:
            self._begin(now)
            return b""
        if now < self._settled_at:
            return b""
        if self._is_decided:
            self._read(now)
            return b""
        self._is_decided = True
        living = self._gone.select(self.batch, None, False)
        self._there.add(self.batch, self._reported.select(self.batch, living, True))
        fresh = self._reported.select(self.batch, living, False) if self._reports else b""
        fresh = self._engine.open_ids().add(self.batch, fresh)  # the kernel may give one twice
        if not fresh:
            self._read(now)
        return fresh

    def _begin(self, now: float) -> None:
        is_overgrown = len(self._reported) > self._bound
        if now < self._next_at or not (self._is_wanted or is_overgrown):
            return
        self._next_at = now + PAUSE_SECONDS
        self._reports, self._is_wanted = self._is_wanted, False
        self._there, self._gone = self._engine.open_ids(), self._engine.open_ids()
        try:
            self._table.begin()
        except UnavailableError:
            self._give_up()
        else:
            self.is_reading = True
            self._read(now)

    def _read(self, now: float) -> None:
        try:
            has_more = self._table.read(self.batch)
        except UnavailableError:
            self._give_up()
            return
        self._settled_at, self._is_decided = now + SETTLE_SECONDS, False
        if not has_more:
            self._stats.table_readings_total += 1
            self.is_reading = False
            self._there.remove(self._gone)
            self._reported = self._there
            self._bound = 2 * len(self._reported) + SLACK

    def _give_up(self) -> None:
        """For now: what was wanted is tried again."""
        self._stats.table_errors_total += 1
        self.is_reading = False
        self._is_wanted = self._is_wanted or self._reports
