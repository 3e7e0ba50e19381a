"""What spools of version 2.0 hold: payloads as their sinks wrote them. Read after an upgrade, never written.

They are rows of an SQLite database, which is gone when its rows have been taken over.
Syslog's are messages with their numbers, each behind its length; Loki's are compressed bodies.
"""

import json
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Final

from conntrackd.delivery.batch import Batch, decompress
from conntrackd.delivery.store import PackedBatch
from conntrackd.flow import ABSENT, EventType, Protocol
from conntrackd.render.rendered import Rendered, Stream

MAX_EVENTS: Final = 10_000_000  # of a row: a damaged number must not turn the sums upside down
QUERY: Final = "SELECT number, events, oldest, checksum, payload FROM parcels ORDER BY number"
GZIP_MAGIC: Final = b"\x1f\x8b"
LENGTH: Final = struct.Struct(">I")
# What marked a LOST record, in each of syslog's formats; no value can hold it: its quotes are escaped.
LOST_MARKS: Final = (b' type="LOST"', b',"type":"LOST"')


def read_database(path: Path) -> Iterator[tuple[PackedBatch, bool]]:
    """Each packed batch, and whether it is intact. The last has ABSENT events where no more can be read."""
    import sqlite3  # noqa: PLC0415  # it takes memory

    try:
        database = sqlite3.connect(path, isolation_level=None)
        try:
            for number, events, oldest, checksum, payload in database.execute(QUERY):
                if not (isinstance(events, int) and isinstance(oldest, int) and isinstance(payload, bytes)):
                    yield PackedBatch(b"", ABSENT), False
                    continue
                head = b"%d %d %d" % (number, events, oldest)
                is_whole = zlib.crc32(payload, zlib.crc32(head)) == checksum
                yield PackedBatch(payload, max(0, min(events, MAX_EVENTS)), oldest), is_whole
        finally:
            database.close()
    except (sqlite3.Error, ValueError, ArithmeticError):  # UnicodeDecodeError: SQLite repeats what is there
        yield PackedBatch(b"", ABSENT), False


def read_old_payload(payload: bytes, oldest: int) -> tuple[Batch, ...]:
    """The batches in it: events, and losses as texts. Raises whatever where it is none."""
    parts = _read_body(payload, oldest) if payload.startswith(GZIP_MAGIC) else _read_messages(payload, oldest)
    return tuple(Batch.of((part,)) for part in parts)


def _read_messages(payload: bytes, oldest: int) -> Iterator[Rendered]:
    messages, at = [], 0
    while at < len(payload):
        if at + LENGTH.size > len(payload):
            raise ValueError("cut short")
        (length,) = LENGTH.unpack_from(payload, at)
        at += LENGTH.size + length
        messages.append(payload[at - length : at])
    for is_loss, run in groupby(messages, lambda message: any(mark in message for mark in LOST_MARKS)):
        if is_loss:
            yield from (_make((message,), 0, oldest) for message in run)
        else:
            events = tuple(run)
            yield _make(events, len(events), oldest)


def _read_body(payload: bytes, oldest: int) -> Iterator[Rendered]:
    for stream in json.loads(decompress(payload))["streams"]:
        labels, entries = stream["stream"], stream["values"]
        texts = tuple(map(_render_entry, entries))
        if labels["type"] == "LOST":
            yield from (_make((text,), 0, oldest) for text in texts)
            continue
        moments = array("Q", (int(entry[0]) for entry in entries))
        kind = Stream(_number(EventType, labels["type"]), _number(Protocol, labels["prot"]), len(texts))
        streams = (kind._replace(is_replay="replay" in labels),)
        yield _make(texts, len(texts), min(moments), streams, moments.tobytes())


def _render_entry(entry: list[Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b","


def _number(names: type[EventType] | type[Protocol], name: str) -> int:
    return int(name) if name.isdecimal() else names[name].value


def _make(
    texts: Sequence[bytes], events: int, time: int, streams: tuple[Stream, ...] = (), moments: bytes = b""
) -> Rendered:
    ends = array("I", accumulate(map(len, texts))).tobytes()
    return Rendered(b"".join(texts), ends, events, time, streams, moments)
