"""Entries of Loki's push request.

A stream has few and bounded labels, `type` and `prot` in every schema; every other field is structured
metadata, so that queries show the same names as everywhere without a stream for each connection. The line is
the message.
https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs
"""

from typing import Final

from conntrackd.flow import EventType
from conntrackd.render.fields import FIELDS, PROTOCOL_NAMES, REPORT_NAMES, REPORTS, list_names
from conntrackd.render.json import CONSTANTS, write_constants
from conntrackd.render.schema import NATIVE, Schema
from conntrackd.render.template import Syntax, Template, escape_json, make_visible

LOST: Final = "LOST"
SUPPRESSED: Final = "SUPPRESSED"
LABELS: Final = frozenset({"type", "prot"})


def escape_metadata(value: str) -> str:
    """Nothing that is escaped in the body alone: Loki would give it back as it was."""
    return escape_json(make_visible(value))


class _Metadata(Syntax):
    """Values of structured metadata are strings; what is a label of the stream is not repeated."""

    def text(self, name: str, value: str) -> str:
        """One field, unless it is a label."""
        return "" if name in LABELS else super().text(name, value)


def _open(name: str) -> str:
    """A name that LogQL can say: as Loki itself renames what comes to it by OTLP."""
    return f',"{name.replace(".", "_")}":"'


METADATA: Final = _Metadata(_open, '"', _open, '"', escape_metadata)


# Loki drops an entry with the time and the line of another, and does not look at the metadata. The updates of
# one flow that were read in one batch have the same time and line: the later ones get the next nanoseconds.
# The comma is for the next entry; a body goes without the last one.
TEXT: Final = '["$moment","$message",{HEADS$fields}],'


def _make_template(names: frozenset[str] | None, schema: Schema = NATIVE) -> Template:
    # The labels of each stream say which host and which service it is.
    event, loss, held = (
        write_constants(METADATA, schema.list_constants(report=report)) for report in ("", *REPORTS)
    )
    level = METADATA.text(schema.rename("level"), "$level").removeprefix(",")
    rest = [CONSTANTS] if event else []
    heads = [*([level] if names is None or "level" in names else []), *rest]
    return Template(
        TEXT.replace("HEADS", ",".join(heads)),
        METADATA,
        {"level": "INFO", "constants": event},
        {"level": "WARN", "constants": loss},
        {"constants": held},
        by_stream=True,
        fields=names,
        loss_text=TEXT.replace("HEADS", ",".join([level, *rest])),
        is_bare=not heads,
        schema=schema,
    )


TEMPLATE: Final = _make_template(None)


def make_template(names: frozenset[str] | None, schema: Schema = NATIVE) -> Template:
    """Entries with these fields; None for all."""
    return TEMPLATE if names is None and schema.is_native else _make_template(names, schema)


def list_metadata(schema: Schema) -> frozenset[str]:
    """Names that entries can have in this schema, which is not our own."""
    outputs = (shown for output in FIELDS for shown in schema.list_outputs(output))
    names = [*map(schema.rename, list_names()), *(output.name for output in outputs)]
    names += (name for report in ("", *REPORTS) for name in schema.list_constants(report=report))
    names += map(schema.rename_loss, REPORT_NAMES)
    return frozenset(METADATA.open_text(name)[2:-3] for name in names)


def name_stream(event: int, protocol: int) -> dict[str, str]:
    """The labels that identify a stream of events."""
    name = PROTOCOL_NAMES.get(protocol) or str(protocol)
    return {"type": EventType(event).name or str(event), "prot": name}
