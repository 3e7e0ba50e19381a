"""Batches that wait for a sink, bounded in events, joined when taken. No lock, no thread, no clock."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from conntrackd.flow import Batch, Flow, Lost, Piece
from conntrackd.sinks.losses import join_losses


@dataclass(slots=True)
class Waiting:
    """A batch, the events in it (LOST records are none) and when it came."""

    batch: Batch
    events: int
    came: float

    @property
    def oldest(self) -> int:
        """Time of the first record."""
        record = self.batch[0]
        return record.since if isinstance(record, Lost) else record.time


class Queue:
    """First in, first out. `events` counts the events in it."""

    def __init__(self) -> None:
        self.events = 0
        self._held: list[Lost] = []
        self._batches: deque[Waiting] = deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def head(self) -> Waiting | None:
        """What has waited longest."""
        return self._batches[0] if self._batches else None

    def append(self, batch: Sequence[Flow | Piece], events: int, now: float) -> None:
        """With so many events in it. The list is kept, and shared with other sinks: nobody may change it."""
        self._batches.append(Waiting(batch, events, now))  # type: ignore[arg-type]  # read only
        self.events += events

    def append_lost(self, lost: Lost, now: float) -> None:
        """Joined with its like at the end of the queue, so that losses alone cannot make it grow."""
        last = self._batches[-1] if self._batches else None
        if last is None or last.events:
            self._batches.append(Waiting([lost], 0, now))
            return
        _merge(last.batch, lost)

    def hold_lost(self, lost: Lost) -> None:
        """Not to be told yet: what is refused now would be refused with it."""
        _merge(self._held, lost)

    def take_held(self) -> list[Lost]:
        """All that was held since the last call, those of a kind as one."""
        held, self._held = self._held, []
        return held

    def take_losses(self) -> list[Lost]:
        """All that are in it or held, where there is no time left to report them."""
        waiting = [record for batch in self._batches for record in batch.batch if isinstance(record, Lost)]
        self._batches.clear()
        self.events = 0
        return [*waiting, *self.take_held()]

    def take(self, events: int) -> Waiting | None:
        """The first batch, with the following ones as long as all of them have no more than `events`."""
        if not self._batches:
            return None
        first = self._batches.popleft()
        joined = Waiting(list(first.batch), first.events, first.came)
        while self._batches and joined.events + self._batches[0].events <= events:
            following = self._batches.popleft()
            joined.batch += following.batch
            joined.events += following.events
        self.events -= joined.events
        return joined

    def put_back(self, taken: Waiting) -> None:
        """Undoes take()."""
        self._batches.appendleft(taken)
        self.events += taken.events

    def clear(self, now: float) -> None:
        """Forgets the events. The losses stay: they are still to be told."""
        records = [each for waiting in self._batches for each in waiting.batch]
        self._batches.clear()
        self.events = 0
        for each in records:
            if isinstance(each, Lost):
                self.append_lost(each, now)


def _merge(records: Batch | list[Lost], lost: Lost) -> None:
    for position, other in enumerate(records):
        if isinstance(other, Lost) and len(joined := join_losses((other, lost))) == 1:
            records[position] = joined[0]
            return
    records.append(lost)
