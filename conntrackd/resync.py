"""Which flows are reported, and the connection table for those that are not: at the start, after a loss.

Everything here happens in the reader's thread, a little in each of its turns and only when the turn has left
no event waiting, so that events always come first. Where they never leave time, the table is not read.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from conntrackd.errors import UnavailableError
from conntrackd.flow import EventType, Flow
from conntrackd.netlink.decode import Decoder
from conntrackd.netlink.table import Table
from conntrackd.stats import Stats

# A flow is in the table a moment before its NEW is queued: what was read is judged so much later.
SETTLE_SECONDS: Final = 0.002
# Losses that go on are answered by a reading now and then.
PAUSE_SECONDS: Final = 10.0
# A filter may leave out the DESTROY that would have an id forgotten. So the table is asked which of the ids
# are still there when they have doubled, and this many more.
SLACK: Final = 65_536


class Resync:
    """Remembers the ids of flows that sinks have heard of; finds those in the table that they have not.

    A remembered flow takes some 70 bytes.
    """

    def __init__(
        self,
        table: Table,
        decoder: Decoder,
        stats: Stats,
        *,
        after_loss: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._decoder = decoder
        self._stats = stats
        self._after_loss = after_loss
        self._clock = clock
        self._reported: set[int] = set()
        self._bound = SLACK
        self._is_wanted = False
        self._next_at = 0.0
        # While the table is read:
        self.is_reading = False
        self._tells = False  # else it is only asked which of the ids are there
        self._chunk: list[Flow] = []
        self._settled_at = 0.0
        self._there: set[int] = set()
        self._gone: set[int] = set()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to be done any more: the table of the start was all that was asked for."""
        return not (self._after_loss or self._is_wanted or self.is_reading)

    def request(self, *, at_start: bool = False) -> None:
        """Events are missing, or the daemon has just begun: read the table soon."""
        self._is_wanted = self._is_wanted or at_start or self._after_loss

    def note(self, flows: Iterable[Flow], kept: Iterable[Flow]) -> None:
        """A batch of events or of the table's flows, and those of it that the sinks hear of."""
        reported = [flow.id for flow in kept if flow.type != EventType.DESTROY]
        ended = [flow.id for flow in flows if flow.type == EventType.DESTROY]
        self._reported.update(reported)
        self._reported.difference_update(ended)
        if self.is_reading:
            self._there.update(reported)
            self._gone.update(ended)

    def take(self) -> list[Flow]:
        """Go on by one step, when no event waits. Flows that nobody has reported, as NEW for the filter."""
        now = self._clock()
        if not self.is_reading:
            self._begin(now)
            return []
        if now < self._settled_at:
            return []
        found = {flow.id: flow for flow in self._chunk if flow.id not in self._gone}
        known = found.keys() & self._reported
        self._there.update(known)
        self._read(now)
        if not self._tells:
            return []
        fresh = [flow for each, flow in found.items() if each not in known]
        for flow in fresh:
            flow.type = EventType.NEW
        return fresh

    def _begin(self, now: float) -> None:
        is_overgrown = len(self._reported) > self._bound
        if now < self._next_at or not (self._is_wanted or is_overgrown):
            return
        self._next_at = now + PAUSE_SECONDS
        self._tells, self._is_wanted = self._is_wanted, False
        self._there.clear()
        self._gone.clear()
        try:
            self._table.begin()
        except UnavailableError:
            self._give_up()
        else:
            self.is_reading = True
            self._read(now)

    def _read(self, now: float) -> None:
        try:
            chunk = self._table.read(self._decoder)
        except UnavailableError:
            self._give_up()
            return
        self._chunk = chunk or []
        self._settled_at = now + SETTLE_SECONDS
        if chunk is None:
            self._stats.table_readings_total += 1
            self.is_reading = False
            self._reported = self._there - self._gone
            self._bound = 2 * len(self._reported) + SLACK

    def _give_up(self) -> None:
        """For now: what was wanted is tried again."""
        self._stats.table_errors_total += 1
        self.is_reading = False
        self._chunk = []
        self._is_wanted = self._is_wanted or self._tells
