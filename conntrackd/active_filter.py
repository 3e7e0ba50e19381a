"""Rules in force: from text to what decides, in the kernel and here, and the change from one to another."""

from collections.abc import Sequence
from dataclasses import dataclass

from conntrackd import bpf
from conntrackd.config import options
from conntrackd.config.read import Config, read_rules
from conntrackd.engine import Engine, RuleTable
from conntrackd.filter.ast import Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.explain import explain_rules
from conntrackd.filter.grammar import parse_rules
from conntrackd.filter.kernel import REMEMBERED, compile_kernel
from conntrackd.filter.never import EventScope, list_warnings
from conntrackd.filter.render import render
from conntrackd.netlink.shares import EventSockets
from conntrackd.pipeline import Pipeline
from conntrackd.records import Records, find_records, find_types


@dataclass(frozen=True, slots=True)
class Filter:
    """A list of rules and what became of it. `origin` says where it comes from, as people see it."""

    rules: tuple[str, ...]
    """In their canonical form."""
    origin: str
    tables: tuple[RuleTable, ...]
    """One for each reader."""
    groups: int
    """The kernel's groups that can matter, EventType bits."""
    program: bytes | None
    instructions: int
    warnings: tuple[str, ...]
    parsed: tuple[Rule, ...]
    records: Records
    """What becomes of what they keep."""

    def list_counts(self) -> list[int]:
        """Events that each rule decided; index 0: no rule matched."""
        return [sum(counts) for counts in zip(*(table.counts for table in self.tables), strict=True)]

    def explain(self, config: Config) -> str:
        """What became of the rules, for people."""
        protocols, events = config[options.CONNTRACK_PROTOCOLS], find_types(config)
        return explain_rules(self.parsed, protocols, events, remembers=self.records.remembered > 0)


def compile_filter(
    texts: Sequence[RuleText], origin: str, config: Config, engine: Engine, readers: int = 1
) -> Filter:
    """All that the rules become, for these settings. Raises the mistakes; changes nothing.

    `readers` is the number of those that run: another one in the settings waits for a restart.
    """
    rules, records = parse_rules(texts), find_records(config)
    protocols, events = config[options.CONNTRACK_PROTOCOLS], find_types(config)
    remembers = records.remembered > 0
    groups, program = events | (REMEMBERED if remembers else 0), None
    if config[options.CONNTRACK_KERNEL_FILTER]:
        kernel = compile_kernel(rules, protocols=protocols, events=events, remembers=remembers)
        groups, program = kernel.groups, kernel.program
    return Filter(
        rules=tuple(render(rule) for rule in rules),
        origin=origin,
        tables=tuple(engine.compile_table(rules, protocols, events) for _ in range(readers)),
        groups=groups,
        program=None if program is None else bpf.assemble(program),
        instructions=0 if program is None else len(program),
        warnings=tuple(map(str, list_warnings(rules, make_scope(config)))),
        parsed=tuple(rules),
        records=records,
    )


def make_scope(config: Config) -> EventScope:
    """What the settings let in, beside which a rule may be in vain."""
    has_table = config[options.CONNTRACK_SNAPSHOT] or config[options.CONNTRACK_RESYNC] != "off"
    return EventScope(
        find_types(config),
        config[options.CONNTRACK_PROTOCOLS],
        bool(config[options.GEOIP_DATABASE]),
        config[options.CONNTRACK_RECORDS] == "flows",
        has_table,
    )


def read_filter(config: Config, engine: Engine) -> Filter:
    """The filter of the configuration for a start. Raises the mistakes of its rules."""
    is_replay = config[options.CONNTRACK_REPLAY] is not None  # which is one sequence
    return compile_filter(
        *read_texts(config), config, engine, 1 if is_replay else config[options.CONNTRACK_READERS]
    )


def read_texts(config: Config) -> tuple[list[RuleText], str]:
    """The rules as they were written, and where."""
    return read_rules(config), ", ".join(map(str, config.paths)) or "command line and environment"


def change_filter(pipeline: Pipeline, events: EventSockets | None, old: Filter, new: Filter) -> None:
    """Replace `old` by `new` while events flow. `events` is None in a replay.

    No event is lost that both would keep, and none is decided by half of each: what the kernel drops, one
    program drops alone, which is as its own filter decides; what it passes up, one table decides alone.
    """
    if events is not None:
        events.join(new.groups & ~old.groups)
        events.attach(new.program)
    pipeline.tables, pipeline.records = new.tables, new.records
    if events is not None:
        events.leave(old.groups & ~new.groups)
