"""Rendered entries -> the body of Loki's push request, and what else can be done to them. Pure functions."""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from conntrackd.render.loki import LOST, name_stream
from conntrackd.render.rendered import Rendered, Stream

REPLAY: dict[str, str] = {"replay": "1"}


def list_body(parts: Sequence[Rendered], labels: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The body in pieces. `labels` stand on every stream, beside its own."""
    streams: dict[tuple[int, int, bool], list[memoryview]] = {}
    counts: dict[tuple[int, int, bool], int] = {}
    for part in parts:
        for stream, entries in part.list_streams() if part.events else _list_loss(part):
            key = (stream.type, stream.protocol, stream.is_replay)
            streams.setdefault(key, []).append(entries)
            counts[key] = counts.get(key, 0) + stream.events
    before = b'{"streams":['
    # An ingester answers for the last stream of a push alone (3.7.6, pkg/ingester/instance.go): of late
    # events the largest one tells best whether they were too late.
    for key in sorted(streams, key=counts.__getitem__):
        yield before + _open_stream(labels, *key)
        *others, last = streams[key]
        yield from others
        yield last[:-1]  # the comma behind the last entry
        before = b"]},"
    yield b"]}]}"


def _list_loss(part: Rendered) -> Iterator[tuple[Stream, memoryview]]:
    yield Stream(0, 0, 1), memoryview(part.text)


def _open_stream(labels: Mapping[str, str], event: int, protocol: int, is_replay: bool) -> bytes:
    own = name_stream(event, protocol) if event else {"type": LOST}
    shown = {**labels, **own, **(REPLAY if is_replay else {})}
    return f'{{"stream":{json.dumps(shown, ensure_ascii=False, separators=(",", ":"))},"values":['.encode()


def halve(events: Rendered) -> tuple[Rendered, ...]:
    """The same entries in two, each stream's in their order; one when there is one entry."""
    return events.split((events.events + 1) // 2) if events.events > 1 else (events,)


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
    return replace(chosen, streams=streams) if chosen.events else None
