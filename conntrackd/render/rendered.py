"""Rendered: events as one sink writes them, on their way from the reader to the sink. Text is made once."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

END_BYTES = array("I").itemsize
MOMENT_BYTES = array("Q").itemsize


class Stream(NamedTuple):
    """A run of events of one type and protocol: where a template keeps these apart, as Loki's does."""

    type: int
    protocol: int
    events: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """Events in one template's form, in their order (with `streams`: in the order of each stream).

    `text` is all of them, one behind the other; `ends` an array('I') as bytes: where each one's text ends.
    `streams` cover all events in order, and `moments` is then an array('Q') as bytes: the time of each, in
    nanoseconds since the epoch, no two of one stream and batch the same. A loss has no events: see
    Template.render_loss().
    """

    text: bytes
    ends: bytes
    events: int
    time: int
    """Of the first event, nanoseconds since the epoch."""
    streams: tuple[Stream, ...] = ()
    moments: bytes = b""

    def find_end(self, count: int) -> int:
        """Where the text of the first `count` events ends."""
        return array("I", self.ends[(count - 1) * END_BYTES : count * END_BYTES])[0] if count else 0
