"""The names of other schemas -> the tables of conntrackd-events(7)."""

from collections.abc import Iterator
from typing import Final

from conntrackd.render.fields import FIELDS, REPORT_NAMES, REPORTS, list_names
from conntrackd.render.schema import ECS, OTEL, Schema

SCHEMAS: Final = (ECS, OTEL)
WIDTHS: Final = '"src_country_code" "destination.geo.country_iso_code" "destination.geo.country.iso_code"'
EMPTY: Final = "\\&"


def render_man() -> str:
    """One table of events, one of what is reported, and what stands in each of them."""
    events = [
        row for name in list_names() for row in _list_rows(name, [list_members(s, name) for s in SCHEMAS])
    ]
    losses = [
        row for name in REPORT_NAMES for row in _list_rows(name, [[s.rename_loss(name)] for s in SCHEMAS])
    ]
    return "\n".join(
        [
            ".Ss Names of the fields of an event",
            *_render_table(events),
            ".Ss What stands in every event",
            *_render_constants(""),
            ".Ss Names of the fields of a LOST or SUPPRESSED record",
            *_render_table(losses),
            *(
                line
                for report in REPORTS
                for line in (f".Ss What stands in every {report} record", *_render_constants(report))
            ),
        ]
    )


def list_members(schema: Schema, name: str) -> list[str]:
    """All names that stand for ours."""
    for output in FIELDS:
        if output.name == name:
            return [shown.name for shown in schema.list_outputs(output)]
    return [schema.rename(name)]


def _list_rows(name: str, names: list[list[str]]) -> Iterator[str]:
    """A row for each of the names; our own and the same of before are not repeated."""
    for number in range(max(map(len, names))):
        cells = [column[number] if number < len(column) else "" for column in names]
        first = f"Va {name}" if number == 0 else EMPTY
        yield " Ta ".join([f".It {first}", *(f"Va {cell}" if cell else EMPTY for cell in cells)])


def _render_table(rows: list[str]) -> list[str]:
    return [f".Bl -column {WIDTHS}", ".It Sy Name Ta Sy ecs Ta Sy otel", *rows, ".El"]


def _render_constants(report: str) -> Iterator[str]:
    yield '.Bl -column "otel" "event.category" "pipeline_error"'
    yield ".It Sy Schema Ta Sy Name Ta Sy Value"
    for schema in SCHEMAS:
        for name, value in schema.list_constants("the host's name", report=report).items():
            text = value if isinstance(value, str) else f"[{', '.join(value)}]"
            yield f".It {schema.name} Ta Va {name} Ta {text}"
    yield ".El"
