"""Entries of Loki's push request.

A stream has few and bounded labels; every other field is structured metadata, so that queries show the same
names as everywhere without a stream for each connection. The line is the message.
https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs
"""

from typing import Final

from conntrackd.flow import EventType, Protocol
from conntrackd.render.template import Syntax, Template, escape_json, make_visible

LOST: Final = "LOST"
SUPPRESSED: Final = "SUPPRESSED"
LABELS: Final = frozenset({"type", "prot"})
PROTOCOL_NAMES: Final = {protocol.value: protocol.name for protocol in Protocol}


def escape_metadata(value: str) -> str:
    """Nothing that is escaped in the body alone: Loki would give it back as it was."""
    return escape_json(make_visible(value))


class _Metadata(Syntax):
    """Values of structured metadata are strings; what is a label of the stream is not repeated."""

    def text(self, name: str, value: str) -> str:
        """One field, unless it is a label."""
        return "" if name in LABELS else super().text(name, value)


METADATA: Final = _Metadata(',"{}":"'.format, '"', ',"{}":"'.format, '"', escape_metadata)


# Loki drops an entry with the time and the line of another, and does not look at the metadata. The updates of
# one flow that were read in one batch have the same time and line: the later ones get the next nanoseconds.
# The comma is for the next entry; a body goes without the last one.
TEXT: Final = '["$moment","$message",{"level":"$level"$fields}],'
BARE_TEXT: Final = '["$moment","$message",{$fields}],'


def _make_template(names: frozenset[str] | None) -> Template:
    is_bare = names is not None and "level" not in names
    return Template(
        BARE_TEXT if is_bare else TEXT,
        METADATA,
        {"level": "INFO"},
        {"level": "WARN"},
        by_stream=True,
        fields=names,
        loss_text=TEXT,
        is_bare=is_bare,
    )


TEMPLATE: Final = _make_template(None)


def make_template(names: frozenset[str] | None) -> Template:
    """Entries with these fields; None for all."""
    return TEMPLATE if names is None else _make_template(names)


def name_stream(event: int, protocol: int) -> dict[str, str]:
    """The labels that identify a stream of events."""
    name = PROTOCOL_NAMES.get(protocol) or str(protocol)
    return {"type": EventType(event).name or str(event), "prot": name}
