"""Row 32: whatever characters a name has, an event is one record, and nobody's terminal obeys it."""

import json
import zlib
from collections.abc import Callable

import pytest

from conntrackd.delivery.batch import GZIP, compress
from conntrackd.delivery.datagrams import Framing, frame
from conntrackd.engine import Engine
from conntrackd.flow import Location
from conntrackd.render import journal, loki
from conntrackd.render import json as json_lines
from conntrackd.render.rendered import Rendered
from conntrackd.render.syslog import make_template
from conntrackd.render.template import Template
from conntrackd.sinks.loki_push import gather_streams, write_streams
from tests.engine.rendering import render
from tests.rendering import list_texts
from tests.sinks.flows import make_flow

# C0, DEL and C1, ends of lines, marks and overrides of direction, what has no width, half a surrogate pair.
HOSTILE = [
    *map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0))),
    *map(chr, (0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    *map(chr, (0x200B, 0xFEFF, 0xAD, 0xDC80)),
]
SEQUENCES = ["\x1b]0;owned\x07", "\x1b[31m", "\r\nMESSAGE=a", '"]\n<0>1 - ', '"}\n{"type":"LOST"}', "\\"]


def list_stored(rendered: Rendered) -> list[str]:
    """What Loki has afterwards and gives back: lines, names and values."""
    body = zlib.decompress(compress(write_streams(gather_streams([rendered]), {})), GZIP).decode()
    found = [body]
    for stream in json.loads(body)["streams"]:
        for _, line, metadata in stream["values"]:
            found += [line, *metadata, *metadata.values()]
    return found


def list_datagrams(rendered: Rendered) -> list[str]:
    text, ends, _ = frame(rendered.text, rendered.ends, 1, Framing.NONE)
    return [message.decode() for message in list_texts(Rendered(text, ends, rendered.events, 0))]


# Each sink: what somebody may see of it in a file, on the wire or in a query.
SEEN: dict[str, tuple[Template, Callable[[Rendered], list[str]]]] = {
    "stream": (json_lines.TEMPLATE, lambda rendered: rendered.text.decode().splitlines()),
    "journal": (journal.TEMPLATE, lambda rendered: rendered.text.decode().split("\n")),
    "loki": (loki.TEMPLATE, list_stored),
    **{
        form: (make_template(form, "daemon", "gw1", 42), list_datagrams)
        for form in ("rfc5424", "rfc3164", "cee")
    },
}


@pytest.mark.parametrize("sink", SEEN)
def test_no_sink_holds_what_a_terminal_would_obey(sink: str, engine: Engine) -> None:
    template, show = SEEN[sink]
    plain = make_flow(1)
    plain.src_location = plain.dst_location = Location("a", "DE", 1.0, 2.0, 1, "b")
    records = len(show(render(engine, template, [plain])))
    for text in (*HOSTILE, "".join(HOSTILE), *SEQUENCES):
        event = make_flow(1)
        event.src_location = event.dst_location = Location(f"a{text}b", "DE", 1.0, 2.0, 1, f"{text}c")
        found = show(render(engine, template, [event]))

        assert len(found) == records
        assert all(line.isprintable() for line in found), (text, found)
