"""A clock that tests move, a sink that does as it is told, and the sum that must always hold."""

import json
from collections import deque
from collections.abc import Callable

from conntrackd.flow import Batch, Lost
from conntrackd.sinks.outbox import Outbox
from conntrackd.sinks.sink import Parcel, SinkTrouble
from conntrackd.stats import SinkStats

FaultMaker = Callable[[bytes], SinkTrouble | OSError | None]


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def encode(batch: Batch) -> bytes:
    """Numbers of events, and LOST records as lists."""
    records = [
        [each.count, each.where, each.reason] if isinstance(each, Lost) else each.id  # type: ignore[union-attr]
        for each in batch
    ]
    return json.dumps(records).encode()


def split(payload: bytes) -> list[Parcel[bytes]]:
    """Each record alone."""
    return [
        Parcel(json.dumps([record]).encode(), int(isinstance(record, int))) for record in json.loads(payload)
    ]


class FakeSink:
    """Keeps what is written, unless the next fault says otherwise. Faults are used up one a call."""

    name = "fake"
    form = None

    def __init__(self, batch_events: int = 10, batch_wait: float = 0.0) -> None:
        self.batch_events = batch_events
        self.batch_wait = batch_wait
        self.opened = 0
        self.closed = 0
        self.attempts: list[bytes] = []
        self.received: list[object] = []
        self.open_faults: deque[Exception] = deque()
        self.faults: deque[Exception | FaultMaker | None] = deque()
        self.away: Exception | None = None

    def open(self) -> None:
        self.opened += 1
        if self.open_faults:
            raise self.open_faults.popleft()

    def encode(self, batch: Batch) -> bytes:
        return encode(batch)

    def write(self, payload: bytes) -> int:
        self.attempts.append(payload)
        if self.away is not None:
            raise self.away
        fault = self.faults.popleft() if self.faults else None
        if callable(fault):
            fault = fault(payload)
        if fault is not None:
            raise fault
        self.received += json.loads(payload)
        return len(payload)

    def close(self) -> None:
        self.closed += 1

    @property
    def numbers(self) -> list[int]:
        """The events among what was received."""
        return [record for record in self.received if isinstance(record, int)]

    @property
    def losses(self) -> list[object]:
        """The LOST records among what was received."""
        return [record for record in self.received if not isinstance(record, int)]


def find_imbalance(stats: SinkStats) -> int:
    """What came, less what became of it: 0 at every moment."""
    came = stats.sink_events_restored_total + stats.sink_events_taken_total
    return came - (
        stats.sink_events_delivered_total
        + stats.sink_events_queued
        + stats.sink_events_spooled
        + sum_dropped(stats)
    )


def sum_dropped(stats: SinkStats) -> int:
    """Dropped for whatever reason."""
    return (
        stats.sink_events_dropped_queue_total
        + stats.sink_events_dropped_refused_total
        + stats.sink_events_dropped_spool_total
        + stats.sink_events_dropped_shutdown_total
        + stats.sink_events_dropped_disabled_total
        + stats.sink_events_dropped_failed_total
        + stats.sink_events_dropped_damaged_total
    )


def run_until_idle(outbox: Outbox[bytes], clock: Clock, *, seconds: float = 0.0) -> None:
    """Does all that is due, and lets time pass from one due moment to the next, at most that long."""
    end = clock.now + seconds
    for _ in range(100_000):
        wait = outbox.step()
        assert find_imbalance(outbox.snapshot()) == 0
        if wait == 0:
            continue
        if wait is None or clock.now + wait > end:
            clock.now = max(clock.now, end)
            return
        clock.now += wait
    raise AssertionError("the outbox never comes to rest")


def make_lost(count: int, where: str = "kernel") -> Lost:
    """A loss between two moments."""
    return Lost(count, 100, 200, where)
