"""State -> the text that Prometheus reads, by python3-prometheus-client; its import costs 5 MB.

Its registry is one of ours with nothing in it but the daemon: no collectors of its own.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from conntrackd.bus.control import FlowCounts
from conntrackd.delivery.delays import BOUNDS
from conntrackd.metrics.flow_table import FLOW_METRICS, FlowMetricDeclaration, list_durations
from conntrackd.metrics.table import METRICS, Histogram, State

# Of every version of the library: what it chooses itself differs, and newer ones repeat what the client sent.
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
GENERATORS: Final[dict[str, Callable[[CollectorRegistry], bytes]]] = {
    TEXT: generate_latest,
    OPENMETRICS: generate_openmetrics,
}


class _StateCollector(Collector):
    """The metrics of one state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def describe(self) -> Iterator[Family]:
        """Nothing: names cannot clash where there is one collector."""
        yield from ()

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            if isinstance(metric, Histogram):
                yield _render_histogram(metric, self._state)
                continue
            family: CounterMetricFamily | GaugeMetricFamily
            if metric.type == "counter":
                family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            else:
                family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.read(self._state):
                family.add_metric(labels, value)
            yield family
        for counts in self._state.statistics.flows:
            for declared in FLOW_METRICS:
                if counts.setting.bytes or not declared.of_bytes:
                    yield _render_flows(declared, counts)


def _render_histogram(metric: Histogram, state: State) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = (*map(str, BOUNDS), "+Inf")
    for labels, counts in metric.read(state):
        buckets = list(zip(bounds, map(float, accumulate(counts.events)), strict=True))
        family.add_metric(labels, buckets, counts.seconds)
    return family


def _render_flows(declared: FlowMetricDeclaration, counts: FlowCounts) -> Family:
    name, labels = declared.name_for(counts), (*counts.setting.labels, *declared.labels)
    if declared.type == "histogram":
        histogram = HistogramMetricFamily(name, declared.help, labels=labels)
        for values, buckets, seconds in list_durations(counts):
            histogram.add_metric(values, buckets, seconds)
        return histogram
    kind = CounterMetricFamily if declared.type == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(name, declared.help, labels=labels)
    for values, number in declared.list_samples(counts):
        family.add_metric(values, number)
    return family


def render(state: State, content_type: str = TEXT) -> bytes:
    """In one of the formats of GENERATORS."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(state))
    return GENERATORS[content_type](registry)
