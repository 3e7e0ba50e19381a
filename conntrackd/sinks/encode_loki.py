"""Records -> the body of Loki's push request, and the two things that can be done to a body afterwards.

A stream has few and bounded labels; every other field is structured metadata, so that queries show the same
names as everywhere without a stream for each connection. The line is the message.
https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from conntrackd.cache import Cache
from conntrackd.flow import ABSENT, Batch, EventType, Lost
from conntrackd.sinks.encode import Renderer, Syntax, escape_json, make_visible, parse_time, render_protocol
from conntrackd.sinks.sink import Parcel

LOST: Final = "LOST"
LABELS: Final = frozenset({"type", "prot"})
# A gzip header without a time: the same records are the same bytes. Level 1, because level 6 takes three
# times as long for a body that is a seventh smaller (4.8 against 1.4 us an event, 37 against 43 bytes).
GZIP: Final = 16 + zlib.MAX_WBITS
LEVEL: Final = 1


def escape_metadata(value: str) -> str:
    """Nothing that is escaped in the body alone: Loki would give it back as it was."""
    return escape_json(make_visible(value))


class _Metadata(Syntax):
    """Values of structured metadata are strings; what is a label of the stream is not repeated."""

    def text(self, name: str, value: str) -> str:
        """One field, unless it is a label."""
        return "" if name in LABELS else super().text(name, value)


METADATA: Final = _Metadata(',"{}":"'.format, '"', ',"{}":"'.format, '"', escape_metadata)


class LokiEncoder:
    """Records -> body. `labels` stand on every stream, beside `type` and `prot`. Belongs to one thread."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._renderer = Renderer(METADATA)
        self._streams = Cache(self._open_stream, 4096)
        self.text_size = 0

    def encode(self, batch: Batch) -> bytes:
        """The compressed body; `text_size` is its length before that.

        Loki drops an entry with the time and the line of another, and does not look at the metadata: the
        updates of one flow that were read in one batch have the same time and line, so the later ones get
        the next free nanosecond.
        """
        streams: dict[int, list[str]] = {}
        seen: set[tuple[int, str]] = set()
        for _, level, message, fields, record in self._renderer.render(batch):
            if isinstance(record, Lost):
                key, time = 0, record.until
            else:
                key, time = record.type << 8 | record.protocol, record.time
            while (time, message) in seen:
                time += 1
            seen.add((time, message))
            entry = f'["{time}","{message}",{{"level":"{level}"{fields}}}]'
            entries = streams.get(key)
            if entries is None:
                streams[key] = [entry]
            else:
                entries.append(entry)
        # An ingester answers for the last stream of a push alone (3.7.6, pkg/ingester/instance.go): of late
        # events the largest one tells best whether they were too late.
        ordered = sorted(streams.items(), key=lambda stream: len(stream[1]))
        opened = self._streams
        text = ",".join([f"{opened[key]}{','.join(entries)}]}}" for key, entries in ordered])
        body = f'{{"streams":[{text}]}}'.encode()
        self.text_size = len(body)
        return _compress(body)

    def _open_stream(self, key: int) -> str:
        if key == 0:
            labels = {**self._labels, "type": LOST}
        else:
            kind = EventType(key >> 8).name or str(key >> 8)
            labels = {**self._labels, "type": kind, "prot": render_protocol(key & 0xFF)}
        return f'{{"stream":{json.dumps(labels, ensure_ascii=False, separators=(",", ":"))},"values":['


def split(body: bytes) -> list[Parcel[bytes]]:
    """The same entries in two bodies, each stream's in their order; one parcel when there is one entry."""
    entries = [(stream["stream"], entry) for stream in _read(body) for entry in stream["values"]]
    middle = (len(entries) + 1) // 2
    return [_pack(half) for half in (entries[:middle], entries[middle:]) if half]


def mark_replay(body: bytes, before: int | None = None, count: int | None = None) -> Parcel[bytes] | None:
    """The `count` oldest entries from before that time (all for None) in streams of their own: `replay="1"`.

    Loki takes late entries only into a stream that has no newer ones. None when they were there already.
    """
    streams = _read(body)
    if any("replay" in stream["stream"] for stream in streams):
        return None
    times = sorted(int(entry[0]) for stream in streams for entry in stream["values"])
    if before is not None and count is not None and count < len(times):
        before = min(before, times[count])
    entries = [
        ({**stream["stream"], "replay": "1"}, entry)
        for stream in streams
        for entry in stream["values"]
        if before is None or int(entry[0]) < before
    ]
    return _pack(entries) if entries else None


def _compress(body: bytes) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    return compressor.compress(body) + compressor.flush()


def _read(body: bytes) -> list[dict[str, Any]]:
    streams: list[dict[str, Any]] = json.loads(zlib.decompress(body, GZIP))["streams"]
    return streams


def _pack(entries: list[tuple[dict[str, str], list[Any]]]) -> Parcel[bytes]:
    streams: dict[str, dict[str, Any]] = {}
    for labels, entry in entries:
        stream = streams.setdefault(json.dumps(labels), {"stream": labels, "values": []})
        stream["values"].append(entry)
    text = json.dumps({"streams": list(streams.values())}, ensure_ascii=False, separators=(",", ":"))
    events = sum(labels["type"] != LOST for labels, _ in entries)
    return Parcel(_compress(text.encode()), events, min(int(entry[0]) for _, entry in entries))


def count_events(body: bytes) -> int:
    """Events in a body, LOST records not among them."""
    return sum(len(stream["values"]) for stream in _read(body) if stream["stream"]["type"] != LOST)


def find_losses(body: bytes) -> list[Lost]:
    """The LOST records in a body, as they were before they were encoded."""
    records = [
        dict(entry[2])
        for stream in _read(body)
        if stream["stream"]["type"] == LOST
        for entry in stream["values"]
    ]
    return [
        Lost(
            int(each.get("lost", ABSENT)),
            parse_time(each["since"]),
            parse_time(each["until"]),
            each["where"],
            each.get("reason", ""),
        )
        for each in records
    ]
