"""Measurements as a table for people (Markdown) and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from bench.backlog import Backlog
from bench.flood import Flood
from bench.heartbeat import Heartbeats
from bench.latency import Latency
from bench.parts import Part
from bench.soak import Memory, Step
from bench.subject import Measurement, Subject


@dataclass(frozen=True, slots=True)
class Row:
    """The middle of several runs of one subject; lost is the worst of them.

    `ratio` is that to the floor, `other_ratio` that to the row `other`; both are made within a round.
    """

    subject: str
    events: int
    us_per_event: float
    ratio: float | None
    lost: int
    peak_mib: float
    events_per_second: int
    other: str = ""
    other_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All tables."""

    rows: Sequence[Row] = ()
    soak: Sequence[Step] = ()
    memory: Sequence[Memory] = ()
    latency: Sequence[Latency] = ()
    backlog: Sequence[Backlog] = ()
    heartbeats: Sequence[Heartbeats] = ()
    parts: Sequence[Part] = ()
    floods: Sequence[Flood] = ()
    scrapes: Sequence[Flood] = ()


def summarize_all(subjects: Mapping[str, Subject], runs: Mapping[str, Sequence[Measurement]]) -> list[Row]:
    """A row for each that was measured, beside those that it is compared with."""
    return [
        summarize(
            of, runs.get(subjects[name].floor, ()), subjects[name].other, runs.get(subjects[name].other, ())
        )
        for name, of in runs.items()
    ]


def summarize(
    runs: Sequence[Measurement],
    floor: Sequence[Measurement],
    name: str = "",
    other: Sequence[Measurement] = (),
) -> Row:
    """One row; `floor` and `other` are empty when they were not measured."""
    return Row(
        subject=runs[0].subject,
        events=int(median(run.sent for run in runs)),
        us_per_event=round(median(run.us_per_event for run in runs), 3),
        ratio=compare(runs, floor),
        lost=max(run.lost for run in runs),
        peak_mib=round(median(run.peak_kib for run in runs) / 1024, 1),
        events_per_second=int(median(run.rate for run in runs)),
        other=name if other else "",
        other_ratio=compare(runs, other),
    )


def compare(runs: Sequence[Measurement], others: Sequence[Measurement]) -> float | None:
    """The middle ratio of the rounds: what disturbs the machine for an hour disturbs both of a round."""
    if not others:
        return None
    pairs = zip(runs, others, strict=True)
    return round(median(run.us_per_event / other.us_per_event for run, other in pairs), 2)


def render_tables(report: Report) -> str:
    """The tables that have rows."""
    tables = [
        render_markdown(report.rows) if report.rows else "",
        render_latency(report.latency) if report.latency else "",
        render_backlog(report.backlog) if report.backlog else "",
        render_heartbeats(report.heartbeats) if report.heartbeats else "",
        render_memory(report.memory) if report.memory else "",
        render_soak(report.soak) if report.soak else "",
        render_floods(report.floods) if report.floods else "",
        render_floods(report.scrapes) if report.scrapes else "",
        render_parts(report.parts) if report.parts else "",
    ]
    return "\n\n".join(table for table in tables if table)


def render_markdown(rows: Sequence[Row]) -> str:
    """A table whose columns are aligned in the source too; what arrived is that of the worst run."""
    head = (
        "subject",
        "events",
        "lost",
        "arrived",
        "CPU per event",
        "to the floor",
        "to another",
        "peak memory",
    )
    cells = [
        (
            row.subject,
            f"{row.events:,}",
            f"{row.lost:,}",
            f"{100 * (1 - row.lost / row.events):.1f} %",
            f"{row.us_per_event:.2f} us",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.other_ratio is None else f"{row.other_ratio:.2f} x {row.other}",
            f"{row.peak_mib:.1f} MiB",
        )
        for row in rows
    ]
    return render_table([head, *cells])


def render_parts(parts: Sequence[Part]) -> str:
    """The same for single parts."""
    head = ("part", "CPU", "for each")
    return render_table([head, *((part.name, f"{part.us:,.2f} us", part.unit) for part in parts)])


def render_latency(samples: Sequence[Latency]) -> str:
    """What a steady load takes, and how late its lines are."""
    head = ("subject", "events/s", "lost", "of a core", "woken/s", "late by (median)", "late by (99 %)")
    cells = [
        (
            sample.subject,
            f"{sample.rate:,}",
            f"{sample.lost:,}",
            f"{sample.core_percent:.2f} %",
            f"{sample.wakeups:.1f}",
            "" if sample.median_ms is None else f"{sample.median_ms:.1f} ms",
            "" if sample.most_ms is None else f"{sample.most_ms:.1f} ms",
        )
        for sample in samples
    ]
    return render_table([head, *cells])


def render_backlog(backlogs: Sequence[Backlog]) -> str:
    """How fast what is queued is read by one reader and by two: medians, the least and the most."""
    head = ("subject", "readers", "events queued", "lost", "read a second", "to one", "CPU per event")
    return render_table([head, *(line for backlog in backlogs for line in _list_readers(backlog))])


def _list_readers(backlog: Backlog) -> Iterator[tuple[str, ...]]:
    queued = (f"{backlog.events:,}", f"{backlog.lost:,}")
    ratios = [two.rate / one.rate for one, two in zip(backlog.one, backlog.two, strict=True)]
    for readers, readings, ratio in (
        ("1", backlog.one, ""),
        ("2", backlog.two, _render_range(ratios, ".2f")),
    ):
        rates, spent = zip(*readings, strict=True)
        ranges = (_render_range(rates, ",.0f"), ratio, f"{_render_range(spent, '.2f')} us")
        yield (backlog.subject, readers, *queued, *ranges)


def _render_range(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def render_heartbeats(rows: Sequence[Heartbeats]) -> str:
    """What flows that live take of a core."""
    head = ("subject", "flows", "CPU per flow", "of a core")
    cells = [
        (row.subject, f"{row.flows:,}", f"{row.us_per_flow:.2f} us", f"{row.core_percent:.2f} %")
        for row in rows
    ]
    return render_table([head, *cells])


def render_memory(memories: Sequence[Memory]) -> str:
    """What is resident, in the beginning, after some events, and at most."""
    head = ("subject", "started", "idle after events", "peak")
    cells = [
        (
            memory.subject,
            *(f"{mib:.1f} MiB" for mib in (memory.started_mib, memory.idle_mib, memory.peak_mib)),
        )
        for memory in memories
    ]
    return render_table([head, *cells])


def render_soak(steps: Sequence[Step]) -> str:
    """Memory and descriptors after so many events."""
    cells = [
        (f"{step.events:,}", f"{step.resident_mib:.1f} MiB", f"{step.descriptors}", f"{step.lost:,}")
        for step in steps
    ]
    return render_table([("events so far", "memory", "descriptors", "lost"), *cells])


def render_floods(floods: Sequence[Flood]) -> str:
    """What calls cost, by who makes them."""
    head = ("calls by", "a second", "events", "lost", "CPU per event", "main thread", "longest delay")
    cells = [
        (
            row.caller,
            f"{row.calls_per_second:,}",
            f"{row.events:,}",
            f"{row.lost:,}",
            f"{row.us_per_event:.2f} us",
            f"{row.main_percent:.1f} %",
            f"{row.delay_ms:.1f} ms",
        )
        for row in floods
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
