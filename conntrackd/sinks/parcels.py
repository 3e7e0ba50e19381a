"""What an outbox is writing: one parcel, or the parts it became, and the counters that follow. No lock."""

from collections import deque
from dataclasses import replace
from typing import Generic, TypeVar

from conntrackd.flow import Lost
from conntrackd.sinks.sink import Parcel, SinkRevised
from conntrackd.sinks.spool import Row
from conntrackd.stats import SinkStats

P = TypeVar("P")


class Parcels(Generic[P]):
    """In order. They are counted as spooled while they have a row on disk, else as queued."""

    def __init__(self, stats: SinkStats) -> None:
        self.row: Row[P] | None = None
        """Where all of them are on disk."""
        self._parcels: deque[Parcel[P]] = deque()
        self._stats = stats

    def __bool__(self) -> bool:
        return bool(self._parcels)

    @property
    def all(self) -> tuple[Parcel[P], ...]:
        return tuple(self._parcels)

    @property
    def first(self) -> Parcel[P]:
        return self._parcels[0]

    def append(self, parcel: Parcel[P]) -> None:
        self._parcels.append(parcel)

    def clear(self) -> list[Lost]:
        """Forgets them; the counters stay. Returns the LOST records in them."""
        losses = [lost for parcel in self._parcels for lost in parcel.losses]
        self._parcels.clear()
        return losses

    def settle(self, refused: int) -> tuple[Parcel[P], Row[P] | None]:
        """The first is done with: delivered, but for what was refused. After the last one, its row too."""
        parcel = self._parcels.popleft()
        self._count(parcel.events - refused, refused)
        done = None
        if not self._parcels:
            done, self.row = self.row, None
        return parcel, done

    def shorten(self, rest: Parcel[P]) -> None:
        """The beginning of the first was delivered, this is left."""
        whole = self._parcels[0]
        self._parcels[0] = replace(_date(rest, whole), losses=rest.losses or whole.losses)
        self._count(whole.events - rest.events, 0)

    def revise(self, revision: SinkRevised) -> tuple[Parcel[P], int]:
        """Others in place of the first. Returns it, and how many of its events are in none: those refused."""
        whole = self._parcels.popleft()
        parts = [_date(part, whole) for part in revision.parcels]
        if parts and not any(part.losses for part in parts):
            parts[-1] = replace(parts[-1], losses=whole.losses)
        self._parcels.extendleft(reversed(parts))
        missing = whole.events - revision.delivered - sum(part.events for part in revision.parcels)
        self._count(revision.delivered, missing)
        return whole, missing

    def _count(self, delivered: int, refused: int) -> None:
        stats = self._stats
        if self.row is None:
            stats.sink_events_queued -= delivered + refused
        else:
            stats.sink_events_spooled -= delivered + refused
        stats.sink_events_delivered_total += delivered
        stats.sink_events_dropped_refused_total += refused


def _date(part: Parcel[P], whole: Parcel[P]) -> Parcel[P]:
    """A part that does not know the time of its first event has that of the whole."""
    return replace(part, oldest=part.oldest or whole.oldest)
