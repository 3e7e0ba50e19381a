"""Rendered: events as one sink writes them, on their way from the reader to the sink. Text is made once."""

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

END_BYTES: Final = array("I").itemsize
MOMENT_BYTES: Final = array("Q").itemsize
# What a packed text begins with. In the machine's own order of bytes: another machine's is not taken for it.
MAGIC: Final = 0x31525443
# Magic, time, events, bytes of `ends` and of `moments`, number of streams; these three and the text follow.
HEADER: Final = struct.Struct("=IQIIII")
PACKED_STREAM: Final = struct.Struct("=BBI?")
# The type of a stream that is of no events, but of what limits held back.
HELD: Final = 255


class Stream(NamedTuple):
    """A run of events of one type and protocol: where a template keeps these apart, as Loki's does."""

    type: int
    protocol: int
    events: int
    is_replay: bool = False
    """Whether they come too late for the stream of their kind, and go to another one."""


class Rendered(NamedTuple):
    """Events in one template's form, in their order (with `streams`: in the order of each stream).

    `text` is all of them, one behind the other; `ends` an array('I') as bytes: where each one's text ends.
    `streams` cover all events in order, and `moments` is then an array('Q') as bytes: the time of each, in
    nanoseconds since the epoch, no two of one stream and batch the same. A loss has a text with one end, but
    no events, and a stream where it is one of its own: see Template.render_loss().
    """

    text: bytes
    ends: bytes
    events: int
    time: int
    """Of the first event, nanoseconds since the epoch."""
    streams: tuple[Stream, ...] = ()
    moments: bytes = b""

    def get_end(self, count: int) -> int:
        """Where the text of the first `count` events ends."""
        return array("I", self.ends[(count - 1) * END_BYTES : count * END_BYTES])[0] if count else 0

    def count_within(self, size: int) -> int:
        """How many of the first events have all of their text within its first `size` bytes."""
        return self.events if size >= len(self.text) else count_ends(self.ends, size)

    def split(self, count: int) -> tuple["Rendered", "Rendered"]:
        """The first `count` events, and the others."""
        end = self.get_end(count)
        first, second = _split_streams(self.streams, count)
        moments = self.moments[count * MOMENT_BYTES :]
        return (
            Rendered(
                self.text[:end],
                self.ends[: count * END_BYTES],
                count,
                self.time,
                first,
                self.moments[: count * MOMENT_BYTES],
            ),
            Rendered(
                self.text[end:],
                shift(self.ends[count * END_BYTES :], -end),
                self.events - count,
                array("Q", moments[:MOMENT_BYTES])[0] if moments else self.time,
                second,
                moments,
            ),
        )

    def select(self, chosen: Sequence[bool]) -> "Rendered":
        """Those events that are chosen. For rare cases: it looks at each of them."""
        numbers = [number for number, is_chosen in enumerate(chosen) if is_chosen]
        ends = array("I", self.ends)
        begins = array("I", (0, *ends[:-1]))
        moments = array("Q", self.moments)
        times = array("Q", (moments[number] for number in numbers) if moments else ())
        at, streams = 0, []
        for stream in self.streams:
            streams.append(stream._replace(events=sum(chosen[at : at + stream.events])))
            at += stream.events
        return Rendered(
            b"".join([self.text[begins[number] : ends[number]] for number in numbers]),
            array("I", accumulate(ends[number] - begins[number] for number in numbers)).tobytes(),
            len(numbers),
            min(times, default=self.time),
            tuple(stream for stream in streams if stream.events),
            times.tobytes(),
        )

    def list_streams(self) -> Iterator[tuple[Stream, memoryview]]:
        """Each run of events, with its text."""
        text, at, begin = memoryview(self.text), 0, 0
        for stream in self.streams:
            at += stream.events
            end = self.get_end(at)
            yield stream, text[begin:end]
            begin = end


def join(parts: Sequence[Rendered]) -> Rendered:
    """All of them, at least one, as one behind the other."""
    if len(parts) == 1:
        return parts[0]
    offsets = accumulate((len(part.text) for part in parts), initial=0)
    return Rendered(
        b"".join([part.text for part in parts]),
        b"".join([shift(part.ends, offset) for part, offset in zip(parts, offsets, strict=False)]),
        sum(part.events for part in parts),
        parts[0].time,
        tuple(stream for part in parts for stream in part.streams),
        b"".join([part.moments for part in parts]),
    )


def shift(ends: bytes, offset: int) -> bytes:
    """Adds the offset, which may be negative, to each of the ends."""
    if not offset or not ends:
        return ends
    # As one long number: no sum is larger than an end may be, and no difference negative, so that none of
    # them carries into its neighbour.
    offsets = array("I", (abs(offset),)) * (len(ends) // END_BYTES)
    one, other = int.from_bytes(ends, sys.byteorder), int.from_bytes(offsets.tobytes(), sys.byteorder)
    return (one + other if offset > 0 else one - other).to_bytes(len(ends), sys.byteorder)


def count_ends(ends: bytes, size: int) -> int:
    """How many of the first ends are no larger than the size."""
    return bisect_right(memoryview(ends).cast("I"), size)


def _split_streams(streams: tuple[Stream, ...], count: int) -> tuple[tuple[Stream, ...], tuple[Stream, ...]]:
    first, second = [], []
    for stream in streams:
        here = min(stream.events, count)
        count -= here
        first.append(stream._replace(events=here))
        second.append(stream._replace(events=stream.events - here))
    return (
        tuple(stream for stream in first if stream.events),
        tuple(stream for stream in second if stream.events),
    )


def pack(rendered: Rendered) -> bytes:
    """One text of bytes, from which unpack() makes the same."""
    ends, moments, streams = rendered.ends, rendered.moments, rendered.streams
    head = HEADER.pack(MAGIC, rendered.time, rendered.events, len(ends), len(moments), len(streams))
    packed = b"".join([PACKED_STREAM.pack(*stream) for stream in streams])
    return b"".join((head, ends, moments, packed, rendered.text))


def unpack(data: bytes) -> Rendered:
    """What pack() got. ValueError where it cannot have been that."""
    if len(data) < HEADER.size:
        raise ValueError("too short")
    magic, time, events, ends, moments, streams = HEADER.unpack_from(data)
    at_moments = HEADER.size + ends
    at_streams = at_moments + moments
    at_text = at_streams + streams * PACKED_STREAM.size
    if magic != MAGIC or at_text > len(data) or ends % END_BYTES or ends // END_BYTES < events:
        raise ValueError("not a packed text")
    found = Rendered(
        data[at_text:],
        data[HEADER.size : at_moments],
        events,
        time,
        tuple(map(Stream._make, PACKED_STREAM.iter_unpack(data[at_streams:at_text]))),
        data[at_moments:at_streams],
    )
    if len(found.text) != found.get_end(ends // END_BYTES):
        raise ValueError("cut short")
    return found
