"""Rules in force: from text to what decides, in the kernel and here, and the change from one to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd import bpf
from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.config.rules import list_rules, read_rules, read_sets
from conntrackd.engine import Engine, Opaque, RuleTable
from conntrackd.errors import ConntrackdError, ManyErrors
from conntrackd.filter.ast import Rule, put_sets
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.explain import list_sections, render_sections
from conntrackd.filter.grammar import parse_rules
from conntrackd.filter.kernel import REMEMBERED, compile_kernel
from conntrackd.filter.never import (
    LOGS_NOTHING_HINT,
    EventScope,
    list_notes,
    list_silence,
    list_unknown_countries,
    list_warnings,
    logs_nothing,
)
from conntrackd.filter.render import render
from conntrackd.filter.sets import NO_SETS, Sets
from conntrackd.flow import ALL_EVENTS, EventType
from conntrackd.metrics.flows import FlowMetric, open_flow_metrics
from conntrackd.netlink.socket import EventSockets
from conntrackd.pipeline import Pipeline
from conntrackd.records import Records, choose_records, list_types
from conntrackd.sinks import list_sinks

if TYPE_CHECKING:  # maxminddb is for those who have a database
    from conntrackd.geoip.databases import GeoIP

RUN_TIME: Final = "until a reload or restart"


@dataclass(frozen=True, slots=True)
class CoreFilter:
    """A list of rules and what became of it. `origin` says where it comes from, as people see it.

    Of a sink's own filter this is all; none of it is in the kernel, which serves all sinks.
    """

    rules: tuple[str, ...]
    """In their canonical form."""
    origin: str
    tables: tuple[RuleTable, ...]
    """One for each reader."""
    warnings: tuple[str, ...]
    parsed: tuple[Rule, ...]

    def list_counts(self) -> list[int]:
        """Events that each rule decided; index 0: no rule matched."""
        return [sum(counts) for counts in zip(*(table.counts for table in self.tables), strict=True)]

    def list_suppressed(self) -> list[int]:
        """Events that the limit of each rule has held back, likewise; all are 0 where no rule has one."""
        limits = self.tables[0].limits
        return [0] * (len(self.rules) + 1) if limits is None else limits.totals

    def list_doubts(self, geoip: "GeoIP | None") -> list[str]:
        """What is doubtful in it, also beside what the databases know."""
        known = frozenset[str]() if geoip is None else geoip.countries
        return [*self.warnings, *map(str, list_unknown_countries(self.parsed, known))]

    def list_remarks(self, geoip: "GeoIP | None") -> list[str]:
        """Lines for whoever puts it in force: warnings, and notes of what is right but maybe not meant."""
        doubts = [f"warning: {doubt}" for doubt in self.list_doubts(geoip)]
        return doubts + [f"note: {note}" for note in list_notes(self.parsed)]


@dataclass(frozen=True, slots=True)
class Filter(CoreFilter):
    """The global filter, of which the kernel gets a part."""

    groups: int
    """The kernel's groups that can matter, EventType bits."""
    program: bytes | None
    instructions: int
    records: Records
    """What becomes of what they keep."""

    def explain(self, config: Config, sets: Sets) -> str:
        """What became of the rules, for people; with the sets of now."""
        protocols, events = config[options.CONNTRACK_PROTOCOLS], list_types(config)
        remembers = self.records.remembered > 0
        sections = list_sections(put_sets(self.parsed, sets), protocols, events, remembers=remembers)
        return render_sections(sections)


class RuleChange(NamedTuple):
    """All that decides, compiled: what a reload prepares, and then puts in force."""

    config: Config
    """Where they are written."""
    filter: Filter
    sinks: Mapping[str, CoreFilter]
    sets: Sets
    opened: Opaque
    """What the engine has made of the sets."""
    flow_metrics: Sequence[FlowMetric]


def prepare_rules(rules: Config, config: Config, pipeline: Pipeline) -> RuleChange:
    """What `rules` has, for the other settings of `config`. Raises the mistakes; changes nothing."""
    engine, readers, sets = pipeline.engine, len(pipeline.readers), read_sets(rules)
    return RuleChange(
        rules,
        compile_filter(*read_texts(rules), config, engine, readers, sets),
        compile_sink_filters(rules, config, engine, readers, sets),
        sets,
        engine.open_sets(sets),
        open_flow_metrics(config, pipeline, sets),
    )


def compile_filter(
    texts: Sequence[RuleText],
    origin: str,
    config: Config,
    engine: Engine,
    readers: int = 1,
    sets: Sets = NO_SETS,
) -> Filter:
    """All that the rules become, for these settings and sets. Raises the mistakes; changes nothing.

    `readers` is the number of those that run: another one in the settings waits for a restart.
    """
    rules, records = parse_rules(texts, sets), choose_records(config)
    protocols, events = config[options.CONNTRACK_PROTOCOLS], list_types(config)
    remembers = records.remembered > 0
    groups, program = events & ALL_EVENTS | (REMEMBERED if remembers else 0), None
    if config[options.CONNTRACK_KERNEL_FILTER]:
        kernel = compile_kernel(rules, protocols=protocols, events=events, remembers=remembers)
        groups, program = kernel.groups, kernel.program
    return Filter(
        rules=tuple(render(rule) for rule in rules),
        origin=origin,
        # Heartbeats last until a restart, whatever a reload says of them.
        tables=_compile_tables(engine, rules, readers, protocols, events | EventType.ALIVE),
        groups=groups,
        program=None if program is None else bpf.assemble(program),
        instructions=0 if program is None else len(program),
        warnings=tuple(map(str, [*list_warnings(rules, make_scope(config)), *list_silence(rules)])),
        parsed=tuple(rules),
        records=records,
    )


def _compile_tables(
    engine: Engine,
    rules: Sequence[Rule],
    readers: int,
    protocols: frozenset[int] | None = None,
    events: int = ALL_EVENTS,
) -> tuple[RuleTable, ...]:
    """One for each reader, with the same limits: these are of the daemon, whatever reads its events."""
    limits = engine.open_limits(rules)
    return tuple(engine.compile_table(rules, protocols, events, limits) for _ in range(readers))


def compile_sink_filter(
    texts: Sequence[RuleText],
    origin: str,
    config: Config,
    engine: Engine,
    readers: int = 1,
    sets: Sets = NO_SETS,
) -> CoreFilter:
    """The same for the rules of one sink, which decide about what the global filter keeps."""
    rules = parse_rules(texts, sets)
    warnings = [str(warning) for warning in list_warnings(rules, make_scope(config))]
    if logs_nothing(rules):
        warnings.append(f"the filter logs no event\nhint: {LOGS_NOTHING_HINT}")
    return CoreFilter(
        rules=tuple(render(rule) for rule in rules),
        origin=origin,
        tables=_compile_tables(engine, rules, readers),
        warnings=tuple(warnings),
        parsed=tuple(rules),
    )


def compile_sink_filters(
    rules: Config, config: Config, engine: Engine, readers: int, sets: Sets
) -> dict[str, CoreFilter]:
    """Of each sink that `config` enables, by its name: what `rules` has for it. Raises all mistakes.

    Of a named one that `rules` does not have, or not of this kind, it is what `config` has.
    """
    origin, found = name_origin(rules), {}
    mistakes: list[ConntrackdError] = []
    for name, kind, own in filter(lambda sink: sink.is_enabled, list_sinks(config)):
        try:
            view = rules.view(name) if own.sink is None or rules.has(own.sink) else own
            texts = list_rules(view, option=kind.filter)
            found[name] = compile_sink_filter(texts, origin, config, engine, readers, sets)
        except ManyErrors as error:
            mistakes += error.errors
    if mistakes:
        raise ManyErrors(mistakes)
    return found


def make_scope(config: Config) -> EventScope:
    """What the settings let in, beside which a rule may be in vain."""
    has_table = config[options.CONNTRACK_SNAPSHOT] or config[options.CONNTRACK_RESYNC] != "off"
    return EventScope(
        list_types(config),
        config[options.CONNTRACK_PROTOCOLS],
        bool(config[options.GEOIP_DATABASE]),
        config[options.CONNTRACK_RECORDS] == "flows",
        has_table,
    )


def read_filter(config: Config, engine: Engine, sets: Sets) -> Filter:
    """The filter of the configuration for a start, with the sets that were read. Raises the mistakes."""
    return compile_filter(*read_texts(config), config, engine, count_readers(config), sets)


def read_sink_filters(config: Config, engine: Engine, sets: Sets) -> dict[str, CoreFilter]:
    """Those of the sinks, likewise."""
    return compile_sink_filters(config, config, engine, count_readers(config), sets)


def count_readers(config: Config) -> int:
    """How many there are at a start."""
    is_replay = config[options.CONNTRACK_REPLAY] is not None  # which is one sequence
    return 1 if is_replay else config[options.CONNTRACK_READERS]


def read_texts(config: Config) -> tuple[list[RuleText], str]:
    """The rules as they were written, and where."""
    return read_rules(config), name_origin(config)


def name_origin(config: Config) -> str:
    """Where the rules of a configuration come from, for people."""
    return ", ".join(map(str, config.paths)) or "command line and environment"


def name_run_time(timeout_s: int) -> str:
    """Where rules come from that somebody has set, and how long they last."""
    return f"run time, {f'for {timeout_s} s' if timeout_s else RUN_TIME}"


def list_sink_tables(sinks: Mapping[str, CoreFilter]) -> dict[str, Sequence[RuleTable]]:
    """What decides for those sinks that have rules of their own: others cost nothing."""
    return {name: own.tables for name, own in sinks.items() if own.rules}


def change_filter(
    pipeline: Pipeline,
    events: EventSockets | None,
    old: Filter,
    new: Filter,
    sinks: Mapping[str, CoreFilter],
    sets: Opaque = None,
) -> None:
    """Replace `old` by `new` while events flow, and all the sinks' own filters by `sinks`.

    `sets` as in Pipeline.set_tables().

    `events` is None in a replay. No event is lost that both would keep, and none is decided by half of each:
    what the kernel drops, one program drops alone, which is as its own filter decides; what it passes up, the
    tables of one change decide alone.
    """
    if events is not None:
        events.join(new.groups & ~old.groups)
        events.attach(new.program)
    pipeline.set_tables(new.tables, list_sink_tables(sinks), new.records, sets)
    if events is not None:
        events.leave(old.groups & ~new.groups)
