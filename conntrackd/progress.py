"""Whether what is put into an outbox comes out of it: what its state alone does not show.

A sink that writes may drop at the same time, because its queue is full, and one that hangs in a write is in
no bad state at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from conntrackd.delivery.outbox import Outbox
from conntrackd.stats import DROPPED

RECENT_SECONDS: Final = 8.0
"""So long after the last drop a sink is said to drop, and so long after the last delivery to stand still."""
# What a person has asked for.
WANTED: Final = frozenset({"disabled", "shutdown"})
TEXTS: Final = {"queue": "its queue is full"}


@dataclass(slots=True)
class _Seen:
    dropped: dict[str, int]
    settled: int
    moved_at: float
    reason: str = ""
    dropped_at: float = 0.0


class Progress:
    """Looks at outboxes every second or so. Belongs to one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def look(self, name: str, outbox: Outbox) -> None:
        stats, now = outbox.snapshot(), self._clock()
        dropped = {reason: getattr(stats, field) for reason, field in DROPPED.items() if reason not in WANTED}
        settled = stats.count_settled()
        seen = self._seen.setdefault(name, _Seen(dropped, settled, now))
        for reason, count in dropped.items():
            if count > seen.dropped[reason]:
                seen.reason, seen.dropped_at = reason, now
        if settled != seen.settled or not stats.sink_events_queued or outbox.is_out():
            seen.moved_at = now
        seen.dropped, seen.settled = dropped, settled

    def describe_trouble(self, name: str, outbox: Outbox) -> str:
        """A phrase that follows the sink's name: why it does not deliver, in no bad state; empty for none."""
        seen, now = self._seen.get(name), self._clock()
        if seen is None or outbox.is_out():
            return ""
        if seen.reason and now - seen.dropped_at < RECENT_SECONDS:
            return f"drops events: {TEXTS.get(seen.reason, seen.reason)}"
        if now - seen.moved_at >= RECENT_SECONDS + outbox.batch_wait:  # others may join them so long
            return "has stalled: events wait and none is delivered"
        return ""
