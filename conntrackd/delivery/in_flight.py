"""What an outbox is writing: one batch, or the parts it became, and the counters that follow. No lock."""

from collections import deque
from collections.abc import Iterable, Sequence

from conntrackd.delivery.batch import Batch
from conntrackd.delivery.delays import Delays
from conntrackd.delivery.store import Row
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats


class InFlight:
    """In order. They are counted as spooled while they have a row on disk, else as queued."""

    def __init__(self, stats: SinkStats, delays: Delays) -> None:
        self.row: Row | None = None
        """Where all of them are on disk."""
        self._batches: deque[Batch] = deque()
        self._stats = stats
        self._delays = delays

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def all(self) -> tuple[Batch, ...]:
        return tuple(self._batches)

    @property
    def first(self) -> Batch:
        return self._batches[0]

    @property
    def events(self) -> int:
        return sum(batch.events for batch in self._batches)

    def extend(self, batches: Iterable[Batch]) -> None:
        self._batches.extend(batches)

    def clear(self) -> None:
        """Forget them; the counters stay."""
        self._batches.clear()

    def settle(self, refused: int) -> Row | None:
        """The first is done with: delivered, but for what was refused. After the last one, its row too."""
        batch = self._batches.popleft()
        self._count(batch, batch.events - refused, refused)
        return self._finish()

    def advance(self, written: int, refused: int = 0) -> Row | None:
        """Of the first, so many events were delivered and the next refused. The row after the last one."""
        batch = self._batches[0]
        written = min(written, batch.events)
        refused = min(refused, batch.events - written)
        self._count(batch, written, refused)
        if batch.events and written + refused == batch.events:
            self._batches.popleft()
            return self._finish()
        self._batches[0] = batch.skip(written + refused)
        return None

    def revise(self, parts: Sequence[Rendered], written: int) -> int:
        """Others in place of the first, of which so many were delivered. Returns how many are in none."""
        batch = self._batches.popleft()
        self._batches.extendleft(Batch.of((part,)) for part in reversed(parts))
        missing = batch.events - written - sum(part.events for part in parts)
        self._count(batch, written, missing)
        return missing

    def _finish(self) -> Row | None:
        if self._batches:
            return None
        done, self.row = self.row, None
        return done

    def _count(self, batch: Batch, delivered: int, refused: int) -> None:
        stats = self._stats
        if self.row is None:
            stats.sink_events_queued -= delivered + refused
        else:
            stats.sink_events_spooled -= delivered + refused
        stats.sink_events_delivered_total += delivered
        self._delays.add(batch.oldest, delivered)
        stats.sink_events_dropped_refused_total += refused
