"""The names of other schemas -> the tables of conntrackd-events(7)."""

from collections.abc import Iterator, Mapping
from typing import Final

from conntrackd.render.fields import FIELDS, REPORT_NAMES, REPORTS, list_names
from conntrackd.render.schema import ECS, OTEL, OWN, Schema

SCHEMAS: Final = (ECS, OTEL)
WIDTHS: Final = '"src_country_code" "destination.geo.country_iso_code"'
EMPTY: Final = "\\&"


def render_man() -> str:
    """For events and for LOST records: a table for each schema, and what stands in all of them.

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


def _list_rows(name: str, shown: list[str]) -> Iterator[str]:
    """A row for each of the names; none for what only has our prefix."""
    for number, member in enumerate(shown):
        if member != f"{OWN}{name}":
            yield f".It {EMPTY if number else f'Va {name}'} Ta Va {member}"


def _render_tables(tables: Mapping[Schema, list[str]]) -> Iterator[str]:
    for schema, rows in tables.items():
        yield from (f".Bl -column {WIDTHS}", f".It Sy Name Ta Sy {schema.name}", *rows, ".El")


def _render_constants(report: str) -> Iterator[str]:
    yield '.Bl -column "otel" "event.category" "pipeline_error"'
    yield ".It Sy Schema Ta Sy Name Ta Sy Value"
    for schema in SCHEMAS:
        for name, value in schema.list_constants("the host's name", report=report).items():
            text = value if isinstance(value, str) else f"[{', '.join(value)}]"
            yield f".It {schema.name} Ta Va {name} Ta {text}"
    yield ".El"
