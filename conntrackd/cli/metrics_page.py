"""METRICS -> the lists of docs/METRICS.md and conntrackd-metrics(7)."""

import textwrap
from collections.abc import Callable
from itertools import groupby
from typing import Final

from conntrackd.metrics.table import METRICS, Histogram, Metric

TITLES: Final = {
    "daemon": "The daemon",
    "events": "Events",
    "sinks": "Sinks",
    "kernel": "The kernel's connection table",
    "process": "The process",
}
HEADING: Final = "| metric | type | labels | what it is |"
WIDTH: Final = 76


def render_markdown() -> str:
    """A table for each section."""
    lines = []
    for section, members in groupby(METRICS, lambda metric: metric.section):
        lines += [f"### {TITLES[section]}", "", HEADING, "|---|---|---|---|"]
        for metric in members:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


def render_man(escape: Callable[[str], str]) -> str:
    """An mdoc list for each section; `escape` makes text safe for it."""
    lines = []
    for section, members in groupby(METRICS, lambda metric: metric.section):
        lines += [f".Ss {escape(TITLES[section])}", ".Bl -tag -width Ds"]
        for metric in members:
            lines.append(f".It Ic {metric.name}")
            sentence = f"{metric.help} ({_describe(metric)})."
            lines += [escape(line) for line in textwrap.wrap(sentence, WIDTH, break_on_hyphens=False)]
        lines.append(".El")
    return "\n".join(lines)


def _describe(metric: Metric | Histogram) -> str:
    if not metric.labels:
        return metric.type
    return f"{metric.type} by {' and '.join(metric.labels)}"
