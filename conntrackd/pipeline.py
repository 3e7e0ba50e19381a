"""The loop: batch -> decide -> locate -> render -> outboxes. What happens to each event is the engine's.

Runs in the reader's thread. What other threads change (filter, outboxes) they replace as a whole; the loop
reads it once a batch, so that no batch is decided by half of each.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState
from conntrackd.engine import INDEX_BYTES, SLOTS, Batch, Engine, Received, Selection, Table
from conntrackd.flow import ABSENT, EventType, Lost
from conntrackd.guard import RELEASED, RELEASING, Guard
from conntrackd.netlink.socket import EventSocket
from conntrackd.render.template import Template
from conntrackd.resync import Resync
from conntrackd.stats import Stats
from conntrackd.tails import Tails

if TYPE_CHECKING:
    from conntrackd.geoip import GeoIP  # maxminddb is for those who have a database

logger = logging.getLogger(__name__)

# How often a reader without events looks whether it is to stop. It costs 2 wake-ups a second.
PATIENCE_MS: Final = 500
# How long the last events are waited for when the groups are left already, and any while the table is read.
LAST_MS: Final = 1
# Where events come one after the other, they are read so often. A buffer has to hold what may come meanwhile:
# 400,000 events a second, of 1,280 bytes each.
GATHER_US: Final = 4000
GATHER_BYTES: Final = 1 << 21
# How long a replay waits at a time for room in an outbox.
ROOM_SECONDS: Final = 0.1
# Flows of the table come in chunks of some 200. Events have precedence for the room in an outbox.
TABLE_ROOM: Final = 256
DROPS_MODULUS: Final = 1 << 32  # the kernel's counter is a u32
# Templates that are compiled at a time; every reload makes new ones.
MAX_TEMPLATES: Final = 32


class Pipeline:
    """What happens to events. One of listen() and replay() is called, once, in a thread of its own."""

    def __init__(  # the parts of the path in their order
        self,
        engine: Engine,
        table: Table,
        geoip: "GeoIP | None",
        outboxes: Sequence[Outbox],
        tails: Tails,
        stats: Stats,
    ) -> None:
        self.engine = engine
        self.table = table
        self.outboxes = tuple(outboxes)
        self.on_lost: Callable[[int], None] = lambda _: None
        """Gets the number of events when the kernel's counter of drops has risen, 0 if they come later."""
        self.protocols: Counter[int] = Counter()
        """Events handed to the sinks, by protocol number."""
        self.lock = threading.Lock()
        """Held while a batch is under way: whoever has it reads counters whose sums hold."""
        self.turns = 0
        """Grows while the loop goes round, events or not: what the watchdog looks at."""
        self._batch = engine.open_batch()
        self._templates: dict[Template, Any] = {}
        self._tails = tails
        self._stats = stats
        self._stopping = False
        self.drops = 0
        """The kernel's counter of drops, as far as it is told."""
        self.keeps_socket = False
        self.resync: Resync | None = None
        self.guard: Guard | None = None
        self._looked_ns = time.time_ns()
        self._geoip: GeoIP | None = None
        self._next_locations: Any = None
        self.set_geoip(geoip)
        self._locations = self._next_locations
        """The reader's own: those of the batch that is under way."""

    @property
    def geoip(self) -> "GeoIP | None":
        """Where locations come from."""
        return self._geoip

    def set_geoip(self, geoip: "GeoIP | None") -> None:
        """From the next batch on. From any thread."""
        if geoip is self._geoip:
            return
        self._geoip = geoip
        self._next_locations = None if geoip is None else self.engine.open_locations(geoip, geoip.cache)

    def stop(self) -> None:
        """Ends the loop when what the kernel has queued is read, or soon. From any thread."""
        self._stopping = True

    def listen(self, events: EventSocket, drops: int = 0) -> None:
        """Process what the kernel sends until stop(). Raises OSError when the socket is gone.

        `drops` of the kernel's counter are told already. A socket that is kept for a next process goes on to
        gather its events; of any other what has come is read to the end.
        """
        self.drops = drops
        gather_us = GATHER_US if events.measure().size >= GATHER_BYTES else 0
        while not self._stopping:
            is_reading = self.resync is not None and self.resync.is_reading
            self._turn(events, LAST_MS if is_reading else PATIENCE_MS, 0 if is_reading else gather_us)
        if self.keeps_socket:
            return
        # Hear of no more, so that there is an end; then read what had come before.
        events.leave(EventType.NEW | EventType.UPDATE | EventType.DESTROY)
        while self._turn(events, LAST_MS, 0):
            pass

    def replay(self, batches: Iterable[tuple[int, int]], batch: Batch) -> None:
        """Process a recording, loaded into the batch; waits for sinks that are slower than the file."""
        for messages, malformed in batches:
            self.turns += 1
            if self._stopping:
                return
            self._wait_for_room(messages)
            self._process(batch, messages, 0, malformed)
        for outbox in self.outboxes:
            while not (outbox.is_out() or outbox.flush(ROOM_SECONDS) or self._stopping):
                self.turns += 1

    def _turn(self, events: EventSocket, patience_ms: int, gather_us: int) -> int:
        """One batch; how many datagrams were in it."""
        self.turns += 1
        received = Received(*self._batch.receive(events.fileno(), patience_ms, gather_us))
        if received.datagrams:
            self._process(self._batch, received.datagrams, received.forged, received.malformed)
        self._account(events, received)
        # A batch that is not full has left nothing in the queue.
        if self.resync is not None and received.datagrams < SLOTS:
            self._read_table(events, self.resync)
        return received.datagrams

    def _process(self, batch: Batch, datagrams: int, forged: int, malformed: int) -> None:
        stats = self._stats
        self._locations = self._next_locations
        with self.lock:
            stats.batches_received_total += 1
            stats.events_received_total += datagrams - forged
            stats.events_forged_total += forged
            stats.events_malformed_total += malformed
            kept = self._decide(batch)
            count = len(kept) // INDEX_BYTES
            stats.events_filtered_total += len(batch) - count
            if self.resync is not None:
                self.resync.note(batch, kept)
            if count:
                self._count(batch, kept, count)
                self._hand_on(batch, kept, count)

    def _decide(self, batch: Batch) -> Selection:
        """What the rules keep, with its locations."""
        engine, table, locations = self.engine, self.table, self._locations
        if locations is None:
            return engine.decide(batch, table, None, None)
        if table.needs_location:
            locations.locate(batch, None)
            return engine.decide(batch, table, None, locations)
        kept = engine.decide(batch, table, None, None)
        locations.locate(batch, kept)
        return kept

    def _hand_on(self, batch: Batch, kept: Selection, count: int) -> None:
        """To all outboxes, each in the form of its sink, as much as there is room for."""
        for outbox in self.outboxes:
            room = min(outbox.find_room(), count)
            if room:
                outbox.put(self._render(batch, outbox.template, kept[: room * INDEX_BYTES]))
            if room < count:
                outbox.drop(count - room, batch.time(kept, room), batch.time(kept, -1))
        for tail in self._tails.wanting:
            wanted = self.engine.decide(batch, tail.rules, kept, self._locations)
            if wanted:
                self._tails.put(tail, self._render(batch, self._tails.template, wanted))

    def _render(self, batch: Batch, template: Template, selection: Selection) -> Any:  # noqa: ANN401
        compiled = self._templates.get(template)
        if compiled is None:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            compiled = self._templates[template] = self.engine.compile_template(template)
        return self.engine.render(batch, compiled, selection, self._locations)

    def _count(self, batch: Batch, kept: Selection, count: int) -> None:
        stats = self._stats
        stats.events_accepted_total += count
        for event_type, protocol, events in batch.tally(kept):
            self.protocols[protocol] += events
            if event_type == EventType.NEW:
                stats.events_new_total += events
            elif event_type == EventType.UPDATE:
                stats.events_update_total += events
            else:
                stats.events_destroy_total += events

    def _account(self, events: EventSocket, received: Received) -> None:
        """Look at the kernel's counter of events that it had no room for, and tell every sink of more."""
        now, stats, drops = time.time_ns(), self._stats, received.drops
        stats.buffer_used_bytes, stats.buffer_bytes = received.used, received.size
        stats.buffer_peak_bytes = max(stats.buffer_peak_bytes, received.used)
        if drops != self.drops and self.guard is not None:
            self._account_retried(events, self.guard, drops, now)
        elif drops != self.drops:
            lost = (drops - self.drops) % DROPS_MODULUS
            self.drops = drops
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
        if any(o.state is SinkState.OK and not o.has_room(TABLE_ROOM) for o in self.outboxes):
            return
        fresh = resync.step()
        if fresh:
            self._report_flows(resync, fresh)
        if resync.is_over:
            self.resync = None

    def _report_flows(self, resync: Resync, fresh: Selection) -> None:
        """Flows of the table that the sinks have not heard of: decided as the NEW that was lost."""
        batch, engine, locations = resync.batch, self.engine, self._locations
        if locations is not None:
            locations.locate(batch, fresh)
        batch.set_type(fresh, EventType.NEW)
        kept = engine.decide(batch, self.table, fresh, locations)
        count = len(kept) // INDEX_BYTES
        if count:
            batch.set_type(kept, EventType.SNAPSHOT)
            resync.note_reported(batch, kept)
            with self.lock:
                self._stats.events_snapshot_total += count
                self._hand_on(batch, kept, count)

    def tell_lost(self, lost: Lost) -> None:
        """Past every filter, to every sink."""
        for outbox in self.outboxes:
            outbox.report(lost)
        self._tails.report(lost)
        if self.resync is not None:
            self.resync.request()
        self.on_lost(max(0, lost.count))

    def _wait_for_room(self, events: int) -> None:
        for outbox in self.outboxes:
            while not (outbox.has_room(events) or self._stopping):
                self.turns += 1
                outbox.flush(ROOM_SECONDS)
