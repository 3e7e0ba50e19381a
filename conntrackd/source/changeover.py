"""From the sockets of an earlier process to another number of them, without an event lost or doubled.

The new ones listen before the old ones cease to. What comes in between, some microseconds, is in both: in an
old one last, in a new one first. So the old ones are read to their ends, and what they ended with is left out
of what the new ones begin with. Only then do the readers begin, so that a flow's events keep their order.

Until then all of them are in systemd's store: whoever is killed on the way leaves the same to the next.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Final

from conntrackd.engine import SLOTS, Received
from conntrackd.flow import ALL_EVENTS
from conntrackd.netlink.constants import CTA_ID, NFGENMSG_LEN, NLMSG_HDRLEN
from conntrackd.netlink.message import MalformedError, split, walk_attributes
from conntrackd.netlink.socket import EventSocket, EventSockets
from conntrackd.reader import Reader, ReportedDrops

# An event takes more of a buffer: struct sk_buff and skb_shared_info alone have 576.
EVENT_BYTES: Final = 512
WAIT_SECONDS: Final = 0.25


class Changeover:
    """What is still to be read of old sockets."""

    def __init__(self, old: Sequence[tuple[EventSocket, ReportedDrops]], new: EventSockets) -> None:
        """The new ones hear of events already; from now on the old ones do not."""
        # Those first that an earlier changeover was about to leave, when its process was killed.
        self._old = sorted(old, key=lambda pair: pair[0].read_groups() != 0)
        for events, _ in self._old:
            events.leave(ALL_EVENTS)
        # How many of the first events of each may be doubled: in most cases none.
        counts = {events: events.measure().used // EVENT_BYTES for events in new.sockets.values()}
        self._doubtful = {events: count for events, count in counts.items() if count}
        self._is_over = threading.Event()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the old sockets in the store."""
        return tuple(reported.name for _, reported in self._old if reported.name)

    def run(self, reader: Reader) -> None:
        """In the thread of the first reader, before it listens."""
        tail: list[bytes] = []
        try:
            for events, reported in self._old:
                last: deque[bytes] = deque(maxlen=sum(self._doubtful.values()))
                for datagrams in reader.drain(events, reported):
                    if last.maxlen:
                        last.extend(split(datagrams))
                tail += last
                events.close()
            for events, count in self._doubtful.items():
                self._begin(reader, events, count, tail)
        finally:
            self._is_over.set()

    def wait(self, reader: Reader) -> None:
        """In the thread of any other reader: it lives, and does nothing yet."""
        while not self._is_over.wait(WAIT_SECONDS):
            reader.turns += 1

    @staticmethod
    def _begin(reader: Reader, events: EventSocket, count: int, tail: Sequence[bytes]) -> None:
        """Process the first events of a new socket, so many at least, without those of the tail."""
        batch, head, others, forged = reader.batch, list[bytes](), 0, 0
        while len(head) < count:
            received = Received(*batch.receive(events.fileno(), 0, 0))
            messages = split(batch.datagrams(SLOTS)[1]) if received.datagrams else []
            head += messages
            others, forged = others + received.datagrams - len(messages), forged + received.forged
            if received.datagrams < SLOTS:
                break
        fresh, now = leave_out(head, tail), batch.received_ns
        for first in range(0, len(fresh), SLOTS):
            chunk = b"".join(message + bytes(-len(message) % 4) for message in fresh[first : first + SLOTS])
            _, count, malformed = batch.load(chunk, 0, now)
            reader.process(batch, count, 0, malformed)
        batch.load(b"", 0, now)
        if others:  # forged ones, and those that were too long for a slot
            reader.process(batch, others, forged, others - forged)


def leave_out(head: Sequence[bytes], tail: Iterable[bytes]) -> list[bytes]:
    """The head, but for those events of each flow with which it goes on as the tail ends."""
    ended: defaultdict[bytes, list[bytes]] = defaultdict(list)
    begun: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for messages, flows in ((tail, ended), (head, begun)):
        for message in messages:
            flows[_read_flow_id(message)].append(message)
    doubled = {flow: _count_common(ended.get(flow, []), messages) for flow, messages in begun.items()}
    fresh = []
    for message in head:
        flow = _read_flow_id(message)
        if doubled[flow]:
            doubled[flow] -= 1
        else:
            fresh.append(message)
    return fresh


def _count_common(before: list[bytes], after: list[bytes]) -> int:
    """With how many messages the one ends and the other begins."""
    most = min(len(before), len(after))
    return next((count for count in range(most, 0, -1) if before[-count:] == after[:count]), 0)


def _read_flow_id(message: bytes) -> bytes:
    """The id of an event's flow; empty for what is not an event."""
    try:
        attributes = walk_attributes(message[NLMSG_HDRLEN + NFGENMSG_LEN :])
        return next((value for path, value in attributes if path == (CTA_ID,)), b"")
    except MalformedError:
        return b""
