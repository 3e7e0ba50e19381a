"""The loop: batch -> select -> locate -> outboxes. Nothing in it runs once per event.

Runs in the reader's thread. What other threads change (selector, outboxes) they replace as a whole; the loop
reads it once a batch, so that no batch is judged by half of each.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from conntrackd.filter.pycode import Selector
from conntrackd.flow import ABSENT, EventType, Flow, Lost, Piece
from conntrackd.guard import RELEASED, RELEASING, Guard
from conntrackd.netlink.decode import Decoder
from conntrackd.netlink.socket import Datagrams, EventSocket
from conntrackd.resync import Resync
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import Form
from conntrackd.sinks.outbox import Outbox
from conntrackd.sinks.sink import SinkState
from conntrackd.sinks.tail import Tails
from conntrackd.stats import Stats

if TYPE_CHECKING:
    from conntrackd.geoip import GeoIP  # maxminddb is for those who have a database

logger = logging.getLogger(__name__)

# How often a reader without events looks whether it is to stop. It costs 4 wake-ups a second.
PATIENCE_SECONDS: Final = 0.25
# How long the last events are waited for when the groups are left already, and any while the table is read.
LAST_SECONDS: Final = 0.001
# How long what has come is read at the end, where a next process could go on.
KEPT_SECONDS: Final = 1.0
# When all that had come is read, the reader sleeps for so long: what comes meanwhile is one batch. Woken as
# soon as there was one, it had 5 to 9 events a batch at 25,000 a second, and not 110. No sink writes sooner
# than that, and a buffer has to hold what may come: 400,000 events a second, of 1,280 bytes each.
GATHER_SECONDS: Final = 0.004
GATHER_BYTES: Final = 1 << 21
# How long a replay waits at a time for room in an outbox.
ROOM_SECONDS: Final = 0.1
# Flows of the table come in chunks of some 200. Events have precedence for the room in an outbox.
TABLE_ROOM: Final = 256
DROPS_MODULUS: Final = 1 << 32  # the kernel's counter is a u32


class Pipeline:
    """What happens to events. One of listen() and replay() is called, once, in a thread of its own."""

    def __init__(  # the parts of the path in their order
        self,
        decoder: Decoder,
        selector: Selector,
        geoip: "GeoIP | None",
        outboxes: Sequence[Outbox[Any]],
        tails: Tails,
        stats: Stats,
    ) -> None:
        self.selector = selector
        self.geoip = geoip
        self.outboxes = tuple(outboxes)
        self.on_lost: Callable[[int], None] = lambda _: None
        """Gets the number of events when the kernel's counter of drops has risen, 0 if they come later."""
        self.protocols: Counter[int] = Counter()
        """Events handed to the sinks, by protocol number."""
        self.lock = threading.Lock()
        """Held while a batch is under way: whoever has it reads counters whose sums hold."""
        self.turns = 0
        """Grows while the loop goes round, events or not: what the watchdog looks at."""
        self._decoder = decoder
        self._tails = tails
        self._composer = Composer()
        self._stats = stats
        self._stopping = False
        self.drops = 0
        """The kernel's counter of drops, as far as it is told."""
        self.keeps_socket = False
        self.resync: Resync | None = None
        self.guard: Guard | None = None
        self._looked_ns = time.time_ns()

    def stop(self) -> None:
        """Ends the loop when what the kernel has queued is read, or soon. From any thread."""
        self._stopping = True

    def listen(self, events: EventSocket, drops: int = 0) -> None:
        """Process what the kernel sends until stop(). Raises OSError when the socket is gone.

        `drops` of the kernel's counter are told already. A socket that is kept for a next process goes on to
        gather its events; of any other what has come is read to the end.
        """
        events.set_patience(PATIENCE_SECONDS)
        self.drops = drops
        while not self._stopping:
            received = self._turn(events)
            if can_gather(received, events.slots, self._stats.buffer_bytes):
                time.sleep(GATHER_SECONDS)
        if self.keeps_socket:
            # Nobody knows whether there will be a next process: it finds what comes after this.
            events.set_patience(LAST_SECONDS)
            end = time.monotonic() + KEPT_SECONDS
            while self._turn(events) and time.monotonic() < end:
                pass
            return
        # Hear of no more, so that there is an end; then read what had come before.
        events.leave(EventType.NEW | EventType.UPDATE | EventType.DESTROY)
        events.set_patience(LAST_SECONDS)
        while self._turn(events):
            pass

    def replay(self, batches: Iterable[Datagrams]) -> None:
        """Process a recording; waits for sinks that are slower than the file, so that nothing is dropped."""
        for batch in batches:
            self.turns += 1
            if self._stopping:
                return
            self._wait_for_room(len(batch.lengths))
            self._process(batch)
        for outbox in self.outboxes:
            while not (outbox.is_out() or outbox.flush(ROOM_SECONDS) or self._stopping):
                self.turns += 1

    def _turn(self, events: EventSocket) -> int:
        """One batch; how many datagrams were in it."""
        self.turns += 1
        batch = events.receive()
        if batch is not None:
            self._process(batch)
        self._account(events)
        count = 0 if batch is None else len(batch.lengths) + batch.forged
        # A batch that is not full has left nothing in the queue.
        if self.resync is not None and count < events.slots:
            self._read_table(events, self.resync)
        return count

    def _process(self, batch: Datagrams) -> None:
        stats = self._stats
        with self.lock:
            stats.batches_received_total += 1
            stats.events_received_total += len(batch.lengths)
            stats.events_forged_total += batch.forged
            flows = self._decoder.decode(batch.buffer, batch.positions, batch.lengths, batch.received_ns)
            kept = self._select(flows)
            stats.events_filtered_total += len(flows) - len(kept)
            if self.resync is not None:
                self.resync.note(flows, kept)
            if kept:
                self._count(kept)
                self._hand_on(kept)

    def _select(self, flows: list[Flow]) -> list[Flow]:
        """What the rules keep, with its locations."""
        selector, geoip = self.selector, self.geoip
        if geoip is not None and selector.needs_location:
            geoip.locate(flows)
        kept = selector(flows)
        if kept and geoip is not None and not selector.needs_location:
            geoip.locate(kept)
        return kept

    def _hand_on(self, kept: list[Flow]) -> None:
        """To all outboxes, in the forms of those that have room: one pass over the events makes them all."""
        outboxes = self.outboxes
        forms = {each: form for each in outboxes if (form := each.find_form(len(kept))) is not None}
        pieces = self._compose(tuple(forms.values()), kept) if forms else []
        found = dict(zip(forms, pieces, strict=False))
        for outbox in outboxes:
            outbox.put(kept, found.get(outbox))
        self._tails.put(kept)

    def _compose(self, forms: tuple[Form, ...], kept: list[Flow]) -> list[Piece]:
        try:
            return self._composer.compose(forms, kept)
        except (
            Exception
        ):  # an event that nobody thought of costs each sink a batch, and not all sinks the reader
            logger.debug("cannot compose a batch", exc_info=True)
            return []

    def _count(self, kept: list[Flow]) -> None:
        stats = self._stats
        stats.events_accepted_total += len(kept)
        # list.count() takes half of what a Counter of attributes takes.
        types = [flow.type for flow in kept]
        stats.events_new_total += types.count(EventType.NEW)
        stats.events_update_total += types.count(EventType.UPDATE)
        stats.events_destroy_total += types.count(EventType.DESTROY)
        protocols = [flow.protocol for flow in kept]
        for each in set(protocols):
            self.protocols[each] += protocols.count(each)

    def _account(self, events: EventSocket) -> None:
        """Look at the kernel's counter of events that it had no room for, and tell every sink of more."""
        fill = events.measure()
        now, stats = time.time_ns(), self._stats
        stats.buffer_used_bytes, stats.buffer_bytes = fill.used, fill.size
        stats.buffer_peak_bytes = max(stats.buffer_peak_bytes, fill.used)
        if fill.drops != self.drops and self.guard is not None:
            self._account_retried(events, self.guard, fill.drops, now)
        elif fill.drops != self.drops:
            lost = (fill.drops - self.drops) % DROPS_MODULUS
            self.drops = fill.drops
            stats.events_lost_total += lost
            self.tell_lost(Lost(lost, self._looked_ns, now, "kernel"))
        self._looked_ns = now

    def _account_retried(self, events: EventSocket, guard: Guard, drops: int, now: int) -> None:
        """What had no room is no loss as long as the kernel tries again."""
        state, released_at = guard.find_release()
        if state == RELEASING:
            return
        if state == RELEASED:
            self.guard, drops = None, released_at  # what came after them is accounted for next
        retried = (drops - self.drops) % DROPS_MODULUS
        self.drops = drops
        self._stats.events_retried_total += retried
        if retried and events.find_groups() & ~EventType.DESTROY:
            # A NEW or UPDATE is not sent again: what it would have said comes with the flow's next event.
            self.tell_lost(Lost(ABSENT, self._looked_ns, now, "kernel", "merged into later events"))
        self.on_lost(0)

    def _read_table(self, events: EventSocket, resync: Resync) -> None:
        """One step, unless a sink that works would have no room for its flows."""
        if any(each.state is SinkState.OK and not each.has_room(TABLE_ROOM) for each in self.outboxes):
            return
        was_reading = resync.is_reading
        found = resync.take()
        kept = self._select(found) if found else []
        if kept:
            for flow in kept:
                flow.type = EventType.SNAPSHOT
            resync.note((), kept)
            with self.lock:
                self._stats.events_snapshot_total += len(kept)
                self._hand_on(kept)
        if resync.is_reading != was_reading:
            events.set_patience(LAST_SECONDS if resync.is_reading else PATIENCE_SECONDS)
        if resync.is_over:
            self.resync = None

    def tell_lost(self, lost: Lost) -> None:
        """Past every filter, to every sink."""
        for outbox in self.outboxes:
            outbox.tell_lost(lost)
        self._tails.tell_lost(lost)
        if self.resync is not None:
            self.resync.request()
        self.on_lost(max(0, lost.count))

    def _wait_for_room(self, events: int) -> None:
        for outbox in self.outboxes:
            while not (outbox.has_room(events) or self._stopping):
                self.turns += 1
                outbox.flush(ROOM_SECONDS)


def can_gather(received: int, slots: int, buffer: int) -> bool:
    """Whether the next events may wait for others: these were all, and the buffer holds what will come."""
    return 0 < received < slots and buffer >= GATHER_BYTES
