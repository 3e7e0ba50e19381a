"""How late events are when their sink has them, counted by how late: a histogram of one sink."""

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple

from conntrackd.flow import NANO

# Seconds. A file has its lines after 4 to 60 ms, Loki after a batch of a second, and a spool after an outage.
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)


class DelayCounts(NamedTuple):
    """So many events were at most so late; the last number is of those later than all of BOUNDS."""

    events: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0
    """The sum of all delays."""


class Delays:
    """Of one sink, under its outbox's lock."""

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.is_timed = False
        """Whether the newest events have the kernel's time. Nothing is counted by ours."""
        self._clock_ns = clock_ns
        self._events = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def add(self, time_ns: int, events: int, done_ns: int | None = None) -> None:
        """Count events that the sink has since `done_ns`, or now.

        All are as late as the first of them, which is from `time_ns`.
        """
        if not (self.is_timed and events):
            return
        done_ns = self._clock_ns() if done_ns is None else done_ns
        seconds = max(0, done_ns - time_ns) / NANO  # a clock may be set back
        self._events[bisect_left(BOUNDS, seconds)] += events
        self._seconds += seconds * events

    def snapshot(self) -> DelayCounts:
        return DelayCounts(tuple(self._events), self._seconds)
