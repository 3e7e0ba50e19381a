"""FLOW_METRICS: the metrics of an item of metrics.flows, each once, with NAME in the place of its name."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from conntrackd.bus.control import FlowCounts
from conntrackd.config.flow_metrics import FIELDS
from conntrackd.engine import DURATION_BOUNDS, Sums, Value
from conntrackd.flow import NANO
from conntrackd.metrics.table import FLOWS, Declaration, Samples
from conntrackd.render.fields import OutputField
from conntrackd.render.plain import render_value

OTHER: Final = "other"
NAME: Final = "NAME"
BUCKETS: Final = (*map(str, DURATION_BOUNDS), "+Inf")
Durations = Iterable[tuple[tuple[str, ...], list[tuple[str, float]], float]]
"""Values of labels, the buckets with what is in each and in all before it, and the sum."""


@dataclass(frozen=True, slots=True)
class FlowMetricDeclaration(Declaration):
    """`labels` are those beside the chosen fields."""

    type: Literal["counter", "gauge", "histogram"]
    read: Callable[[Sums], Samples] = lambda _: ()
    """Of one series; a histogram is read by list_durations()."""
    of_bytes: bool = False
    """Whether it is there with `bytes: true` alone."""

    def name_for(self, counts: FlowCounts) -> str:
        return self.name.replace(NAME, counts.setting.name)

    def list_samples(self, counts: FlowCounts) -> Samples:
        """Of all series."""
        for labels, sums, _ in _list_series(counts):
            for own, value in self.read(sums):
                yield (*labels, *own), value


def list_durations(counts: FlowCounts) -> Durations:
    """Of each series of which a duration is known."""
    for labels, sums, durations in _list_series(counts):
        if any(durations):
            buckets = list(zip(BUCKETS, map(float, accumulate(durations)), strict=True))
            yield labels, buckets, sums.seconds + sums.nanoseconds / NANO


def _list_series(counts: FlowCounts) -> Iterator[tuple[tuple[str, ...], Sums, tuple[int, ...]]]:
    """Values of labels, and what was counted; the last one is of what is beyond the bound."""
    fields = [FIELDS[name] for name in counts.setting.by]
    for values, (sums, durations) in counts.series:
        yield tuple(map(_render_value, fields, values)), Sums(*sums), durations
    if counts.overflows:
        sums, durations = counts.other
        yield (OTHER,) * len(fields), Sums(*sums), durations


def _render_value(output: OutputField, value: Value) -> str:
    return "" if value is None else render_value(output, value)


def _read_packets(sums: Sums) -> Samples:
    yield ("original",), sums.orig_packets
    yield ("reply",), sums.reply_packets


def _read_bytes(sums: Sums) -> Samples:
    yield ("original",), sums.orig_bytes
    yield ("reply",), sums.reply_bytes


def _name(end: str) -> str:
    return f"conntrackd_flows_{NAME}_{end}"


DIRECTION: Final = ("direction",)
FLOW_METRICS: Final = (
    FlowMetricDeclaration(
        FLOWS, _name("opened_total"), "Connections opened", (), "counter", lambda sums: [((), sums.opened)]
    ),
    FlowMetricDeclaration(
        FLOWS, _name("closed_total"), "Connections closed", (), "counter", lambda sums: [((), sums.closed)]
    ),
    FlowMetricDeclaration(
        FLOWS,
        _name("living"),
        "Connections opened and not closed",
        (),
        "gauge",
        lambda sums: [((), sums.living)],
    ),
    FlowMetricDeclaration(
        FLOWS,
        _name("packets_total"),
        "Packets of closed connections, by direction: original, reply",
        DIRECTION,
        "counter",
        _read_packets,
        of_bytes=True,
    ),
    FlowMetricDeclaration(
        FLOWS,
        _name("bytes_total"),
        "Bytes of closed connections, by direction: original, reply",
        DIRECTION,
        "counter",
        _read_bytes,
        of_bytes=True,
    ),
    FlowMetricDeclaration(
        FLOWS,
        _name("duration_seconds"),
        "How long closed connections lasted, where it is known",
        (),
        "histogram",
    ),
)
