"""Row 32: whatever characters a name has, an event is one record, and nobody's terminal obeys it."""

import json
import zlib
from collections.abc import Callable, Iterator

import pytest

from conntrackd.flow import Batch, Location
from conntrackd.sinks.encode_journal import JournalEncoder
from conntrackd.sinks.encode_json import JsonEncoder
from conntrackd.sinks.encode_loki import GZIP, LokiEncoder
from conntrackd.sinks.encode_syslog import SyslogEncoder
from tests.sinks.flows import make_flow

# C0, DEL and C1, ends of lines, marks and overrides of direction, what has no width, half a surrogate pair.
HOSTILE = [
    *map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0))),
    *map(chr, (0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    *map(chr, (0x200B, 0xFEFF, 0xAD, 0xDC80)),
]
SEQUENCES = ["\x1b]0;owned\x07", "\x1b[31m", "\r\nMESSAGE=a", '"]\n<0>1 - ', '"}\n{"type":"LOST"}', "\\"]


def list_stored(batch: Batch) -> Iterator[str]:
    """What Loki has afterwards and gives back: lines, names and values."""
    body = zlib.decompress(LokiEncoder({}).encode(batch), GZIP).decode()
    yield body
    for stream in json.loads(body)["streams"]:
        for _, line, metadata in stream["values"]:
            yield from (line, *metadata, *metadata.values())


def syslog(form: str) -> Callable[[Batch], list[str]]:
    return lambda batch: [each.decode() for each in SyslogEncoder(form, "daemon").encode(batch)]


# Each sink: what somebody may see of it in a file, on the wire or in a query.
SEEN: dict[str, Callable[[Batch], list[str]]] = {
    "stream": lambda batch: JsonEncoder().encode(batch).decode().splitlines(),
    "journal": lambda batch: [
        line for each in JournalEncoder().encode(batch) for line in each.decode().split("\n")
    ],
    "loki": lambda batch: list(list_stored(batch)),
    "rfc5424": syslog("rfc5424"),
    "rfc3164": syslog("rfc3164"),
    "cee": syslog("cee"),
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
        assert all(each.isprintable() for each in found), (text, found)
