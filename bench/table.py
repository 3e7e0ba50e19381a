"""Measurements as a table for people (Markdown) and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from bench.flood import Flood
from bench.parts import Part
from bench.soak import Step
from bench.subject import Measurement


@dataclass(frozen=True, slots=True)
class Row:
    """The middle of several runs of one subject; lost is the worst of them."""

    subject: str
    events: int
    us_per_event: float
    ratio: float | None
    lost: int
    peak_mib: float
    events_per_second: int


@dataclass(frozen=True, slots=True)
class Report:
    """All tables."""

    rows: Sequence[Row] = ()
    soak: Sequence[Step] = ()
    idle: Sequence[Step] = ()
    parts: Sequence[Part] = ()
    floods: Sequence[Flood] = ()


def summarize(runs: Sequence[Measurement], floor: float | None) -> Row:
    """One row; `floor` is the CPU time per event of the cheapest listener, None when it was not measured."""
    us_per_event = median(run.us_per_event for run in runs)
    return Row(
        subject=runs[0].subject,
        events=int(median(run.sent for run in runs)),
        us_per_event=round(us_per_event, 3),
        ratio=round(us_per_event / floor, 2) if floor else None,
        lost=max(run.lost for run in runs),
        peak_mib=round(median(run.peak_kib for run in runs) / 1024, 1),
        events_per_second=int(median(run.rate for run in runs)),
    )


def render_tables(report: Report) -> str:
    """The tables that have rows."""
    tables = [
        render_markdown(report.rows) if report.rows else "",
        render_soak(report.soak, "events so far") if report.soak else "",
        render_soak(report.idle, "idle after events") if report.idle else "",
        render_floods(report.floods) if report.floods else "",
        render_parts(report.parts) if report.parts else "",
    ]
    return "\n\n".join(table for table in tables if table)


def render_markdown(rows: Sequence[Row]) -> str:
    """A table whose columns are aligned in the source too; what arrived is that of the worst run."""
    head = ("subject", "events", "lost", "arrived", "CPU per event", "to the floor", "peak memory")
    cells = [
        (
            row.subject,
            f"{row.events:,}",
            f"{row.lost:,}",
            f"{100 * (1 - row.lost / row.events):.1f} %",
            f"{row.us_per_event:.2f} us",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.peak_mib:.1f} MiB",
        )
        for row in rows
    ]
    return render_table([head, *cells])


def render_parts(parts: Sequence[Part]) -> str:
    """The same for single parts."""
    head = ("part", "CPU", "for each")
    return render_table([head, *((part.name, f"{part.us:,.2f} us", part.unit) for part in parts)])


def render_soak(steps: Sequence[Step], head: str) -> str:
    """Memory and descriptors after so many events."""
    cells = [
        (f"{step.events:,}", f"{step.resident_mib:.1f} MiB", f"{step.descriptors}", f"{step.lost:,}")
        for step in steps
    ]
    return render_table([(head, "memory", "descriptors", "lost"), *cells])


def render_floods(floods: Sequence[Flood]) -> str:
    """What calls cost, by who makes them."""
    head = ("calls by", "a second", "events", "lost", "CPU per event", "main thread", "longest delay")
    cells = [
        (
            each.caller,
            f"{each.calls_per_second:,}",
            f"{each.events:,}",
            f"{each.lost:,}",
            f"{each.us_per_event:.2f} us",
            f"{each.main_percent:.1f} %",
            f"{each.delay_ms:.1f} ms",
        )
        for each in floods
    ]
    return render_table([head, *cells])


def render_table(cells: Sequence[Sequence[str]]) -> str:
    """Markdown: the first line is the head, the first column is text, the others are figures."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(_pad(text, widths[i], i > 0) for i, text in enumerate(line)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def render_json(report: Report) -> str:
    """One list a table, one object a row."""
    return json.dumps(asdict(report), indent=2)
