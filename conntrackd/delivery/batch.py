"""Batch: what one write is about, and the bytes that it is on disk. Pure values."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from conntrackd.delivery.compression import compress, decompress
from conntrackd.delivery.losses import dump_loss
from conntrackd.flow import Lost
from conntrackd.render.rendered import Rendered, join, pack, unpack
from conntrackd.render.template import Template

# The first byte on disk. Nothing that a version before 2.1 stored begins with one of them.
EVENTS, LOSS = b"E", b"L"


@dataclass(frozen=True, slots=True)
class Batch:
    """Rendered events, or one loss: text of its own, which nothing ever reads again."""

    parts: tuple[Rendered, ...]
    lost: Lost | None
    events: int
    """How many are in it. A loss is none: its events are counted elsewhere."""
    oldest: int
    """Time of the first record, as in Flow."""

    @classmethod
    def of(cls, parts: Sequence[Rendered]) -> "Batch":
        """Of events, in at least one part."""
        return cls(tuple(parts), None, sum(part.events for part in parts), parts[0].time)

    @classmethod
    def of_loss(cls, lost: Lost) -> "Batch":
        """Of a loss, which is written alone."""
        return cls((), lost, 0, lost.since)

    def skip(self, count: int) -> "Batch":
        """The same without its first `count` events, which must not be all of them."""
        if not count:
            return self
        parts = list(self.parts)
        while count >= parts[0].events:
            count -= parts.pop(0).events
        if count:
            parts[0] = parts[0].split(count)[1]
        return Batch.of(parts)

    def render(self, template: Template) -> tuple[Rendered, ...]:
        """What a sink writes."""
        return self.parts if self.lost is None else (template.render_loss(self.lost),)


def pack_batch(batch: Batch) -> bytes:
    """As a spool keeps it."""
    if batch.lost is None:
        return EVENTS + compress([pack(join(batch.parts))])
    return LOSS + json.dumps(dump_loss(batch.lost)).encode()


def is_packed(data: bytes) -> bool:
    """Whether pack_batch() made it, and not a version before 2.1."""
    return data[:1] in (EVENTS, LOSS)


def unpack_batch(data: bytes) -> Batch:
    """What pack_batch() got. ValueError where it cannot have been that."""
    kind, content = data[:1], data[1:]
    if kind == EVENTS:
        return Batch.of([unpack(decompress(content))])
    if kind == LOSS:
        return Batch.of_loss(Lost(*json.loads(content)))
    raise ValueError("not a packed batch")
