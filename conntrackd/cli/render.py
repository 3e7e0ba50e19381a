"""OPTIONS, METRICS, schemas and parsers -> completions, the sample configuration, generated parts of papers.

`python -m conntrackd.cli.render --write` brings the files in the source tree up to date.
"""

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Final

from conntrackd.cli import report
from conntrackd.cli.completion import render_completions
from conntrackd.cli.flags import get_section
from conntrackd.config.option import Option
from conntrackd.config.options import CONNTRACK_ACTIVATE, OPTIONS, SINK_JOURNAL_ENABLE
from conntrackd.config.values import FLAG
from conntrackd.errors import DataError
from conntrackd.metrics.flow_table import FLOW_METRICS, FlowMetricDeclaration
from conntrackd.metrics.table import FLOWS, METRICS, Histogram, Metric
from conntrackd.render.fields import FIELDS, REPORT_NAMES, REPORTS, list_names
from conntrackd.render.schema import ECS, OTEL, OWN, Schema

BEGIN: Final = '.\\" generated: begin'
END: Final = '.\\" generated: end'
MARKDOWN_BEGIN: Final = "<!-- generated: begin -->"
MARKDOWN_END: Final = "<!-- generated: end -->"
WRITE: Final = "python -m conntrackd.cli.render --write"
TITLES: Final = {
    "daemon": "The daemon",
    "events": "Events",
    "sinks": "Sinks",
    "kernel": "The kernel's connection table",
    "process": "The process",
    FLOWS: "Connections (metrics.flows)",
}
HEADING: Final = "| metric | type | labels | what it is |"
ALL: Final = (*METRICS, *FLOW_METRICS)
SCHEMAS: Final = (ECS, OTEL)
NAME_COLUMNS: Final = '"src_country_code" "destination.geo.country_iso_code"'
EMPTY: Final = "\\&"


SAMPLE_HEAD: Final = """\
# Settings of conntrackd(8); conntrackd.yaml(5) explains them all.
# What is commented out shows the default, or an example where there is none.
# After a change: conntrackd check && systemctl reload conntrackd
"""


SAMPLE_SINKS: Final = """
# More sinks, with names of their own and all settings of their kind
#sinks:
#  audit:
#    kind: loki
#    address: https://loki.example.org
#    filter: [log destination port 22, drop any]
"""


def render_sample() -> str:
    """Every setting with its reason; commented out, but for what the first event needs."""
    lines = [SAMPLE_HEAD.rstrip()]
    above: list[str] = []
    for option in OPTIONS:
        *section, name = option.key.split(".")
        lines += list(_render_headers(above, section))
        above = section
        indent = "  " * len(section)
        lines.append(f"{indent}# {option.help}")
        lines += [f"{indent}{line}" for line in _render_setting(option, name)]
    return "\n".join(lines) + f"\n{SAMPLE_SINKS}"


def _render_headers(above: list[str], section: list[str]) -> Iterator[str]:
    if section[:2] != above[:2] and not (section[:1] == above[:1] and len(above) == 1):
        yield ""
    for depth, name in enumerate(section):
        if section[: depth + 1] != above[: depth + 1]:
            yield f"{'  ' * depth}{name}:"


def _render_setting(option: Option[object], name: str) -> list[str]:
    if option in {CONNTRACK_ACTIVATE, SINK_JOURNAL_ENABLE}:
        return [f"{name}: true"]
    text = option.default_text or option.example
    if option.kind.separator != "\n":
        return [f"#{name}: {text}"]
    return [f"#{name}:", *(f"#  - {item}" for item in option.kind.split(text))]


def render_man_flags() -> str:
    """The options of conntrackd(8) as an mdoc list for each section."""
    lines = []
    for section, members in groupby(OPTIONS, get_section):
        lines += [f".Ss {section or 'daemon'}"]
        lines += [".Bl -tag -width Ds"]
        for option in members:
            lines += [_render_man_flag(option), *_render_man_help(option)]
        lines += [".El"]
    return "\n".join(lines)


def _render_man_flag(option: Option[object]) -> str:
    value = escape_mdoc(option.kind.metavar)
    return f".It Fl Fl {option.key}" + (f" Ns Op = Ns Ar {value}" if option.kind is FLAG else f" Ar {value}")


def _render_man_help(option: Option[object], takes: str = "") -> Iterator[str]:
    yield from _fill(f"{option.help}.")
    if takes:
        yield from _fill(f"Takes {takes}.")
    if option.default_text:
        yield "Default:"
        yield f".Ql {escape_mdoc(option.default_text)} ."
    elif takes and option.example:
        yield "Example:"
        yield f".Ql {escape_mdoc(option.kind.split(option.example)[0])} ."


def _fill(text: str) -> list[str]:
    """A sentence in lines as short as mandoc -Tlint wants them."""
    return [escape_mdoc(line) for line in textwrap.wrap(text, 76, break_on_hyphens=False)]


def render_man_settings() -> str:
    """The keys of conntrackd.yaml(5) as one mdoc list."""
    lines = [".Bl -tag -width Ds"]
    for option in OPTIONS:
        applied = "applied by a reload." if option.reload else "needs a restart."
        lines += [f".It Ic {option.key}", *_render_man_help(option, option.kind.expected)]
        lines += [".br", f".Ev {option.variable} ;", applied]
    return "\n".join([*lines, ".El"])


def render_metrics_markdown() -> str:
    """A table for each section of METRICS."""
    lines = []
    for section, members in groupby(ALL, lambda metric: metric.section):
        lines += [f"### {TITLES[section]}", "", HEADING, "|---|---|---|---|"]
        for metric in members:
            labels = ", ".join([*_list_chosen(metric), *(f"`{label}`" for label in metric.labels)])
            lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


def render_man_metrics() -> str:
    """An mdoc list for each section of METRICS."""
    lines = []
    for section, members in groupby(ALL, lambda metric: metric.section):
        lines += [f".Ss {escape_mdoc(TITLES[section])}", ".Bl -tag -width Ds"]
        for metric in members:
            lines.append(f".It Ic {metric.name}")
            lines += _fill(f"{metric.help} ({_describe(metric)}).")
        lines.append(".El")
    return "\n".join(lines)


def _describe(metric: Metric | Histogram | FlowMetricDeclaration) -> str:
    labels = [*_list_chosen(metric), *metric.labels]
    return f"{metric.type} by {' and '.join(labels)}" if labels else metric.type


def _list_chosen(metric: Metric | Histogram | FlowMetricDeclaration) -> list[str]:
    return ["the chosen fields"] if isinstance(metric, FlowMetricDeclaration) else []


def render_man_schemas() -> str:
    """The names of other schemas, for events and for LOST records: a table of each, and what stands in all.

    A table of both schemas would be wider than a terminal of 80 columns.
    """
    events = {
        schema: [row for name in list_names() for row in _list_rows(name, list_members(schema, name))]
        for schema in SCHEMAS
    }
    losses = {
        schema: [row for name in REPORT_NAMES for row in _list_rows(name, [schema.rename_loss(name)])]
        for schema in SCHEMAS
    }
    return "\n".join(
        [
            ".Ss Names of the fields of an event",
            *_render_tables(events),
            ".Ss What stands in every event",
            *_render_constants(""),
            ".Ss Names of the fields of a LOST or SUPPRESSED record",
            *_render_tables(losses),
            *(
                line
                for kind in REPORTS
                for line in (f".Ss What stands in every {kind} record", *_render_constants(kind))
            ),
        ]
    )


def list_members(schema: Schema, name: str) -> list[str]:
    """All names that stand for ours."""
    for output in FIELDS:
        if output.name == name:
            return [shown.name for shown in schema.list_outputs(output)]
    return [schema.rename(name)]


def _list_rows(name: str, shown: list[str]) -> Iterator[str]:
    """A row for each of the names; none for what only has our prefix."""
    for number, member in enumerate(shown):
        if member != f"{OWN}{name}":
            yield f".It {EMPTY if number else f'Va {name}'} Ta Va {member}"


def _render_tables(tables: Mapping[Schema, list[str]]) -> Iterator[str]:
    for schema, rows in tables.items():
        yield from (f".Bl -column {NAME_COLUMNS}", f".It Sy Name Ta Sy {schema.name}", *rows, ".El")


def _render_constants(kind: str) -> Iterator[str]:
    yield '.Bl -column "otel" "event.category" "pipeline_error"'
    yield ".It Sy Schema Ta Sy Name Ta Sy Value"
    for schema in SCHEMAS:
        for name, value in schema.list_constants("the host's name", report=kind).items():
            text = value if isinstance(value, str) else f"[{', '.join(value)}]"
            yield f".It {schema.name} Ta Va {name} Ta {text}"
    yield ".El"


def escape_mdoc(text: str) -> str:
    """Text that no troff takes for a request, an escape, or a hyphen to be broken at."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def render_files(root: Path) -> dict[Path, str]:
    """The generated files and those with generated parts, as they should be."""
    parts = {
        root / "man/conntrackd.8": render_man_flags(),
        root / "man/conntrackd-events.7": render_man_schemas(),
        root / "man/conntrackd-metrics.7": render_man_metrics(),
        root / "man/conntrackd.yaml.5": render_man_settings(),
        root / "docs/METRICS.md": render_metrics_markdown(),
    }
    return {
        root / "contrib/conntrackd.yaml": render_sample(),
        **{root / "contrib/completions" / name: text for name, text in render_completions().items()},
        **{path: replace_between(path.read_text(), part, path) for path, part in parts.items()},
    }


def replace_between(text: str, part: str, path: Path) -> str:
    """The text with everything between its two markers replaced."""
    first, last = (MARKDOWN_BEGIN, MARKDOWN_END) if path.suffix == ".md" else (BEGIN, END)
    head, begin, rest = text.partition(f"{first}\n")
    _, end, tail = rest.partition(f"{last}\n")
    if not begin or not end:
        raise DataError(f"has no markers {first!r} and {last!r}", origin=str(path))
    return f"{head}{begin}{part}\n{end}{tail}"


def list_stale(root: Path) -> list[Path]:
    """The files that do not agree with OPTIONS and METRICS."""
    return [
        path for path, text in render_files(root).items() if not path.exists() or path.read_text() != text
    ]


def main() -> int:
    """Write the files of the source tree, or name those that are stale; status 1 when there are some."""
    parser = argparse.ArgumentParser(prog=WRITE.removesuffix(" --write"), description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write what is stale")
    parser.add_argument("root", nargs="?", type=Path, default=Path(), help="the source tree (default: here)")
    arguments = parser.parse_args()
    texts = render_files(arguments.root)
    stale = list_stale(arguments.root)
    for path in stale:
        if arguments.write:
            path.write_text(texts[path])
        print(f"{path}: {'written' if arguments.write else 'stale'}")
    return 1 if stale and not arguments.write else 0


if __name__ == "__main__":
    report.run("render", main)
