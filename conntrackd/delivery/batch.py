"""Batch: what one write is about, and the bytes that it is on disk. Pure values.

These are compressed, as are the bodies for Loki: by ISA-L where it is installed, else by zlib.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Final

from conntrackd.delivery.losses import dump_loss
from conntrackd.flow import Lost
from conntrackd.render.rendered import Rendered, join, pack, unpack
from conntrackd.render.template import Template

# The first byte on disk. Nothing that a version before 2.1 stored begins with one of them.
EVENTS, LOSS = b"E", b"L"
# A gzip header without a time: the same events are the same bytes.
GZIP: Final = 16 + zlib.MAX_WBITS
# zlib takes 1.13 us for 20 bytes an event at level 1, 0.92 for 17 at level 3; ISA-L 0.21 for 19 at level 1.
ZLIB_LEVEL, ISAL_LEVEL = 3, 1


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

    def measure(self, count: int) -> int:
        """Bytes of the text of its first `count` events."""
        size = 0
        for part in self.parts:
            here = min(count, part.events)
            size += part.get_end(here)
            count -= here
        return size

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


@cache
def find_isal() -> ModuleType | None:
    """Debian has it since 13. Who compresses nothing does not load it: 0.4 MiB."""
    try:
        from isal import isal_zlib  # noqa: PLC0415
    except ImportError:
        return None
    return isal_zlib


def compress(texts: Iterable[bytes | memoryview]) -> bytes:
    """One after the other, without a copy of all of them: a second's events are 10 MB at 25,000 a second."""
    if (isal := find_isal()) is not None:
        compressor = isal.compressobj(ISAL_LEVEL, isal.DEFLATED, GZIP)
    else:
        compressor = zlib.compressobj(ZLIB_LEVEL, zlib.DEFLATED, GZIP)
    return b"".join([*map(compressor.compress, texts), compressor.flush()])


def decompress(data: bytes) -> bytes:
    """Raises ValueError if it is not gzip."""
    try:
        return zlib.decompress(data, GZIP)
    except zlib.error as error:
        raise ValueError(str(error)) from error
