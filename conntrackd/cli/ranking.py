"""What was counted, with rates, in the order that a view has at the moment."""

import heapq
import re
from typing import Any, Final, NamedTuple

from conntrackd.cli.talkers import Key, Rows, Talkers

SORTS: Final = ("bytes", "bytes/s", "events", "events/s", "key")
"""The columns to sort by, as their headings call them."""
NUMBERS: Final = re.compile(r"([0-9]{1,18})")


class RankedRow(NamedTuple):
    """One line of a ranking; rates are per second of the last interval."""

    key: Key
    events: int
    event_rate: float
    size: int
    byte_rate: float


class Ranking:
    """The largest of Talkers. Figures are those of the last tick: another order shows the same ones."""

    def __init__(self, talkers: Talkers, sort: str, now: float) -> None:
        self.talkers = talkers
        self.sort = sort
        self.is_reversed = False
        self.events = 0
        self.event_rate = 0.0
        self._rows: Rows = {}
        self._before: Rows = {}
        self._ticked = now
        self._seconds = 1.0

    def tick(self, now: float) -> None:
        """End an interval."""
        self._before, self._rows = self._rows, self.talkers.copy_rows()
        self._seconds, self._ticked = max(now - self._ticked, 1e-3), now
        self.event_rate = (self.talkers.events - self.events) / self._seconds
        self.events = self.talkers.events

    def list(self, count: int) -> list[RankedRow]:
        """The first ones in this order: names upward, numbers downward, or the other way round."""
        choose = heapq.nlargest if self.is_reversed else heapq.nsmallest
        return choose(count, map(self._make_row, self._rows), key=self._rank)

    def _make_row(self, key: Key) -> RankedRow:
        events, size = self._rows[key]
        # What was forgotten in between counts from 0 again.
        events_before, size_before = self._before.get(key, (0, 0))
        event_rate = max(0, events - events_before) / self._seconds
        return RankedRow(key, events, event_rate, size, max(0, size - size_before) / self._seconds)

    def _rank(self, row: RankedRow) -> tuple[Any, ...]:
        """What is compared. Where the column says nothing: bytes, events, key."""
        first = {
            "bytes": -row.size,
            "bytes/s": -row.byte_rate,
            "events": -row.events,
            "events/s": -row.event_rate,
            "key": split_numbers(row.key) if self.sort == "key" else 0,
        }
        return first[self.sort], -row.size, -row.events, row.key


def split_numbers(key: Key) -> list[list[str | int]]:
    """So that 10.0.0.9 comes before 10.0.0.10."""
    return [
        [int(part) if number % 2 else part for number, part in enumerate(NUMBERS.split(text))] for text in key
    ]
