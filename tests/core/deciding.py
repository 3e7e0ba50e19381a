"""Decisions of the core over Flows: by way of the messages that the kernel would send of them."""

import struct
from array import array
from collections.abc import Sequence
from typing import Any

from conntrackd.filter.evaluate import Decision
from conntrackd.filter.table import Table, assemble
from conntrackd.flow import EventType, Flow, Location
from tests.core.build import build_extension
from tests.messages import build_message


class Core:
    """Rules in force in the core, which is asked about Flows."""

    def __init__(self, table: Table) -> None:
        self._extension = build_extension()
        self._table = table
        self._numbers: dict[Location | None, int] = {None: 0}
        self.table: Any = self._extension.Table(assemble(table))

    def keep(self, flows: Sequence[Flow], among: Sequence[int] | None = None) -> list[int]:
        """The indexes of those that are kept."""
        messages = b"".join(build_message(flow) for flow in flows)
        extras = b"".join(
            struct.pack(
                "=3I",
                flow.type if flow.type == EventType.SNAPSHOT else 0,
                self._number(flow.src_location),
                self._number(flow.dst_location),
            )
            for flow in flows
        )
        indexes = None if among is None else array("H", among).tobytes()
        return list(array("H", self._extension.decide(self.table, messages, extras, indexes)))

    def decide(self, flow: Flow) -> Decision:
        """What becomes of one event; counted as others."""
        before = self.table.counts
        kept = self.keep([flow])
        changed = [rule for rule, count in enumerate(self.table.counts) if count != before[rule]]
        return Decision(bool(kept), changed[0] if changed else 0)

    def _number(self, location: Location | None) -> int:
        if location is not None and location not in self._numbers:
            self._numbers[location] = len(self._numbers)
            self.table.set_location(self._numbers[location], self._table.find_location_bits(location))
        return self._numbers[location]
