"""What waits for a sink, bounded in events and joined when taken, and what it is writing. Without a lock."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conntrackd.delivery.batch import Batch
from conntrackd.delivery.delays import Delays
from conntrackd.delivery.losses import is_alike, join_losses, join_two
from conntrackd.delivery.store import Row
from conntrackd.flow import Lost
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats


@dataclass(slots=True)
class Waiting:
    """Events that were rendered together, or a loss, and when they came."""

    item: Rendered | Lost
    came: float

    @property
    def oldest(self) -> int:
        """Time of the first record."""
        return self.item.since if isinstance(self.item, Lost) else self.item.time


class Queue:
    """First in, first out. `events` counts the events in it."""

    def __init__(self) -> None:
        self.events = 0
        self._held: list[Lost] = []
        self._waiting: deque[Waiting] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def head(self) -> Waiting | None:
        """What has waited longest."""
        return self._waiting[0] if self._waiting else None

    def find_oldest(self) -> int | None:
        """Time of the first record of all that waits or is held."""
        times = [waiting.oldest for waiting in self._waiting]
        return min([*times, *(lost.since for lost in self._held)], default=None)

    def append(self, rendered: Rendered, now: float) -> None:
        """Events, behind all that waits."""
        self._waiting.append(Waiting(rendered, now))
        self.events += rendered.events

    def append_lost(self, lost: Lost, now: float) -> None:
        """Joined with its like at the end of the queue, so that losses alone cannot make it grow."""
        for waiting in reversed(self._waiting):
            if not isinstance(waiting.item, Lost):
                break
            if is_alike(waiting.item, lost):
                waiting.item = join_two(waiting.item, lost)
                return
        self._waiting.append(Waiting(lost, now))

    def hold_lost(self, lost: Lost) -> None:
        """Not to be reported yet: what is refused now would be refused with it."""
        for number, held in enumerate(self._held):
            if is_alike(held, lost):
                self._held[number] = join_two(held, lost)
                return
        self._held.append(lost)

    def pop_held(self) -> list[Lost]:
        """All that was held since the last call, those of a kind as one."""
        held, self._held = self._held, []
        return held

    def pop_waiting(self) -> list[Lost]:
        """All losses that wait. The events are forgotten."""
        waiting = [waiting.item for waiting in self._waiting if isinstance(waiting.item, Lost)]
        self._waiting.clear()
        self.events = 0
        return waiting

    def pop_losses(self) -> list[Lost]:
        """All that wait or are held, where there is no time left to report them."""
        return [*self.pop_waiting(), *self.pop_held()]

    def take(self, events: int, *, past_losses: bool = False) -> Batch | None:
        """A loss alone, or the first events with those that follow, as far as no more than `events`.

        They end at a loss, which has its place between two events; with `past_losses` it has none, and those
        between them are the next to be taken, joined.
        """
        if not self._waiting:
            return None
        first = self._waiting.popleft().item
        if isinstance(first, Lost):
            return Batch.of_loss(first)
        parts, count = [first], first.events
        passed: list[Waiting] = []
        while self._waiting:
            following = self._waiting[0].item
            if isinstance(following, Lost):
                if not past_losses:
                    break
                passed.append(self._waiting[0])
            elif count + following.events > events:
                break
            else:
                parts.append(following)
                count += following.events
            self._waiting.popleft()
        losses = join_losses(waiting.item for waiting in passed if isinstance(waiting.item, Lost))
        self._waiting.extendleft(Waiting(lost, passed[0].came) for lost in reversed(losses))
        self.events -= count
        return Batch.of(parts)

    def put_back(self, batch: Batch, came: float) -> None:
        """Undo take()."""
        if batch.lost is not None:
            self._waiting.appendleft(Waiting(batch.lost, came))
        self._waiting.extendleft(Waiting(part, came) for part in reversed(batch.parts))
        self.events += batch.events

    def clear(self, now: float) -> None:
        """Forget the events. The losses stay: they are still to be reported."""
        for lost in self.pop_waiting():
            self.append_lost(lost, now)


class InFlight:
    """One batch, or the parts that it became, in order.

    They are counted as spooled while they have a row on disk, else as queued.
    """

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
        self._stats.sink_bytes_total += batch.measure(written)
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
