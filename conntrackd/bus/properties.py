"""The properties of the XML, each once, typed: what Control says of one moment, without D-Bus types.

interface.py checks them against the XML: the names are those of the XML in Python's spelling, the annotations
are its signatures.
"""

from functools import cached_property
from typing import Final

from conntrackd.bus.control import Control, Counters, FilterStatus, Statistics
from conntrackd.flow import EventType

SHOWN_GROUPS: Final = (EventType.NEW, EventType.UPDATE, EventType.DESTROY)


class FilterProperties:
    """Those that both have: of the global filter, and of a sink's own."""

    def __init__(self, status: FilterStatus) -> None:
        self._filter = status

    @property
    def rules(self) -> list[str]:
        return list(self._filter.rules)

    @property
    def rule_count(self) -> int:
        return len(self._filter.rules)

    @property
    def filter_origin(self) -> str:
        return self._filter.origin

    @property
    def filter_expires(self) -> int:
        return self._filter.expires_s


class ManagerProperties(FilterProperties):
    """org.conntrackd1.Manager."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._status = control.status()
        super().__init__(self._status.filter)

    @cached_property
    def _statistics(self) -> Statistics:
        # Only where they are asked for: they are read under the lock that readers hold.
        return self._control.statistics()

    @property
    def version(self) -> str:
        return self._status.version

    @property
    def start_time(self) -> int:
        return self._status.start_us

    @property
    def configuration_paths(self) -> list[str]:
        return list(self._status.paths)

    @property
    def rule_suppressed(self) -> list[int]:
        return list(self._statistics.rule_suppressed)

    @property
    def kernel_groups(self) -> list[str]:
        groups = self._status.filter.groups
        return [str(group.name).lower() for group in SHOWN_GROUPS if groups & group]

    @property
    def kernel_instructions(self) -> int:
        return self._status.filter.instructions

    @property
    def buffer(self) -> int:
        return self._status.buffer

    @property
    def log_level(self) -> str:
        return self._status.log_level

    @property
    def run_time_changes(self) -> list[str]:
        return list(self._status.run_time)

    @property
    def problems(self) -> list[str]:
        return list(self._status.problems)

    @property
    def counters(self) -> Counters:
        return dict(self._statistics.counters)


class SinkProperties(FilterProperties):
    """org.conntrackd1.Sink, of the sink with this name."""

    def __init__(self, control: Control, name: str) -> None:
        self._name = name
        self._status = control.sink_status(name)
        super().__init__(self._status.filter)

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> str:
        return self._status.state

    @property
    def last_error(self) -> str:
        return self._status.error

    @property
    def counters(self) -> Counters:
        return dict(self._status.counters)

    @property
    def rule_matches(self) -> list[int]:
        return list(self._status.rule_matches)

    @property
    def rule_suppressed(self) -> list[int]:
        return list(self._status.rule_suppressed)
