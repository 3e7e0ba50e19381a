"""The handlers: each method and property of the XML once, typed, thin, without D-Bus types.

interface.py checks them against the XML: coroutines are methods, properties are properties, the names are
those of the XML in Python's spelling, the annotations are its signatures.
"""

from typing import Final

from conntrackd.bus.control import Control
from conntrackd.bus.interface import Descriptor
from conntrackd.config.options import LOG_LEVEL
from conntrackd.errors import UsageError
from conntrackd.flow import EventType

Counters = dict[str, int]

FLUSH_SECONDS: Final = 10.0
# What may be asked of a tail or a run-time filter; more is a mistake (or never).
MAX_TIMEOUT_S: Final = 31 * 24 * 3600
LEVELS: Final = LOG_LEVEL.kind.words
SHOWN_GROUPS: Final = (EventType.NEW, EventType.UPDATE, EventType.DESTROY)


def _check_timeout(timeout_s: int) -> None:
    if timeout_s > MAX_TIMEOUT_S:
        raise UsageError(
            "a run-time change lasts 31 days at most",
            hint="without --for, on the bus with 0, it lasts until a reload",
        )


class ManagerHandlers:
    """org.conntrackd1.Manager."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def reload(self) -> list[str]:
        return await self._control.reload()

    async def reload_filter(self) -> list[str]:
        return await self._control.reload_filter()

    async def set_filter(self, rules: list[str], timeout_s: int) -> list[str]:
        _check_timeout(timeout_s)
        return await self._control.set_filter(rules, timeout_s)

    async def reset_filter(self) -> list[str]:
        return await self._control.reset_filter()

    async def set_log_level(self, level: str) -> list[str]:
        if level not in LEVELS:
            raise UsageError("unknown log level", hint=f"one of: {', '.join(LEVELS)}")
        return self._control.set_log_level(level)

    async def check_filter(self, rules: list[str]) -> list[str]:
        return await self._control.check_filter(rules)

    async def explain_filter(self, rules: list[str]) -> str:
        return await self._control.explain_filter(rules)

    async def tail(self, rules: list[str], limit: int) -> Descriptor:
        return Descriptor(await self._control.open_tail(rules, limit))

    async def list_sets(self) -> list[tuple[str, str, int, int, int, int, list[str]]]:
        return [
            (
                found.name,
                found.path,
                found.entries,
                found.added,
                found.removed,
                found.expires_s,
                list(found.uses),
            )
            for found in self._control.list_sets()
        ]

    async def show_set(self, name: str, after: str) -> list[tuple[str, str, int]]:
        entries = await self._control.show_set(name, after)
        return [(entry.text, entry.change, entry.expires_s) for entry in entries]

    async def reload_sets(self, names: list[str]) -> list[str]:
        return await self._control.reload_sets(names)

    async def add_to_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        _check_timeout(timeout_s)
        return await self._control.add_to_set(name, entries, timeout_s)

    async def remove_from_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        _check_timeout(timeout_s)
        return await self._control.remove_from_set(name, entries, timeout_s)

    async def doctor(self) -> list[tuple[str, str, str, str]]:
        findings = await self._control.examine()
        return [(finding.severity, finding.check, finding.message, finding.remedy) for finding in findings]

    async def get_statistics(self) -> tuple[Counters, dict[str, Counters], list[int]]:
        statistics = self._control.statistics()
        sinks = {name: dict(counters) for name, counters in statistics.sinks.items()}
        return dict(statistics.counters), sinks, list(statistics.rule_matches)

    @property
    def version(self) -> str:
        return self._control.status().version

    @property
    def start_time(self) -> int:
        return self._control.status().start_us

    @property
    def configuration_paths(self) -> list[str]:
        return list(self._control.status().paths)

    @property
    def rules(self) -> list[str]:
        return list(self._control.status().filter.rules)

    @property
    def rule_count(self) -> int:
        return len(self._control.status().filter.rules)

    @property
    def rule_suppressed(self) -> list[int]:
        return list(self._control.statistics().rule_suppressed)

    @property
    def filter_origin(self) -> str:
        return self._control.status().filter.origin

    @property
    def filter_expires(self) -> int:
        return self._control.status().filter.expires_s

    @property
    def kernel_groups(self) -> list[str]:
        groups = self._control.status().filter.groups
        return [str(group.name).lower() for group in SHOWN_GROUPS if groups & group]

    @property
    def kernel_instructions(self) -> int:
        return self._control.status().filter.instructions

    @property
    def buffer(self) -> int:
        return self._control.status().buffer

    @property
    def log_level(self) -> str:
        return self._control.status().log_level

    @property
    def run_time_changes(self) -> list[str]:
        return list(self._control.status().run_time)

    @property
    def problems(self) -> list[str]:
        return list(self._control.status().problems)

    @property
    def counters(self) -> Counters:
        return dict(self._control.statistics().counters)


class SinkHandlers:
    """org.conntrackd1.Sink, of the sink with this name."""

    def __init__(self, control: Control, name: str) -> None:
        self._control = control
        self._name = name

    async def enable(self) -> list[str]:
        return await self._control.enable_sink(self._name)

    async def disable(self) -> list[str]:
        return await self._control.disable_sink(self._name)

    async def flush(self) -> bool:
        return await self._control.flush_sink(self._name, FLUSH_SECONDS)

    async def set_filter(self, rules: list[str], timeout_s: int) -> list[str]:
        _check_timeout(timeout_s)
        return await self._control.set_sink_filter(self._name, rules, timeout_s)

    async def reset_filter(self) -> list[str]:
        return await self._control.reset_sink_filter(self._name)

    async def explain_filter(self, rules: list[str]) -> str:
        return await self._control.explain_sink_filter(self._name, rules)

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> str:
        return self._control.sink_status(self._name).state

    @property
    def last_error(self) -> str:
        return self._control.sink_status(self._name).error

    @property
    def counters(self) -> Counters:
        return dict(self._control.sink_status(self._name).counters)

    @property
    def rules(self) -> list[str]:
        return list(self._control.sink_status(self._name).filter.rules)

    @property
    def rule_count(self) -> int:
        return len(self._control.sink_status(self._name).filter.rules)

    @property
    def rule_matches(self) -> list[int]:
        return list(self._control.sink_status(self._name).rule_matches)

    @property
    def rule_suppressed(self) -> list[int]:
        return list(self._control.sink_status(self._name).rule_suppressed)

    @property
    def filter_origin(self) -> str:
        return self._control.sink_status(self._name).filter.origin

    @property
    def filter_expires(self) -> int:
        return self._control.sink_status(self._name).filter.expires_s
