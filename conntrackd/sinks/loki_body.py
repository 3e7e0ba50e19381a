"""Rendered entries -> the body of Loki's push request, and what else can be done to them. Pure functions."""

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from conntrackd.render.loki import LOST, SUPPRESSED, name_stream
from conntrackd.render.rendered import HELD, Rendered, Stream

REPLAY: Final = {"replay": "1"}
LABEL: Final = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
Kind = tuple[int, int, bool]
"""What distinguishes a stream from the others of this host: type, protocol, whether it is a replay."""
LOSS: Final[Kind] = (0, 0, False)
REPORTS: Final = {LOSS[0]: LOST, HELD: SUPPRESSED}
"""By the type of the stream: what is not of events."""


def gather_streams(parts: Sequence[Rendered]) -> dict[Kind, list[memoryview]]:
    """The entries of each stream, the largest one last."""
    streams: dict[Kind, list[memoryview]] = {}
    counts: dict[Kind, int] = {}
    for part in parts:
        for stream, entries in part.list_streams() if part.events else _list_loss(part):
            kind = get_kind(stream)
            streams.setdefault(kind, []).append(entries)
            counts[kind] = counts.get(kind, 0) + stream.events
    # An ingester answers for the last stream of a push alone (3.7.6, pkg/ingester/instance.go): of late
    # events the largest one shows best whether they were too late.
    return {kind: streams[kind] for kind in sorted(streams, key=counts.__getitem__)}


def write_streams(
    streams: Mapping[Kind, Sequence[memoryview]], labels: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The body in pieces. `labels` stand on every stream, beside its own."""
    before = b'{"streams":['
    for kind, entries in streams.items():
        yield before + _open_stream(labels, kind)
        # One piece a stream: a compressor lets other threads run at each, and waits until they have. And not
        # all streams at once, which would be a copy of the whole push. The last entry has a comma behind it.
        yield memoryview(entries[0] if len(entries) == 1 else b"".join(entries))[:-1]
        before = b"]},"
    yield b"]}]}"


def _list_loss(part: Rendered) -> Iterator[tuple[Stream, memoryview]]:
    yield (part.streams[0] if part.streams else Stream(*LOSS[:2], 1)), memoryview(part.text)


def get_kind(stream: Stream) -> Kind:
    """Entries of one kind go to one stream."""
    return stream.type, stream.protocol, stream.is_replay


def _make_labels(kind: Kind) -> dict[str, str]:
    event, protocol, is_replay = kind
    if event in REPORTS:
        return {"type": REPORTS[event]}
    return {**name_stream(event, protocol), **(REPLAY if is_replay else {})}


def _open_stream(labels: Mapping[str, str], kind: Kind) -> bytes:
    shown = {**labels, **_make_labels(kind)}
    return f'{{"stream":{json.dumps(shown, ensure_ascii=False, separators=(",", ":"))},"values":['.encode()


def halve(events: Rendered) -> tuple[Rendered, ...]:
    """The same entries in two, each stream's in their order; one when there is one entry."""
    return events.split((events.events + 1) // 2) if events.events > 1 else (events,)


def list_kinds(events: Rendered) -> tuple[Kind, ...]:
    """Of the streams in a push."""
    return tuple(dict.fromkeys(map(get_kind, events.streams))) or (LOSS,)


def split_streams(events: Rendered, last: str = "") -> tuple[Rendered, ...]:
    """The entries of each stream by themselves; those that Loki calls `last` behind the others."""
    kinds = sorted(list_kinds(events), key=lambda kind: is_named(kind, last))
    if len(kinds) == 1:
        return (events,)
    found = [get_kind(stream) for stream in events.streams for _ in range(stream.events)]
    return tuple(events.select([other == kind for other in found]) for kind in kinds)


def is_named(kind: Kind, labels: str) -> bool:
    """Whether labels as Loki writes them, `{host="gw", prot="TCP", type="NEW"}`, are those of this stream."""
    # Only these distinguish streams of this host, and no label of the user's may have their names.
    found = {name: value for name, value in LABEL.findall(labels) if name in ("type", "prot", *REPLAY)}
    return found == _make_labels(kind)


def mark_replay(events: Rendered, before: int | None = None, count: int | None = None) -> Rendered | None:
    """The `count` oldest entries from before that time (all for None) in streams of their own: `replay="1"`.

    Loki takes late entries only into a stream that has no newer ones. None when they were there already, and
    for a loss: it is reported again with a new time, as soon as something else is accepted.
    """
    if not events.events or any(stream.is_replay for stream in events.streams):
        return None
    moments = array("Q", events.moments)
    if before is not None and count is not None and count < len(moments):
        before = min(before, sorted(moments)[count])
    chosen = events.select([before is None or moment < before for moment in moments])
    streams = tuple(stream._replace(is_replay=True) for stream in chosen.streams)
    return chosen._replace(streams=streams) if chosen.events else None
