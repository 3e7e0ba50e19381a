"""A Control that records what it is asked, and answers from what a test puts into it."""

import asyncio
import os
from dataclasses import replace
from typing import Any

from conntrackd.bus.control import (
    FLUSH_SECONDS,
    Control,
    DaemonStatus,
    Descriptor,
    FilterStatus,
    Finding,
    Listener,
    SetEntry,
    SetStatus,
    SinkStatus,
    Statistics,
)
from conntrackd.errors import ConntrackdError, RuleError, UsageError
from conntrackd.flow import EventType


class Recorder(Control):
    """Implements Control for tests."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.listeners: list[Listener] = []
        self.pipes: list[int] = []
        self.sinks = {
            "journal": SinkStatus("ok", "", {"sink_events_delivered_total": 7}),
            "loki": SinkStatus("retrying", "connection refused", {"sink_events_delivered_total": 0}),
        }
        self.sets = [
            SetStatus("bad", "/etc/bad.txt", 1234, 2, 1, 90, ("rule 1", "rule 2 of sink loki")),
            SetStatus("own", "/etc/own.txt", 0),
        ]
        self.pages = {
            "": [SetEntry("10.0.0.0/8"), SetEntry("192.0.2.7", "added", 90)],
            "192.0.2.7": [SetEntry("2001:db8::1", "removed")],
        }
        self.counters = {"events_received_total": 5, "events_lost_total": 0}
        self.present = DaemonStatus(
            version="2.0.0",
            start_us=1_700_000_000_000_000,
            paths=("/etc/conntrackd/conntrackd.yaml",),
            filter=FilterStatus(
                ("drop destination network LOCAL", "drop protocol UDP"),
                "configuration",
                groups=EventType.NEW | EventType.DESTROY,
                instructions=42,
            ),
            buffer=64 << 20,
            log_level="info",
        )

    async def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def reload(self) -> list[str]:
        await self._note("reload")
        return ["filter: 2 rules"]

    async def reload_filter(self) -> list[str]:
        await self._note("reload_filter")
        return ["filter: 2 rules"]

    async def set_filter(self, rules: list[str], timeout_s: int) -> list[str]:
        await self._note("set_filter", tuple(rules), timeout_s)
        for number, rule in enumerate(rules, 1):
            if "bad" in rule:
                raise RuleError("unknown word 'bad'", origin=f"rule {number}", excerpt=f"{rule}\n^^^")
        self.present = replace(
            self.present, filter=FilterStatus(tuple(rules), "run-time", timeout_s, EventType.NEW, 3)
        )
        self.tell_filter()
        return [f"filter: {len(rules)} rules, until a restart or reload"]

    async def reset_filter(self) -> list[str]:
        await self._note("reset_filter")
        return []

    async def check_filter(self, rules: list[str]) -> list[str]:
        await self._note("check_filter", tuple(rules))
        return [rule.lower() for rule in rules]

    async def explain_filter(self, rules: list[str]) -> str:
        await self._note("explain_filter", tuple(rules))
        return "def select(batch): ..."

    async def tail(self, rules: list[str], limit: int) -> Descriptor:
        await self._note("open_tail", tuple(rules), limit)
        reading, writing = os.pipe()
        os.write(writing, b'{"msg":"one"}\n')
        os.close(writing)
        return Descriptor(reading)

    async def doctor(self) -> list[Finding]:
        await self._note("examine")
        return [
            Finding(
                "warning", "acct", "nf_conntrack_acct is 0", "sysctl -w net.netfilter.nf_conntrack_acct=1"
            )
        ]

    async def set_log_level(self, level: str) -> list[str]:
        self.asked.append(("set_log_level", level))
        self.present = replace(self.present, log_level=level, run_time=("log level",))
        self._report_status()
        return [f"log level is {level}"]

    def status(self) -> DaemonStatus:
        return self.present

    def statistics(self) -> Statistics:
        sinks = {name: sink.counters for name, sink in self.sinks.items()}
        return Statistics(self.counters, sinks, (3, 1, 4), rule_suppressed=(0, 0, 3))

    def list_sinks(self) -> list[str]:
        return list(self.sinks)

    def sink_status(self, name: str) -> SinkStatus:
        return self.sinks[name]

    async def enable_sink(self, name: str) -> list[str]:
        await self._note("enable_sink", name)
        self.set_state(name, "ok")
        return [f"sink {name} is enabled"]

    async def set_sink_filter(self, name: str, rules: list[str], timeout_s: int) -> list[str]:
        await self._note("set_sink_filter", name, tuple(rules), timeout_s)
        own = FilterStatus(tuple(rules), "run-time", timeout_s)
        self.sinks[name] = replace(self.sinks[name], filter=own, rule_matches=(0,) * (len(rules) + 1))
        self._report_status()
        return [f"sink {name}: {len(rules)} rules"]

    async def reset_sink_filter(self, name: str) -> list[str]:
        await self._note("reset_sink_filter", name)
        return [f"sink {name}: 0 rules"]

    async def explain_sink_filter(self, name: str, rules: list[str]) -> str:
        await self._note("explain_sink_filter", name, tuple(rules))
        return "Rules\n     1  drop any"

    async def list_sets(self) -> list[SetStatus]:
        await self._note("list_sets")
        return list(self.sets)

    async def show_set(self, name: str, after: str) -> list[SetEntry]:
        await self._note("show_set", name, after)
        return self.pages.get(after, [])

    async def reload_sets(self, names: list[str]) -> list[str]:
        await self._note("reload_sets", tuple(names))
        return ["nothing has changed"]

    async def add_to_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        await self._note("add_to_set", name, tuple(entries), timeout_s)
        return [f"added to @{name}"]

    async def remove_from_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        await self._note("remove_from_set", name, tuple(entries), timeout_s)
        return [f"removed from @{name}"]

    async def disable_sink(self, name: str) -> list[str]:
        await self._note("disable_sink", name)
        self.set_state(name, "disabled")
        return [f"sink {name} is disabled"]

    async def flush_sink(self, name: str) -> bool:
        await self._note("flush_sink", name, FLUSH_SECONDS)
        return True

    def subscribe(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def set_state(self, name: str, state: str) -> None:
        self.sinks[name] = replace(self.sinks[name], state=state)
        self._report_status()

    def _report_status(self) -> None:
        for listener in self.listeners:
            listener.status_changed()

    def tell_filter(self) -> None:
        for listener in self.listeners:
            listener.filter_changed()

    def tell_lost(self, count: int) -> None:
        for listener in self.listeners:
            listener.events_lost(count)


def fail(text: str) -> ConntrackdError:
    """An error with all its parts."""
    return UsageError(text, hint="a hint", origin="somewhere", excerpt="text\n^^^^")
