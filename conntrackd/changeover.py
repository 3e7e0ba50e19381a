"""From the sockets of an earlier process to another number of them, without an event lost or doubled.

The new ones listen before the old ones cease to. What comes in between, some microseconds, is in both: in an
old one last, in a new one first. So the old ones are read to their ends, and what they ended with is left out
of what the new ones begin with. Only then do the readers begin, so that a flow's events keep their order.
"""

import threading
from collections.abc import Mapping
from typing import Final

from conntrackd.engine import Batch
from conntrackd.flow import EventType
from conntrackd.netlink.message import split
from conntrackd.netlink.shares import EventSockets
from conntrackd.netlink.socket import EventSocket
from conntrackd.reader import Reader

ALL: Final = EventType.NEW | EventType.UPDATE | EventType.DESTROY
# What the new sockets may have of what is in both; it is none or a few.
MAX_BATCHES: Final = 4
WAIT_SECONDS: Final = 0.25


class Changeover:
    """What is still to be read of old sockets, each with how many of its drops are reported."""

    def __init__(self, old: Mapping[str, tuple[EventSocket, int]], new: EventSockets, batch: Batch) -> None:
        """The new ones hear of events already; from now on the old ones do not."""
        self._old = dict(old)
        for events, _ in self._old.values():
            events.leave(ALL)
        self._first: list[bytes] = []
        for events in new.sockets.values() if self._old else ():
            for _ in range(MAX_BATCHES):
                datagrams, *_ = batch.receive(events.fileno(), 0, 0)
                if not datagrams:
                    break
                self._first += split(batch.datagrams(datagrams)[1])
        self._received_ns = batch.received_ns
        self._is_over = threading.Event()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the old sockets in the store."""
        return tuple(self._old)

    def run(self, reader: Reader) -> None:
        """In the thread of the first reader, before it listens."""
        try:
            tail = b""
            for events, drops in self._old.values():
                tail += reader.drain(events, drops)
                events.close()
            fresh = [message for message in self._first if message not in tail]
            if fresh:
                _, messages, malformed = reader.batch.load(b"".join(map(_pad, fresh)), 0, self._received_ns)
                reader.process(reader.batch, messages, 0, malformed)
        finally:
            self._is_over.set()

    def wait(self, reader: Reader) -> None:
        """In the thread of any other reader: it lives, and does nothing yet."""
        while not self._is_over.wait(WAIT_SECONDS):
            reader.turns += 1


def _pad(message: bytes) -> bytes:
    return message + bytes(-len(message) % 4)
