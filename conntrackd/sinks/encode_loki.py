"""Records -> the body of Loki's push request, and the two things that can be done to a body afterwards.

A stream has few and bounded labels; every other field is structured metadata, so that queries show the same
names as everywhere without a stream for each connection. The line is the message.
https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from conntrackd.cache import Cache
from conntrackd.flow import ABSENT, Batch, Lost
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import (
    Form,
    Syntax,
    escape_json,
    make_visible,
    parse_time,
    render_protocol,
    render_type,
)
from conntrackd.sinks.sink import Parcel

try:  # Debian has it since 13
    from isal import isal_zlib
except ImportError:
    isal_zlib = None  # type: ignore[assignment]

LOST: Final = "LOST"
LABELS: Final = frozenset({"type", "prot"})
# A gzip header without a time: the same records are the same bytes.
GZIP: Final = 16 + zlib.MAX_WBITS
# zlib takes 1.13 us for 20 bytes an event at level 1, 0.92 for 17 at level 3; ISA-L 0.21 for 19 at level 1.
ZLIB_LEVEL, ISAL_LEVEL = 3, 1
CHUNK: Final = 64  # texts that are compressed together, each of some ten events


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
ENTRY: Final = Form(
    METADATA,
    '["$moment","$message",{"level":"$level"$fields}]',
    {"level": "INFO"},
    {"level": "WARN"},
    by_stream=True,
)


class LokiEncoder:
    """Records -> body. `labels` stand on every stream, beside `type` and `prot`. Belongs to one thread."""

    form = ENTRY

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._composer = Composer()
        self._streams = Cache(self._open_stream, 4096)
        self.entry_size = 0.0

    def encode(self, batch: Batch) -> bytes:
        """The compressed body; `entry_size` is what an entry had of it before that."""
        streams: dict[int, list[str]] = {}
        counts: Counter[int] = Counter()
        for pieces in self._composer.compose_each(self.form, batch):
            for stream, (count, entries) in pieces.items():
                streams.setdefault(stream, []).append(entries)
                counts[stream] += count
        # An ingester answers for the last stream of a push alone (3.7.6, pkg/ingester/instance.go): of late
        # events the largest one tells best whether they were too late.
        texts = ['{"streams":[']
        for stream in sorted(streams, key=counts.__getitem__):
            texts.append(self._streams[stream])
            for entries in streams[stream]:
                texts += (entries, ",")
            texts[-1] = "]}"
            texts.append(",")
        texts[-1] = "]}"
        self.entry_size = sum(map(len, texts)) / counts.total()
        return _compress(texts)

    def _open_stream(self, key: int) -> str:
        if key == 0:
            labels = {**self._labels, "type": LOST}
        else:
            labels = {**self._labels, "type": render_type(key >> 8), "prot": render_protocol(key & 0xFF)}
        return f'{{"stream":{json.dumps(labels, ensure_ascii=False, separators=(",", ":"))},"values":['


def split(body: bytes) -> list[Parcel[bytes]]:
    """The same entries in two bodies, each stream's in their order; one parcel when there is one entry."""
    entries = [(stream["stream"], entry) for stream in _read(body) for entry in stream["values"]]
    middle = (len(entries) + 1) // 2
    return [_pack(half) for half in (entries[:middle], entries[middle:]) if half]


def split_streams(body: bytes, last: str = "") -> list[Parcel[bytes]]:
    """Each stream in a body of its own; the one with these labels, as Loki writes them, behind the others."""
    streams = sorted(_read(body), key=lambda stream: render_labels(stream["stream"]) == last)
    return [_pack([(stream["stream"], entry) for entry in stream["values"]]) for stream in streams]


def render_labels(labels: Mapping[str, str]) -> str:
    """As Loki names a stream in what it says."""
    shown = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(labels.items()))
    return "{" + ", ".join(shown) + "}"


def list_streams(body: bytes) -> list[str]:
    """The labels of the streams in a body."""
    return [render_labels(stream["stream"]) for stream in _read(body)]


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


def _compress(texts: Sequence[str]) -> bytes:
    """Some at a time: the body of a second and its copies would be 10 MB at 25,000 events/s."""
    if isal_zlib is not None:
        compressor = isal_zlib.compressobj(ISAL_LEVEL, isal_zlib.DEFLATED, GZIP)
    else:
        compressor = zlib.compressobj(ZLIB_LEVEL, zlib.DEFLATED, GZIP)
    chunks = ("".join(texts[begin : begin + CHUNK]).encode() for begin in range(0, len(texts), CHUNK))
    return b"".join([*map(compressor.compress, chunks), compressor.flush()])


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
    losses = _make_losses(entry for labels, entry in entries if labels["type"] == LOST)
    return Parcel(_compress([text]), events, min(int(entry[0]) for _, entry in entries), tuple(losses))


def count_events(body: bytes) -> int:
    """Events in a body, LOST records not among them."""
    return sum(len(stream["values"]) for stream in _read(body) if stream["stream"]["type"] != LOST)


def find_losses(body: bytes) -> list[Lost]:
    """The LOST records in a body, as they were before they were encoded."""
    return _make_losses(
        entry for stream in _read(body) if stream["stream"]["type"] == LOST for entry in stream["values"]
    )


def _make_losses(entries: Iterable[list[Any]]) -> list[Lost]:
    return [
        Lost(
            int(each.get("lost", ABSENT)),
            parse_time(each["since"]),
            parse_time(each["until"]),
            each["where"],
            each.get("reason", ""),
        )
        for each in (entry[2] for entry in entries)
    ]
