"""METRICS -> the lists of docs/METRICS.md and conntrackd-metrics(7)."""

import textwrap
from collections.abc import Callable
from itertools import groupby
from typing import Final

from conntrackd.metrics.flow_table import FLOW_METRICS, FlowMetricDeclaration
from conntrackd.metrics.table import FLOWS, METRICS, Histogram, Metric

TITLES: Final = {
    "daemon": "The daemon",
    "events": "Events",
    "sinks": "Sinks",
    "kernel": "The kernel's connection table",
    "process": "The process",
    FLOWS: "Connections (metrics.flows)",
}
HEADING: Final = "| metric | type | labels | what it is |"
WIDTH: Final = 76
ALL: Final = (*METRICS, *FLOW_METRICS)


def render_markdown() -> str:
    """A table for each section."""
    lines = []
    for section, members in groupby(ALL, lambda metric: metric.section):
        lines += [f"### {TITLES[section]}", "", HEADING, "|---|---|---|---|"]
        for metric in members:
            labels = ", ".join([*_list_chosen(metric), *(f"`{label}`" for label in metric.labels)])
            lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


def render_man(escape: Callable[[str], str]) -> str:
    """An mdoc list for each section; `escape` makes text safe for it."""
    lines = []
    for section, members in groupby(ALL, lambda metric: metric.section):
        lines += [f".Ss {escape(TITLES[section])}", ".Bl -tag -width Ds"]
        for metric in members:
            lines.append(f".It Ic {metric.name}")
            sentence = f"{metric.help} ({_describe(metric)})."
            lines += [escape(line) for line in textwrap.wrap(sentence, WIDTH, break_on_hyphens=False)]
        lines.append(".El")
    return "\n".join(lines)


def _describe(metric: Metric | Histogram | FlowMetricDeclaration) -> str:
    labels = [*_list_chosen(metric), *metric.labels]
    return f"{metric.type} by {' and '.join(labels)}" if labels else metric.type


def _list_chosen(metric: Metric | Histogram | FlowMetricDeclaration) -> list[str]:
    return ["the chosen fields"] if isinstance(metric, FlowMetricDeclaration) else []
