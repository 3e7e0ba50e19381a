"""The filters of single sinks: those of the configuration, those in force, and how long these last.

All of it happens in the thread of the event loop.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from conntrackd.active_filter import CoreFilter, compile_sink_filter, list_sink_tables, name_run_time
from conntrackd.apart import run_apart, run_to_its_end
from conntrackd.bus.control import NO_FILTER, FilterStatus
from conntrackd.errors import RuleError
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.explain import explain_sink_rules
from conntrackd.filter.never import LOGS_FIRST_HINT, list_silence, logs_nothing

if TYPE_CHECKING:
    from conntrackd.daemon import Daemon
    from conntrackd.geoip.databases import GeoIP  # maxminddb is for those who have a database

logger = logging.getLogger(__name__)


class SinkFilters:
    """By the name of the sink; every sink that there is has one, which may have no rules."""

    def __init__(self, daemon: "Daemon", configured: Mapping[str, CoreFilter]) -> None:
        self._daemon = daemon
        self._configured = dict(configured)
        self.in_force = dict(configured)
        """What decides now."""
        self._reverts: dict[str, asyncio.TimerHandle] = {}

    def configure(self, configured: Mapping[str, CoreFilter]) -> None:
        """Those of the configuration, in the place of all others. The caller puts them in force."""
        for name in list(self._reverts):
            self._forget_revert(name)
        self._configured, self.in_force = dict(configured), dict(configured)

    def apply(self) -> None:
        """Have the tables of these decide, and of no sink that has gone."""
        daemon = self._daemon
        own = list_sink_tables(self.in_force)
        daemon.pipeline.set_tables(daemon.filter.tables, own, daemon.filter.records)

    async def set(self, name: str, rules: Sequence[str], timeout_s: int) -> list[str]:
        """Until reset() or configure(), or for a time; as lines for people. Raises the mistakes."""
        new = await run_apart(compile_sink_filter, *self._prepare(rules, name_run_time(timeout_s)))
        lines = self._put_in_force(name, new)
        if timeout_s:
            loop = asyncio.get_running_loop()
            self._reverts[name] = loop.call_later(timeout_s, self._end_run_time, name)
        return lines

    async def reset(self, name: str) -> list[str]:
        """Back to that of the configuration."""
        return self._put_in_force(name, self._configured[name])

    async def explain(self, name: str, rules: Sequence[str]) -> str:
        """What becomes of the rules; with none, of those in force."""
        shown = await self.compile_to_look(rules) if rules else self.in_force[name]
        return await run_to_its_end(explain_sink_rules, name, shown.parsed)

    async def compile_to_look(self, rules: Sequence[str]) -> CoreFilter:
        """What the rules become for a sink. Raises the mistakes."""
        return await run_to_its_end(compile_sink_filter, *self._prepare(rules, ""))

    def list_changed(self) -> list[str]:
        """Names of the sinks whose filter is not the one of the configuration."""
        return [name for name, rules in self.in_force.items() if rules is not self._configured[name]]

    def list_silence(self) -> list[RuleError]:
        """Why nothing is logged, whatever comes: the global filter, those of all sinks in use, or both."""
        daemon = self._daemon
        found = list_silence(daemon.filter.parsed)
        used = [name for name, outbox in daemon.outboxes.items() if not outbox.is_out()]
        own = [self.in_force[name].parsed for name in used if name in self.in_force]
        if own and len(own) == len(used) and all(map(logs_nothing, own)):
            found.append(RuleError("the filters of all sinks log no event", hint=LOGS_FIRST_HINT))
        return found

    def get_status(self, name: str) -> FilterStatus:
        """As it is shown to people."""
        rules, revert = self.in_force.get(name), self._reverts.get(name)
        if rules is None:  # a reload has removed it, and its sink is on its way out
            return NO_FILTER
        left = 0 if revert is None else max(1, round(revert.when() - asyncio.get_running_loop().time()))
        return FilterStatus(rules.rules, rules.origin, left)

    def list_counts(self, name: str) -> list[int]:
        """Events that each rule of a sink's filter decided; empty where it has no rules."""
        rules = self.in_force.get(name)
        return rules.list_counts() if rules is not None and rules.rules else []

    def list_suppressed(self, name: str) -> list[int]:
        """Of these events, those that the limit of each rule has held back."""
        rules = self.in_force.get(name)
        return rules.list_suppressed() if rules is not None and rules.rules else []

    def _prepare(self, rules: Sequence[str], origin: str) -> tuple[object, ...]:
        """What compile_sink_filter() takes."""
        daemon = self._daemon
        texts, readers = [RuleText(rule) for rule in rules], len(daemon.pipeline.readers)
        return texts, origin, daemon.config, daemon.engine, readers, daemon.live_sets.in_force

    def _put_in_force(self, name: str, new: CoreFilter) -> list[str]:
        daemon = self._daemon
        self._forget_revert(name)
        self.in_force[name] = new
        self.apply()
        daemon.notify_changed()
        return describe(name, new, daemon.pipeline.geoip)

    def _end_run_time(self, name: str) -> None:
        lines = self._put_in_force(name, self._configured[name])
        logger.info("the run-time filter has expired, %s", lines[0])

    def _forget_revert(self, name: str) -> None:
        timer = self._reverts.pop(name, None)
        if timer is not None:
            timer.cancel()


def describe(name: str, rules: CoreFilter, geoip: "GeoIP | None") -> list[str]:
    """The filter of one sink, for people."""
    count = len(rules.rules)
    first = f"{count} rule{'' if count == 1 else 's'} in force for sink {name}, from {rules.origin}"
    return [first, *rules.list_remarks(geoip)]


def list_warnings(rules: CoreFilter, own: Mapping[str, CoreFilter], geoip: "GeoIP | None") -> list[str]:
    """What is doubtful in the global filter and in those of sinks."""
    of_sinks = [f"sink {name}: {doubt}" for name, sink in own.items() for doubt in sink.list_doubts(geoip)]
    return [*rules.list_doubts(geoip), *of_sinks]
