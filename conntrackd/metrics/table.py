"""METRICS: each metric once, with its name, type, help, labels, and where its numbers come from.

The exposition, docs/METRICS.md and conntrackd-metrics(7) are made from it. Names are those of
`conntrackctl stats` with `conntrackd_` in front, but for what is one metric with a label here.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from conntrackd.bus.control import Control, DaemonStatus, Statistics
from conntrackd.delivery.delays import DelayCounts
from conntrackd.delivery.sink import SinkState
from conntrackd.errors import ConntrackdError
from conntrackd.flow import NANO
from conntrackd.netlink import constants as c
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.table import ConntrackTable, TableFill
from conntrackd.stats import DROPPED, SinkStats, Stats

# The kernel counts a buffer twice. `stats` shows the size that was asked for, and this is to compare with its
# fill.
COUNTED: Final = 2


@dataclass(frozen=True, slots=True)
class State:
    """All that a scrape shows, of one moment."""

    status: DaemonStatus
    statistics: Statistics
    sinks: Mapping[str, str]
    """Name -> state."""
    now_ns: int
    table: TableFill | None = None
    """None where the kernel does not say."""
    cpus: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    """CPU -> its counters by CTA_STATS_*."""


def gather(control: Control, namespace: str | None) -> State:
    """In the main thread, like all of Control. `namespace`: where the connection table is.

    Of a kernel that does not answer nothing is shown.
    """
    fill, cpus = None, {}
    try:
        # As source/hearing.py looks: no socket is kept, and there is none to be out of step.
        with enter(namespace), closing(ConntrackTable()) as table:
            fill, cpus = table.measure(), table.read_cpus()
    except (ConntrackdError, OSError):
        pass  # what keeps events from coming is a problem of its own
    sinks = {name: control.sink_status(name).state for name in control.list_sinks()}
    return State(control.status(), control.statistics(), sinks, time.time_ns(), fill, cpus)


FLOWS: Final = "flows"
Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values of labels, and the number of these."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What docs/METRICS.md says of one."""

    section: str
    name: str
    help: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric(Declaration):
    """One metric. `read` finds its samples; a series that there is nothing for is left out."""

    read: Callable[[State], Samples]

    @property
    def type(self) -> Literal["counter", "gauge"]:
        """By the convention that a counter's name, and no other, ends so."""
        return "counter" if self.name.endswith("_total") else "gauge"


@dataclass(frozen=True, slots=True)
class Histogram(Declaration):
    """One histogram, with the buckets of delivery/delays.py."""

    read: Callable[[State], Iterable[tuple[tuple[str, ...], DelayCounts]]]

    @property
    def type(self) -> Literal["histogram"]:
        return "histogram"


HELP: Final = {item.name: str(item.metadata["help"]) for kind in (Stats, SinkStats) for item in fields(kind)}
TYPES: Final = {name: f"events_{name}_total" for name in ("new", "update", "destroy")}
# `events_tcp_total` and its like, which there are only for protocols that have been seen.
NAMED: Final = {item.name for item in fields(Stats)}

# Of nf_conntrack, for each CPU, under the names of `conntrack -S`.
CPU_COUNTERS: Final = {
    "found": (c.CTA_STATS_FOUND, "Entries that were found"),
    "invalid": (c.CTA_STATS_INVALID, "Packets that cannot be tracked"),
    "insert": (c.CTA_STATS_INSERT, "Entries that user space inserted"),
    "insert_failed": (
        c.CTA_STATS_INSERT_FAILED,
        "Entries not inserted, as another is there: a packet dropped",
    ),
    "drop": (c.CTA_STATS_DROP, "Packets dropped for want of an entry, such as for a full table"),
    "early_drop": (c.CTA_STATS_EARLY_DROP, "Entries removed to make room for new ones"),
    "error": (c.CTA_STATS_ERROR, "Packets with an error, of those that cannot be tracked"),
    "search_restart": (c.CTA_STATS_SEARCH_RESTART, "Searches begun anew because the table was resized"),
    "clash_resolve": (c.CTA_STATS_CLASH_RESOLVE, "Clashes of two entries that were resolved"),
    "chaintoolong": (c.CTA_STATS_CHAIN_TOOLONG, "Entries not inserted because a chain was too long"),
}


def _read(section: str, name: str, text: str, find: Callable[[State], float | None]) -> Metric:
    """One number, where there is one."""

    def read(state: State) -> Samples:
        value = find(state)
        return () if value is None else (((), value),)

    return Metric(section, f"conntrackd_{name}", text, (), read)


def _read_counter(section: str, name: str, text: str, unit: float = 1, counter: str = "") -> Metric:
    """A number of Statistics; `unit` is how many of the counter's are one here."""
    return _read(section, name, text, lambda state: state.statistics.counters[counter or name] / unit)


def _count(section: str, name: str) -> Metric:
    """A counter or number of Stats."""
    return _read_counter(section, name, HELP[name])


def _count_sink(name: str) -> Metric:
    """A counter or number of SinkStats, for each sink that has it: those of a spool need one."""

    def read(state: State) -> Samples:
        for sink, counters in state.statistics.sinks.items():
            if name in counters:
                yield (sink,), counters[name]

    return Metric("sinks", f"conntrackd_{name}", HELP[name], ("sink",), read)


def _count_cpu(name: str, number: int, text: str) -> Metric:
    def read(state: State) -> Samples:
        for cpu, numbers in sorted(state.cpus.items()):
            if number in numbers:
                yield (str(cpu),), numbers[number]

    return Metric("kernel", f"conntrackd_kernel_{name}_total", text, ("cpu",), read)


def _read_build(state: State) -> Samples:
    yield (state.status.version, sys.version.split()[0]), 1


def _read_types(state: State) -> Samples:
    for name, counter in TYPES.items():
        yield (name,), state.statistics.counters[counter]


def _read_protocols(state: State) -> Samples:
    for name, value in state.statistics.counters.items():
        if name.startswith("events_") and name not in NAMED:
            yield (name.removeprefix("events_").removesuffix("_total"),), value


def _read_lost(state: State) -> Samples:
    yield ("kernel",), state.statistics.counters["events_lost_total"]


def _read_dropped(state: State) -> Samples:
    for sink, counters in state.statistics.sinks.items():
        for reason, name in DROPPED.items():
            if name in counters:
                yield (sink, reason), counters[name]


def _read_states(state: State) -> Samples:
    for sink, current in state.sinks.items():
        for possible in SinkState:
            yield (sink, possible.value), int(possible.value == current)


def _read_ages(state: State) -> Samples:
    for sink, counters in state.statistics.sinks.items():
        oldest = counters["sink_oldest_event_ns"]
        yield (sink,), max(0, state.now_ns - oldest) / NANO if oldest else 0


def _read_delays(state: State) -> Iterator[tuple[tuple[str, ...], DelayCounts]]:
    for sink, counts in state.statistics.delays.items():
        if any(counts.events):
            yield (sink,), counts


def _read_rules(state: State) -> Samples:
    for number, count in enumerate(state.statistics.rule_matches):
        yield (str(number),), count


def _read_suppressed(state: State) -> Samples:
    for number, count in enumerate(state.statistics.rule_suppressed):
        yield (str(number),), count


def _read_series(state: State) -> Samples:
    for counts in state.statistics.flows:
        yield (counts.setting.name,), len(counts.series)


def _read_overflows(state: State) -> Samples:
    for counts in state.statistics.flows:
        yield (counts.setting.name,), counts.overflows


def _list_daemon() -> Iterator[Metric]:
    section = "daemon"
    text = "Always 1; the labels say what is running"
    yield Metric(section, "conntrackd_build_info", text, ("version", "python"), _read_build)
    text = "When the daemon was started, in seconds since 1970"
    yield _read(section, "start_time_seconds", text, lambda state: state.status.start_us / 1e6)
    text = "1 where `conntrackctl status` says healthy, else 0"
    yield _read(section, "healthy", text, lambda state: int(not state.status.problems))
    text = "Problems that `conntrackctl status` lists"
    yield _read(section, "problems", text, lambda state: len(state.status.problems))
    for name in ("reloads_total", "reloads_failed_total", "geoip_lookups_total", "geoip_errors_total"):
        yield _count(section, name)
    for name, text in (
        ("tails_open", "Live tails that are open"),
        ("tails_opened_total", "Live tails that were opened"),
        ("tails_dropped_total", "Events that live tails had no room for"),
    ):
        yield _read_counter(section, name, text)


def _list_events() -> Iterator[Metric]:
    section = "events"
    yield _count(section, "events_received_total")
    text = f"{HELP['events_lost_total']}; `where` is always kernel"
    yield Metric(section, "conntrackd_events_lost_total", text, ("where",), _read_lost)
    for name in ("malformed", "forged", "filtered", "suppressed", "accepted"):
        yield _count(section, f"events_{name}_total")
    text = "Events handed to the sinks, by type: new, update, destroy"
    yield Metric(section, "conntrackd_events_by_type_total", text, ("type",), _read_types)
    text = "Events handed to the sinks, by protocol, for those that were seen"
    yield Metric(section, "conntrackd_events_by_protocol_total", text, ("protocol",), _read_protocols)
    for name in (
        *("flows_total", "flows_forgotten_total", "heartbeats_total", "heartbeats_without_room_total"),
        *("events_snapshot_total", "events_retried_total"),
    ):
        yield _count(section, name)
    yield _count(section, "table_readings_total")
    yield _count(section, "table_errors_total")
    yield _count(section, "batches_received_total")
    text = "Size of the socket's receive buffer as the kernel counts it: twice conntrack.buffer"
    yield _read_counter(section, "buffer_bytes", text, 1 / COUNTED)
    yield _count(section, "buffer_used_bytes")
    yield _count(section, "buffer_peak_bytes")
    text = "Events that a rule decided, by its number, 0 for no rule; begins anew with another filter"
    yield Metric(section, "conntrackd_rule_matches_total", text, ("rule",), _read_rules)
    text = "Events beyond the limit of a rule, by its number, of those that it decided; 0 without a limit"
    yield Metric(section, "conntrackd_rule_suppressed_total", text, ("rule",), _read_suppressed)


def _list_sinks() -> Iterator[Metric | Histogram]:
    section = "sinks"
    text = f"1 for the state that the sink is in, else 0: {', '.join(state.value for state in SinkState)}"
    yield Metric(section, "conntrackd_sink_state", text, ("sink", "state"), _read_states)
    for name in ("taken", "filtered", "restored", "delivered"):
        yield _count_sink(f"sink_events_{name}_total")
    text = f"Events that were dropped, by reason: {', '.join(DROPPED)}"
    yield Metric(section, "conntrackd_sink_events_dropped_total", text, ("sink", "reason"), _read_dropped)
    yield _count_sink("sink_events_queued")
    yield _count_sink("sink_events_spooled")
    text = "Age of the oldest event that waits, 0 for none"
    yield Metric(section, "conntrackd_sink_oldest_event_age_seconds", text, ("sink",), _read_ages)
    text = "Time from the kernel's time stamp to the sink, of the first event of each batch for all of it"
    yield Histogram(section, "conntrackd_sink_delay_seconds", text, ("sink",), _read_delays)
    for name in ("batches_delivered", "retries", "spool_errors", "spool_damaged", "bytes"):
        yield _count_sink(f"sink_{name}_total")


def _list_kernel() -> Iterator[Metric]:
    section = "kernel"
    text = "Flows in the connection table"
    yield _read(section, "table_entries", text, lambda state: state.table and state.table.entries)
    text = "Flows that the connection table may hold (net.netfilter.nf_conntrack_max)"
    yield _read(section, "table_limit", text, lambda state: state.table and state.table.limit)
    for name, (number, text) in CPU_COUNTERS.items():
        yield _count_cpu(name, number, text)


def _list_process() -> Iterator[Metric]:
    section = "process"
    yield _read_counter(section, "process_cpu_seconds_total", "CPU time used", 1e6, "process_cpu_us_total")
    yield _read_counter(section, "process_memory_bytes", "Memory in use")
    yield _read_counter(section, "process_memory_peak_bytes", "Most memory that was in use")


def _list_flows() -> Iterator[Metric]:
    """Of each item; its own metrics are in flow_table.py."""
    name = "conntrackd_flow_series"
    yield Metric(
        FLOWS, name, "Series of an item of metrics.flows, without the one `other`", ("metric",), _read_series
    )
    text = "Events counted in the series `other`, as there were max_series others"
    yield Metric(FLOWS, f"{name}_overflows_total", text, ("metric",), _read_overflows)


METRICS: Final[tuple[Metric | Histogram, ...]] = (
    *_list_daemon(),
    *_list_events(),
    *_list_sinks(),
    *_list_kernel(),
    *_list_process(),
    *_list_flows(),
)
