"""A known state, and the daemon's Control that says the same."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from conntrackd.bus.control import DaemonStatus, FilterStatus, FlowCounts, Statistics
from conntrackd.config.flow_metrics import FlowMetricSetting
from conntrackd.delivery.delays import BOUNDS, DelayCounts
from conntrackd.metrics.table import CPU_COUNTERS, State
from conntrackd.netlink.table import TableFill
from conntrackd.stats import SinkStats, Stats
from tests.bus.recorder import Recorder

NOW_NS = 1_800_000_000_000_000_000
OTHERS = (
    *("problems", "tails_open", "tails_opened_total", "tails_dropped_total"),
    *("process_memory_bytes", "process_memory_peak_bytes", "process_cpu_us_total"),
)

DELAYS = DelayCounts((1, *[0] * (len(BOUNDS) - 1), 2), 9000.5)

OF_PORTS = FlowCounts(
    FlowMetricSetting("by_port", ("protocol", "destination.port", "nat.source.address"), bytes=True),
    [
        (
            (6, 443, bytes([192, 0, 2, 9])),
            ((70, 60, 10, 71, 72, 73, 74, 75, 500_000_000), (1, 0, 2, *[0] * 5, 3)),
        ),
        ((1, None, None), ((5, 4, 3, *[0] * 6), (0,) * 9)),
    ],
    ((9, 8, 7, *[0] * 6), (0,) * 9),
    17,
)
IN_ALL = FlowCounts(
    FlowMetricSetting("all"), [((), ((90, 91, 0, *[0] * 6), (0,) * 9))], ((0,) * 9, (0,) * 9), 0
)


def number(kind: type[Any], first: int) -> dict[str, int]:
    """Each counter of a kind has a number of its own."""
    return {field.name: first + index for index, field in enumerate(fields(kind))}


def make_counters() -> dict[str, int]:
    return {
        **number(Stats, 1000),
        **{name: 2000 + index for index, name in enumerate(OTHERS)},
        "events_tcp_total": 2100,
        "events_132_total": 2101,
    }


def make_sinks() -> dict[str, dict[str, int]]:
    waiting = {"sink_oldest_event_ns": NOW_NS - 1_500_000_000}
    return {
        "journal": number(SinkStats, 3000) | {"sink_oldest_event_ns": 0},
        "loki": number(SinkStats, 4000) | waiting,
    }


def make_status(*problems: str) -> DaemonStatus:
    return DaemonStatus(
        "2.0.0", 1_700_000_000_500_000, (), FilterStatus((), "default"), 64 << 20, "info", problems=problems
    )


def make_state(*problems: str, cpus: Mapping[int, Mapping[int, int]] | None = None) -> State:
    numbers = {number: 10 * number for number, _ in CPU_COUNTERS.values()}
    return State(
        make_status(*problems),
        Statistics(
            make_counters(),
            make_sinks(),
            (5, 6),
            {"journal": DELAYS, "loki": DelayCounts()},
            (0, 3),
            (OF_PORTS, IN_ALL),
        ),
        {"journal": "ok", "loki": "retrying"},
        NOW_NS,
        TableFill(12, 262_144),
        {0: numbers, 1: {kind: value + 1 for kind, value in numbers.items()}} if cpus is None else cpus,
    )


def make_control(*problems: str) -> Recorder:
    """What gather() makes a state of."""
    control = Recorder()
    control.present = make_status(*problems)
    control.counters = make_counters()
    control.sinks = {
        name: type(sink)(sink.state, sink.error, make_sinks()[name]) for name, sink in control.sinks.items()
    }
    return control
