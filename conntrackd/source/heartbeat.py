"""An ALIVE record for each flow of the table, at an interval, with what has come since its last record.

The first reader reads the table, a chunk in a turn, and only in a turn that has left no event waiting, spread
over a part of the interval. The first reading, at the start, writes nothing: it finds what flows have counted
by then, of which an earlier process may have written.
"""

import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from conntrackd.engine import Engine, EventBatch, Selection
from conntrackd.errors import UnavailableError
from conntrackd.flow import EventType
from conntrackd.netlink.table import ConntrackTable
from conntrackd.stats import Stats

# Of the interval: what is left is for events, which have precedence.
SPREAD: Final = 0.5
# The kernel fills 32 KiB at a time; a flow with counters, times and names has some 300 bytes.
CHUNK_FLOWS: Final = 100
# Between two chunks. A flow is in the table a moment before its NEW is queued, and after its DESTROY is.
MIN_PACE: Final = 0.002
MAX_PACE: Final = 0.05
# A chunk is filled when the one before it is read, and written a pace after it was read itself. And one more.
ENDED_KEPT: Final = 3
# Of each pace, 1 MB; chunks of a time with more ends than that are left out, for nobody knows who lives.
MAX_ENDED: Final = 65_536


class _Phase(Enum):
    IDLE = auto()
    NOTING = auto()
    """Ends are noted, so that none is missed of the first chunk."""
    READING = auto()


class Heartbeat:
    """Readings of the table. end(), take(), advance() and go_on() are under the pipeline's lock."""

    def __init__(
        self,
        table: ConntrackTable,
        engine: Engine,
        stats: Stats,
        interval: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit` is the number of flows of which the counters are remembered; 0: there are no deltas."""
        self.batch: EventBatch = engine.open_batch()
        """A chunk of the table."""
        self.has_counters = True
        """Whether the last reading has found a flow with some, or none at all."""
        self._table = table
        self._engine = engine
        self._stats = stats
        self._interval = interval
        self._clock = clock
        self._deltas = engine.open_deltas(limit) if limit else None
        self._is_first = True
        self._phase = _Phase.IDLE
        self._step_at = self._began_at = clock()
        # While the table is read:
        self._pace = MIN_PACE
        self._has_chunk = False
        self._flows = 0
        self._counted = 0
        self._ended = deque([engine.open_ids()], ENDED_KEPT)
        self._unsure = 0  # chunks that are left out

    def compute_patience(self) -> float:
        """Seconds until the next step; 0 when it is due."""
        return max(0.0, self._step_at - self._clock())

    def is_due(self) -> bool:
        """Whether it is time for the next step."""
        return self._clock() >= self._step_at

    def postpone(self) -> None:
        """Try again a little later: there is no room for the records of a chunk."""
        self._step_at = self._clock() + MAX_PACE

    def end(self, batch: EventBatch) -> None:
        """Give the DESTROYs of these events what came since the last record of each flow."""
        if self._deltas is not None:
            self._deltas.end(batch)
        if self._phase is not _Phase.IDLE:
            self._ended[0].add(batch, batch.of_types(None, EventType.DESTROY))
            if len(self._ended[0]) > MAX_ENDED:
                self._ended[0], self._unsure = self._engine.open_ids(), ENDED_KEPT

    def hide(self, batch: EventBatch, selection: Selection) -> None:
        """What these events say of a flow has been written already."""
        if self._deltas is not None:
            self._deltas.hide(batch, selection)

    def take(self) -> Selection:
        """Flows of the chunk that was read in the last step, each once a reading, and none that has ended."""
        if not self._has_chunk:
            return b""
        self._has_chunk = False
        batch = self.batch
        self._flows += len(batch)
        self._counted += batch.describe(0)["orig_bytes"] is not None
        # The kernel may give one twice.
        living = self._engine.open_ids().add(batch, None) if self._deltas is None else self._deltas.see(batch)
        for ended in self._ended:
            living = ended.select(batch, living, False)
        return b"" if self._is_first or self._unsure else living

    def advance(self, selection: Selection) -> int:
        """Give these of the chunk what came since their last record. How many there was no room for."""
        return 0 if self._deltas is None else self._deltas.advance(self.batch, selection)

    def go_on(self) -> None:
        """The next step, where it is due: read the next chunk. What was read before is written by now."""
        now = self._clock()
        try:
            match self._phase:
                case _Phase.IDLE:
                    self._began_at, self._step_at = now, now + MIN_PACE
                    self._ended = deque([self._engine.open_ids()], ENDED_KEPT)
                    self._phase, self._unsure = _Phase.NOTING, 0
                case _Phase.NOTING:
                    self._begin()
                    self._read(now)
                case _Phase.READING:
                    self._read(now)
        except UnavailableError:
            self._stats.table_errors_total += 1
            self._rest(now)

    def _begin(self) -> None:
        self._table.begin()
        self._phase = _Phase.READING
        if self._deltas is not None:
            self._deltas.begin()
        if not self._is_first:
            pace = self._interval * SPREAD * CHUNK_FLOWS / max(1, self._flows)
            self._pace = min(MAX_PACE, max(MIN_PACE, pace))
        self._flows = self._counted = 0

    def _read(self, now: float) -> None:
        has_more = self._table.read(self.batch)
        self._unsure = max(0, self._unsure - 1)
        self._ended.appendleft(self._engine.open_ids())
        self._has_chunk, self._step_at = has_more, now + self._pace
        if has_more:
            return
        self._stats.table_readings_total += 1
        if self._deltas is not None:
            self._deltas.finish()
        self._is_first = False
        self.has_counters = self._counted > 0 or self._flows == 0
        self._rest(now)

    def _rest(self, now: float) -> None:
        """Until the next reading."""
        self._phase, self._has_chunk = _Phase.IDLE, False
        self._step_at = max(now, self._began_at + self._interval)
