"""Row 32: whatever characters a name has, an event is one record, and nobody's terminal obeys it."""

import json
import zlib
from collections.abc import Callable, Iterator

import pytest

from conntrackd.delivery.compression import GZIP, compress
from conntrackd.flow import Flow, Location
from conntrackd.render import journal, loki
from conntrackd.render import json as json_lines
from conntrackd.render.syslog import make_template
from conntrackd.render.template import Template
from conntrackd.sinks.loki_body import list_body
from tests.rendering import list_texts, render
from tests.sinks.flows import make_flow

# C0, DEL and C1, ends of lines, marks and overrides of direction, what has no width, half a surrogate pair.
HOSTILE = [
    *map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0))),
    *map(chr, (0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    *map(chr, (0x200B, 0xFEFF, 0xAD, 0xDC80)),
]
SEQUENCES = ["\x1b]0;owned\x07", "\x1b[31m", "\r\nMESSAGE=a", '"]\n<0>1 - ', '"}\n{"type":"LOST"}', "\\"]


def list_stored(flows: list[Flow]) -> Iterator[str]:
    """What Loki has afterwards and gives back: lines, names and values."""
    body = zlib.decompress(compress(list_body([render(loki.TEMPLATE, flows)], {})), GZIP).decode()
    yield body
    for stream in json.loads(body)["streams"]:
        for _, line, metadata in stream["values"]:
            yield from (line, *metadata, *metadata.values())


def list_lines(template: Template) -> Callable[[list[Flow]], list[str]]:
    return lambda flows: [
        line
        for text in list_texts(render(template, flows))
        for line in text.decode().replace("\0", "").split("\n")
    ]


# Each sink: what somebody may see of it in a file, on the wire or in a query.
SEEN: dict[str, Callable[[list[Flow]], list[str]]] = {
    "stream": list_lines(json_lines.TEMPLATE),
    "journal": list_lines(journal.TEMPLATE),
    "loki": lambda flows: list(list_stored(flows)),
    "rfc5424": list_lines(make_template("rfc5424", "daemon")),
    "rfc3164": list_lines(make_template("rfc3164", "daemon")),
    "cee": list_lines(make_template("cee", "daemon")),
}


@pytest.mark.parametrize("sink", SEEN)
def test_no_sink_holds_what_a_terminal_would_obey(sink: str) -> None:
    plain = make_flow(1)
    plain.src_location = plain.dst_location = Location("a", "DE", 1.0, 2.0, 1, "b")
    records = len(SEEN[sink]([plain]))
    for text in (*HOSTILE, "".join(HOSTILE), *SEQUENCES):
        event = make_flow(1)
        event.src_location = event.dst_location = Location(f"a{text}b", "DE", 1.0, 2.0, 1, f"{text}c")
        found = SEEN[sink]([event])

        assert len(found) == records
        assert all(line.isprintable() for line in found), (text, found)
