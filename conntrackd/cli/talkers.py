"""Who talks, how often and how much: what `top` and `summary` count by, and the order that `top` has."""

import heapq
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from conntrackd.cli.lines import SIZES, render_end

# A scan of the whole Internet must not eat the memory: above this, the smaller half is forgotten.
MAX_KEYS: Final = 65_536
BY: Final = ("src", "dst", "port", "country", "flow")
Key = tuple[str, ...]
Rows = dict[Key, tuple[int, int]]
"""A value for each of what is counted by -> events, bytes."""
SORTS: Final = ("bytes", "bytes/s", "events", "events/s", "key")
"""The columns to sort by, as their headings call them."""
NUMBERS: Final = re.compile(r"([0-9]{1,18})")
# A FLOW comes behind the DESTROYs of its batch, of up to 256 events; there are up to 16 readers.
MAX_ENDS: Final = 4096
DELTAS: Final = tuple(f"{name}_delta" for name in SIZES)
# What a FLOW has of its DESTROY; a field that is not written is None in both.
SAME: Final = ("time", "flow", "prot", "src", "dst", "sport", "dport", "icmp_id", *SIZES)


class Sizes:
    """Bytes of records, those of a flow once: where both are written, a FLOW repeats its DESTROY.

    Where flows have ALIVE records, each record adds what came since the last one.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[Any, ...], int] = {}
        """DESTROYs whose FLOW may still come, and how many are alike; the oldest first."""

    def count(self, record: Mapping[str, Any]) -> int:
        """What the record adds to the sum."""
        total, size = sum(int(record.get(name, 0)) for name in SIZES), _measure(record)
        kind = record.get("type")
        if not total or kind not in ("DESTROY", "FLOW"):
            return size
        key = tuple(record.get(name) for name in SAME)
        alike = self._ends.pop(key, 0)
        if kind == "DESTROY":
            self._ends[key] = alike + 1
            if len(self._ends) > MAX_ENDS:
                del self._ends[next(iter(self._ends))]
            return size
        if alike > 1:
            self._ends[key] = alike - 1
        return 0 if alike else size


def _measure(record: Mapping[str, Any]) -> int:
    """Of an ALIVE that does not say what is new, nobody knows what has been counted before."""
    deltas = [int(record[name]) for name in DELTAS if name in record]
    if deltas or record.get("type") == "ALIVE":
        return sum(deltas)
    return sum(int(record.get(name, 0)) for name in SIZES)


class Talkers:
    """Events and bytes by key; bytes come with the end of a flow, if the kernel counts them."""

    def __init__(self, *by: str) -> None:
        self._by = by
        self._rows: Rows = {}
        self._sizes = Sizes()
        self.events = 0
        self.sampled = 0
        """Records of a sample: with them the sums are estimates."""
        self.lost = 0
        self.suppressed = 0
        self.gaps = 0
        """Losses of which the number is not known."""

    def add(self, record: Mapping[str, Any]) -> None:
        """One record."""
        if record.get("type") == "LOST":
            # Of some losses nobody knows the number: a stop, what the kernel merged into later events.
            lost = record.get("lost")
            self.lost += lost or 0
            self.gaps += lost is None
            return
        if record.get("type") == "SUPPRESSED":
            self.suppressed += record.get("suppressed") or 0
            return
        weight = weigh(record)
        self.sampled += weight > 1
        self.count(record, weight * self._sizes.count(record), weight)

    def count(self, record: Mapping[str, Any], size: int, weight: int = 1) -> None:
        """One record of an event, for how many it stands, and what it adds to the bytes."""
        self.events += weight
        key = tuple(make_key(record, name) for name in self._by)
        events, before = self._rows.get(key, (0, 0))
        self._rows[key] = events + weight, before + size
        if len(self._rows) > MAX_KEYS:
            self._rows = dict(sorted(self._rows.items(), key=lambda row: row[1])[MAX_KEYS // 2 :])

    def copy_rows(self) -> Rows:
        """What is counted so far."""
        return dict(self._rows)

    def list(self, count: int) -> list[tuple[str, int, int]]:
        """The largest: by bytes where there are some, then by events."""
        rows = sorted(self._rows.items(), key=lambda row: (-row[1][1], -row[1][0], row[0]))
        return [(" ".join(key), events, size) for key, (events, size) in rows[:count]]


def weigh(record: Mapping[str, Any]) -> int:
    """For how many a record of a sample stands; 1 for any other."""
    return max(1, int(record.get("sample_rate", 1)))


def make_key(record: Mapping[str, Any], by: str) -> str:
    """What the record is counted under."""
    match by:
        case "port":
            return f"{record.get('prot', '')} {record.get('dport', '-')}"
        case "country":
            return str(record.get("country") or record.get("src_country") or "unknown")
        case "flow":
            ends = f"{render_end(record, 'src', 'sport')} -> {render_end(record, 'dst', 'dport')}"
            return f"{record.get('prot', '')} {ends}"
    return str(record.get(by, "-"))


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
