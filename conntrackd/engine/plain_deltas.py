"""What flows had counted at their last record, in plain Python: the reference of core/deltas.c."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from conntrackd.engine import Selection
from conntrackd.flow import ABSENT, EventType, Flow

if TYPE_CHECKING:
    from conntrackd.engine.plain import PlainBatch

COUNTERS: Final = ("orig_packets", "orig_bytes", "reply_packets", "reply_bytes")
NOTHING: Final = (0,) * len(COUNTERS)
# What all events of a flow have alike, and no other flow of its time has.
IDENTITY: Final = (
    *("id", "family", "protocol", "zone", "src", "dst", "sport", "dport"),
    *("icmp_type", "icmp_code", "icmp_id"),
)
READINGS_MISSED: Final = 2

Key = tuple[Any, ...]


def identify(flow: Flow) -> Key:
    """The flow that an event is of."""
    return tuple(getattr(flow, name) for name in IDENTITY)


@dataclass(slots=True)
class Counted:
    """See struct counted of core/deltas.h."""

    counters: tuple[int, ...]
    seen: int
    based: int = 0


class PlainDeltas:
    """See engine.Deltas."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._flows: dict[Key, Counted] = {}
        self._reading = 0
        self._is_whole = True
        self._is_complete = False
        self._without_room = 0

    def __len__(self) -> int:
        return len(self._flows)

    def begin(self) -> None:
        if self._is_whole:
            self._reading += 1
            self._is_whole, self._without_room = False, 0

    def finish(self) -> None:
        self._is_whole = True
        self._is_complete = self._is_complete or not self._without_room

    def see(self, batch: "PlainBatch", /) -> Selection:
        fresh = [index for index, flow in enumerate(batch.flows) if self._see(flow)]
        missed = self._reading - READINGS_MISSED
        self._flows = {key: found for key, found in self._flows.items() if found.seen >= missed}
        return batch.make_selection(fresh)

    def advance(self, batch: "PlainBatch", selection: Selection | None, /) -> int:
        return sum(not self._advance(flow) for flow in batch.select(selection))

    def end(self, batch: "PlainBatch", /) -> None:
        for flow in batch.flows:
            if not flow.type & EventType.DESTROY or not is_counted(flow):
                continue
            found = self._flows.pop(identify(flow), None)
            if found is not None:
                set_deltas(flow, found.counters)
            elif self._is_complete:
                set_deltas(flow, NOTHING)

    def hide(self, batch: "PlainBatch", selection: Selection | None, /) -> None:
        for flow in batch.select(selection):
            for name in COUNTERS:
                setattr(flow, f"{name}_delta", ABSENT)

    def _see(self, flow: Flow) -> bool:
        """Whether this reading has not seen it before. At first, what is not known counts from here on."""
        if not is_counted(flow):
            return True
        found = self._flows.get(identify(flow))
        if found is not None:
            is_first, found.seen = found.seen != self._reading, self._reading
            return is_first
        if not self._is_complete and self._add(flow):
            self._flows[identify(flow)].based = self._reading
        return True

    def _advance(self, flow: Flow) -> bool:
        """Whether there is room for it. It has a delta unless its beginning is not known."""
        if not is_counted(flow):
            return True
        found = self._flows.get(identify(flow))
        if found is None:
            if not self._is_complete or not self._add(flow):
                return False
            set_deltas(flow, NOTHING)
            return True
        if found.based != self._reading:
            set_deltas(flow, found.counters)
        found.counters = read_counters(flow)
        return True

    def _add(self, flow: Flow) -> bool:
        if len(self._flows) >= self._limit:
            self._without_room += 1
            return False
        self._flows[identify(flow)] = Counted(read_counters(flow), self._reading)
        return True


def is_counted(flow: Flow) -> bool:
    """Whether the kernel counts it."""
    return ABSENT not in read_counters(flow)


def read_counters(flow: Flow) -> tuple[int, ...]:
    """Packets and bytes each way."""
    return tuple(getattr(flow, name) for name in COUNTERS)


def set_deltas(flow: Flow, last: Sequence[int]) -> None:
    """What came since. Where one is below what it was, somebody has set all of them to 0 (conntrack -z)."""
    now = read_counters(flow)
    if any(number < before for number, before in zip(now, last, strict=True)):
        last = NOTHING
    for name, number, before in zip(COUNTERS, now, last, strict=True):
        setattr(flow, f"{name}_delta", number - before)
