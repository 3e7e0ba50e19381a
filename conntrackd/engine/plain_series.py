"""Counts of connections by the values of some fields, in plain Python: the reference of core/series.c."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from conntrackd.engine import DURATION_BOUNDS, Counts, Selection, SeriesField, Sums, Value
from conntrackd.engine.plain_deltas import COUNTERS, Key, identify
from conntrackd.flow import ABSENT, NANO, EventType, Flow, compute_nat, find_duration

if TYPE_CHECKING:
    from conntrackd.engine.plain import PlainBatch

MASK: Final = (1 << 64) - 1
BOUNDS: Final = [int(seconds * NANO) for seconds in DURATION_BOUNDS]


def _read_value(flow: Flow, field: SeriesField) -> Value:
    if field.needs_nat and not compute_nat(flow):
        return None
    value: Value = compute_nat(flow) if field.attribute == "nat" else getattr(flow, field.attribute)
    return None if value == ABSENT else value


class _PlainCounts:
    """See struct counts of core/series.h."""

    def __init__(self) -> None:
        self.sums = Sums()
        self.durations = [0] * (len(BOUNDS) + 1)

    def open(self, *, is_known: bool) -> None:
        self.sums = self.sums._replace(opened=self.sums.opened + 1, living=self.sums.living + is_known)

    def close(self, flow: Flow, *, is_known: bool) -> None:
        sums = self.sums
        grown = {
            name: (getattr(sums, name) + getattr(flow, name)) & MASK
            for name in COUNTERS
            if getattr(flow, name) != ABSENT
        }
        self.sums = sums._replace(closed=sums.closed + 1, living=max(0, sums.living - is_known), **grown)
        duration = find_duration(flow)
        if duration is not None:
            self._add_duration(max(0, duration))

    def _add_duration(self, duration: int) -> None:
        self.durations[bisect_left(BOUNDS, duration)] += 1
        seconds, nanoseconds = divmod(self.sums.nanoseconds + duration, NANO)
        self.sums = self.sums._replace(seconds=(self.sums.seconds + seconds) & MASK, nanoseconds=nanoseconds)

    def snapshot(self) -> Counts:
        return tuple(self.sums), tuple(self.durations)


class PlainSeries:
    """See engine.Series."""

    def __init__(self, fields: Sequence[SeriesField], limit: int, most_living: int) -> None:
        self.overflows = 0
        self._fields = tuple(fields)
        self._limit = limit
        self._series: dict[tuple[Value, ...], _PlainCounts] = {}
        self._other = _PlainCounts()
        self._living: set[Key] = set()
        self._most_living = most_living

    def __len__(self) -> int:
        return len(self._series)

    @property
    def other(self) -> Counts:
        return self._other.snapshot()

    def count(self, batch: "PlainBatch", selection: Selection | None, /) -> None:
        for flow in batch.select(selection):
            key = identify(flow)
            if flow.type == EventType.NEW:
                is_known = key not in self._living and len(self._living) < self._most_living
                self._get_counts(flow).open(is_known=is_known)
                self._living |= {key} if is_known else set()
            elif flow.type & EventType.DESTROY:
                self._get_counts(flow).close(flow, is_known=key in self._living)
                self._living.discard(key)

    def list(self) -> Sequence[tuple[tuple[Value, ...], Counts]]:
        return [(values, counts.snapshot()) for values, counts in self._series.items()]

    def _get_counts(self, flow: Flow) -> _PlainCounts:
        values = tuple(_read_value(flow, field) for field in self._fields)
        if values not in self._series and len(self._series) >= self._limit:
            self.overflows += 1
            return self._other
        return self._series.setdefault(values, _PlainCounts())
