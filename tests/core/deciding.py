"""Decisions of the core over Flows: by way of the messages that the kernel would send of them."""

from array import array
from collections.abc import Sequence

from conntrackd.core import _core as core
from conntrackd.engine import SLOT_BYTES
from conntrackd.engine.native import open_table
from conntrackd.filter.evaluate import Decision
from conntrackd.filter.table import Table
from conntrackd.flow import EventType, Flow, Location
from tests.engine.feed import RECEIVED_NS
from tests.messages import build_message


class Core:
    """Rules in force in the core, which is asked about Flows."""

    def __init__(self, table: Table) -> None:
        self._description = table
        self._numbers: dict[Location | None, int] = {None: 0}
        self.table = open_table(table)

    def keep(self, flows: Sequence[Flow], among: Sequence[int] | None = None) -> list[int]:
        """The indexes of those that are kept."""
        batch = load(flows)
        for index, flow in enumerate(flows):
            locations = core.Locations(2)
            locations.put(flow.src, self._number(flow.src_location))
            locations.put(flow.dst, self._number(flow.dst_location))
            batch.locate(locations, select(index), True)
        return list(array("H", batch.decide(self.table, None if among is None else select(*among))))

    def decide(self, flow: Flow) -> Decision:
        """What becomes of one event; counted as others."""
        before = self.table.counts
        kept = self.keep([flow])
        changed = [rule for rule, count in enumerate(self.table.counts) if count != before[rule]]
        return Decision(bool(kept), changed[0] if changed else 0)

    def _number(self, location: Location | None) -> int:
        if location is not None and location not in self._numbers:
            self._numbers[location] = len(self._numbers)
            bits = self._description.compute_location_bits(location)
            self.table.set_location(self._numbers[location], bits)
        return self._numbers[location]


def load(flows: Sequence[Flow]) -> core.Batch:
    """All of them as one batch of events."""
    batch = core.Batch(max(1, len(flows)), SLOT_BYTES, False)
    messages = b"".join(map(build_message, flows))
    assert batch.load(messages, 0, RECEIVED_NS) == (len(messages), len(flows), 0)
    for index, flow in enumerate(flows):
        if flow.type == EventType.SNAPSHOT:  # which the kernel never sends
            batch.set_type(select(index), flow.type)
    return batch


def select(*indexes: int) -> bytes:
    """A selection of these events."""
    return array("H", indexes).tobytes()
