"""The loop of one socket: receive -> decide -> locate -> render. What happens to each event is the engine's.

Runs in a thread of its own. What other threads change (filter, outboxes) they replace as a whole; the loop
reads it once a batch, so that no batch is decided by half of each. What readers share is the pipeline's.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState
from conntrackd.engine import (
    INDEX_BYTES,
    SLOTS,
    EventBatch,
    Flows,
    Link,
    Opaque,
    Relayed,
    RuleTable,
    Selection,
    Stages,
)
from conntrackd.flow import ABSENT, ALL_EVENTS, EventType, Lost
from conntrackd.netlink.socket import EventSocket
from conntrackd.records import Records
from conntrackd.relay import LONG_WAIT, can_relay, relay
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template
from conntrackd.source.heartbeat import Heartbeat
from conntrackd.source.resync import Resync
from conntrackd.source.table_guard import RELEASED, RELEASING, Guard
from conntrackd.tails import Tail

if TYPE_CHECKING:
    from conntrackd.pipeline import Pipeline, Tables

# How often a reader without events looks whether it is to stop. It costs 2 wake-ups a second.
PATIENCE_MS: Final = 500
# How long the last events are waited for when the groups are left already, and any while the table is read.
LAST_MS: Final = 1
# How long what has come is read at the end, where a next process could go on.
KEPT_SECONDS: Final = 1.0
# Where events come one after the other, they are read so often; where each sink waits longer for others to
# write with them, as a file does, less often: most of what 10,000 events a second cost is done once a batch.
# Where very many come, the core reads them sooner than that: see GATHER_EVENTS in core/receive.c.
GATHER_US: Final = 4000
LONG_GATHER_US: Final = 50_000
# A buffer has to hold what may come meanwhile: 400,000 events a second, of 1,280 bytes each.
GATHER_BYTES: Final = 1 << 21
LONG_GATHER_BYTES: Final = 26 << 20
# Flows of the table come in chunks of some 200. Events have precedence for the room in an outbox.
TABLE_ROOM: Final = 256
DROPS_MODULUS: Final = 1 << 32  # the kernel's counter is a u32


class ReportedDrops(NamedTuple):
    """Of the socket with this name in the store, if any, so many of the kernel's drops are reported."""

    name: str = ""
    drops: int = 0


Part = tuple[Outbox, Selection, RuleTable | None]
"""What of a batch is for one sink: what the global filter keeps, and the sink's own, where it has one.

That one is the last, for it knows what sample of its own an event is in.
"""
Share = tuple[Outbox, Selection, Rendered | None]
"""The same, and as many of the first events as its outbox takes, in the form of the sink; None for none."""


class Reader:
    """Either listen() or Pipeline.replay() is called, once."""

    def __init__(self, pipeline: "Pipeline", number: int) -> None:
        self.turns = 0
        """Grows while the loop goes round, events or not: what the watchdog looks at."""
        self.begun = self.done = 0
        """Batches: while they differ, one is on its way to the outboxes among which it was divided."""
        self.reported = ReportedDrops()
        """Which socket is read, and how far its losses are reported."""
        self.emptied_at = -math.inf
        """What had been queued by then, a time of time.monotonic(), is processed."""
        self.fill = (0, 0)
        """Bytes in the socket's queue and bytes that may be in it, when they were last looked at."""
        self.batch = pipeline.engine.open_batch()
        self._pipeline = pipeline
        self._number = number
        self._templates: dict[tuple[Template, int | None], Opaque] = {}
        self._locations = pipeline.open_locations()
        self._generation = pipeline.generation
        self._looked_ns = time.time_ns()
        self._hears = False  # events came in the last turn
        self._tables: Tables | None = None
        self._outboxes: Sequence[Outbox] = ()
        self._records = Records()
        self._flows: Flows | None = None

    def listen(self, events: EventSocket, reported: ReportedDrops | None = None) -> None:
        """Process what the kernel sends until the pipeline stops. Raises OSError when the socket is gone.

        A socket that is kept for a next process goes on to gather its events; of any other what has come is
        read to the end.
        """
        pipeline = self._pipeline
        self.reported = reported or self.reported
        size = events.measure().size
        while not pipeline.stopping:
            resync = pipeline.resync  # another thread may end it
            is_reading = resync is not None and resync.is_reading
            heartbeat = pipeline.heartbeat if self._number == 0 else None
            patience_ms = LAST_MS if is_reading else PATIENCE_MS
            gather_us = 0 if is_reading else self._compute_gather(size)
            if heartbeat is not None:
                left = heartbeat.compute_patience()
                patience_ms = min(patience_ms, math.ceil(left * 1000))
                gather_us = min(gather_us, int(left * 1_000_000))
            # What follows silence is perhaps alone, and nothing is relayed for it.
            datagrams = self._turn(events, patience_ms, gather_us, relays=self._hears)
            if resync is not None and self._number == 0 and datagrams < SLOTS:
                self._read_table(resync)
            if heartbeat is not None and datagrams < SLOTS and heartbeat.is_due():
                self._beat(heartbeat)
        if pipeline.keeps_socket:
            # Nobody knows whether there will be a next process: it finds what comes after this.
            end = time.monotonic() + KEPT_SECONDS
            while self._turn(events, LAST_MS, 0) and time.monotonic() < end:
                pass
            return
        # Hear of no more, so that there is an end; then read what had come before.
        events.leave(ALL_EVENTS)
        while self._turn(events, LAST_MS, 0):
            pass

    def drain(self, events: EventSocket, reported: ReportedDrops) -> Iterator[bytes]:
        """Process what is in a socket that hears of nothing more; gives its datagrams, a batch at a time."""
        self.reported = reported
        while self._receive(events, 0, 0):
            yield self.batch.datagrams(SLOTS)[1]

    def _compute_gather(self, size: int) -> int:
        """The most microseconds for which events may gather in a buffer of so many bytes."""
        pipeline = self._pipeline
        if size < GATHER_BYTES:
            return 0
        if size < LONG_GATHER_BYTES or pipeline.tails.wanting:
            return GATHER_US
        for outbox in pipeline.outboxes:
            if outbox.batch_wait < LONG_WAIT:
                return GATHER_US
        return LONG_GATHER_US

    def _turn(self, events: EventSocket, patience_ms: int, gather_us: int, *, relays: bool = False) -> int:
        """One batch of the reader's own socket, after those that may be relayed; its number of datagrams."""
        began = time.monotonic()
        datagrams = self._receive(events, patience_ms, gather_us, relays=relays)
        # Nothing was left in the queue. A relay may have ended with full slots, and gives back no event then.
        if datagrams < SLOTS and not (relays and self.fill[0]):
            self.emptied_at = began
        return datagrams

    def _receive(self, events: EventSocket, patience_ms: int, gather_us: int, *, relays: bool = False) -> int:
        """Receive one batch of any socket, perhaps after some that are relayed, and process it."""
        self.turns += 1
        relayed = self._relay(events, gather_us) if relays else None
        if relayed is None:
            received = self.batch.receive(events.fileno(), patience_ms, gather_us)
            batches, decided = 0, None
        else:
            received, batches, decided = relayed.received, relayed.batches, relayed.decided
        datagrams, forged, malformed, used, size, drops = received
        # What follows a new address has perhaps one, too.
        self._hears = datagrams + batches > 0 and decided is None
        if datagrams:
            self.process(self.batch, datagrams, forged, malformed, decided)
        else:
            self._take_tables()  # or those of before would stay in memory
        if self.fill != (used, size):
            self.fill = (used, size)
            self._pipeline.note_fill()
        now = time.time_ns()
        if drops != self.reported.drops:
            self._account(events, drops, now)
        self._looked_ns = now
        return datagrams

    def _relay(self, events: EventSocket, gather_us: int) -> Relayed | None:
        """Batch after batch by the core alone; None where that cannot be."""
        pipeline, tables = self._pipeline, self._take_tables()
        if not can_relay(pipeline, tables, self._outboxes):
            return None
        self.begun += 1
        templates = [self._compile(self._identify(outbox)) for outbox in self._outboxes]
        link = Link(events.fileno(), gather_us, self.reported.drops)
        stages = Stages(tables.filter, self._locations, self._flows, tables.records.of_flows)
        relayed = relay(pipeline, self._outboxes, templates, self.batch, stages, link)
        if relayed is None or relayed.decided is None:  # else a batch is on its way
            self.done = self.begun
        if relayed is not None:
            self._looked_ns = relayed.looked_ns or self._looked_ns
        return relayed

    def process(
        self,
        batch: EventBatch,
        datagrams: int,
        forged: int,
        malformed: int,
        decided: Selection | None = None,
    ) -> None:
        """A batch of events, from decision to outboxes. `decided`: what the rules keep, if that is known."""
        pipeline, tables = self._pipeline, self._tables
        if tables is None or decided is None:  # else it is for the sinks of when it was decided
            self.begun += 1
            tables = self._take_tables()
        records, forgotten = tables.records, 0
        if self._flows is not None and decided is None:  # before the rules ask how long a flow lasted
            forgotten = self._flows.note(batch)
        kept = self._decide(batch, tables.filter, decided)
        if pipeline.flow_metrics and kept:
            self._count_flows(batch, kept)
        if pipeline.heartbeat is not None:
            with pipeline.lock:
                pipeline.heartbeat.end(batch)
        parts = self._divide(batch, tables, kept)  # as the kernel's types, which rules ask for
        ended = batch.of_types(kept, EventType.DESTROY) if records.of_flows else b""
        whole = _list_ended(batch, parts) if ended and records.of_events else []
        if ended and not records.of_events:
            batch.set_type(ended, EventType.FLOW)
        shares = self._render_all(batch, parts)
        wanted = self._render_tails(batch, self._divide_tails(batch, kept)) if pipeline.tails.wanting else []
        stats, count = pipeline.stats, len(kept) // INDEX_BYTES
        with pipeline.lock:
            pipeline.count_received(1, datagrams, forged, malformed, len(batch) - count)
            stats.flows_forgotten_total += forgotten
            if pipeline.resync is not None:
                pipeline.resync.note(batch, kept)
            if count:
                pipeline.count(batch.tally(kept))
                self._hand_on(batch, kept, shares, wanted)
        if ended and records.of_events:
            self._hand_on_flows(batch, ended, whole)
        self.done = self.begun

    def _take_tables(self) -> "Tables":
        """Those in force, for a batch, with sets and databases of now; and the outboxes that it is for."""
        pipeline = self._pipeline
        self._outboxes = pipeline.outboxes  # first: the rules of one that comes are in force before it
        if self._generation != pipeline.generation:
            self._generation, self._locations = pipeline.generation, pipeline.open_locations()
        tables = pipeline.tables[self._number]
        if tables is not self._tables:
            self._tables = tables
            tables.use_sets()
            self._remember(tables.records)
        return tables

    def _use_sets(self, table: RuleTable) -> RuleTable:
        """A table that comes at any time, with the sets of then; with those of this batch."""
        if self._tables is not None and self._tables.sets is not None:
            table.use_sets(self._tables.sets)
        return table

    def _remember(self, records: Records) -> None:
        """As many flows as these say, of which each reader has its share."""
        if self._records != records:
            self._records = records
            most = math.ceil(records.remembered / len(self._pipeline.readers))
            self._flows = self._pipeline.engine.open_flows(most) if most else None

    def _hand_on_flows(self, batch: EventBatch, ended: Selection, parts: list[Part]) -> None:
        """A FLOW for each of these, beside its DESTROY, which the sinks have by now."""
        batch.set_type(ended, EventType.FLOW)
        if self._pipeline.heartbeat is not None:
            self._pipeline.heartbeat.hide(batch, ended)
        shares = self._render_all(batch, parts)
        wanted = self._render_tails(batch, self._divide_tails(batch, ended))
        with self._pipeline.lock:
            self._pipeline.stats.flows_total += len(ended) // INDEX_BYTES
            self._hand_on(batch, ended, shares, wanted)

    def _decide(self, batch: EventBatch, table: RuleTable, decided: Selection | None) -> Selection:
        """What the rules keep, with its locations."""
        locations, engine = self._locations, self._pipeline.engine
        if decided is None and locations is not None and table.needs_location:
            locations.locate(batch, None)
            return engine.decide(batch, table, None, locations)
        kept = engine.decide(batch, table, None, None) if decided is None else decided
        if locations is not None:
            locations.locate(batch, kept)
        return kept

    def _count_flows(self, batch: EventBatch, kept: Selection) -> None:
        """What metrics.flows asks for, of what the global filter keeps."""
        pipeline = self._pipeline
        for metric in pipeline.flow_metrics:
            events = kept
            if metric.tables:
                own = self._use_sets(metric.tables[self._number])
                events = pipeline.engine.decide(batch, own, kept, self._locations, is_part=True)
            with pipeline.lock:
                metric.series.count(batch, events)

    def _divide(self, batch: EventBatch, tables: "Tables", kept: Selection) -> list[Part]:
        """Which of these are for which sink. They have their locations: rules of a sink may ask for them."""
        engine = self._pipeline.engine
        found: list[Part] = []
        for outbox in self._outboxes if kept else ():
            own = tables.sinks.get(outbox.name) if tables.sinks else None
            events = kept
            if own is not None:
                events = engine.decide(batch, own, kept, self._locations, is_part=True)
            found.append((outbox, events, own))
        return found

    def _render_all(self, batch: EventBatch, parts: list[Part]) -> list[Share]:
        """The same with as much as there is room for, in the form of each sink."""
        found: list[Share] = []
        for outbox, events, own in parts:
            room, rendered = outbox.get_room() if events else 0, None
            if room:
                rendered = self._render(batch, self._identify(outbox), events[: room * INDEX_BYTES], own)
            found.append((outbox, events, rendered))
        return found

    def _divide_tails(self, batch: EventBatch, kept: Selection) -> list[tuple[Tail, Selection]]:
        """What each tail wants of the events that the sinks get, where it wants any."""
        pipeline = self._pipeline
        found: list[tuple[Tail, Selection]] = []
        for tail in pipeline.tails.wanting if kept else ():
            own = self._use_sets(tail.rules[self._number])
            wanted = pipeline.engine.decide(batch, own, kept, self._locations, is_part=True)
            if wanted:
                found.append((tail, wanted))
        return found

    def _render_tails(
        self, batch: EventBatch, wanted: list[tuple[Tail, Selection]]
    ) -> list[tuple[Tail, Rendered]]:
        """The same as lines."""
        form = (self._pipeline.tails.template, self._pipeline.community_seeds[0])
        return [
            (tail, self._render(batch, form, events, tail.rules[self._number])) for tail, events in wanted
        ]

    def _identify(self, outbox: Outbox) -> tuple[Template, int | None]:
        """A sink's template, with the seed of its Community IDs."""
        seed, asked = self._pipeline.community_seeds
        return outbox.template, asked.get(outbox.name, seed)

    def _render(
        self, batch: EventBatch, form: tuple[Template, int | None], selection: Selection, part: object = None
    ) -> Rendered:
        return self._pipeline.engine.render(batch, self._compile(form), selection, self._locations, part)

    def _compile(self, form: tuple[Template, int | None]) -> Opaque:
        compiled = self._templates.get(form)
        if compiled is None:
            self._forget_templates()
            compiled = self._templates[form] = self._pipeline.engine.compile_template(*form)
        return compiled

    def _forget_templates(self) -> None:
        """Of sinks that a reload has made anew; what they write in place of addresses takes megabytes."""
        pipeline = self._pipeline
        used = {
            (pipeline.tails.template, pipeline.community_seeds[0]),
            *map(self._identify, pipeline.outboxes),
        }
        self._templates = {form: compiled for form, compiled in self._templates.items() if form in used}

    def _hand_on(
        self, batch: EventBatch, kept: Selection, shares: list[Share], wanted: list[tuple[Tail, Rendered]]
    ) -> None:
        """Under the pipeline's lock."""
        # What the kernel gives no time has that of its batch.
        is_timed = bool(kept) and batch.time(kept, 0) != batch.received_ns
        for outbox, events, rendered in shares:
            count, room = len(events) // INDEX_BYTES, 0
            if rendered is not None:
                outbox.put(rendered, is_timed=is_timed)
                room = rendered.events
            if room < count:
                outbox.drop(count - room, batch.time(events, room), batch.time(events, -1))
            if len(events) < len(kept):
                outbox.leave_out((len(kept) - len(events)) // INDEX_BYTES)
        for tail, part in wanted:
            self._pipeline.tails.put(tail, part)

    # ---- losses ---------------------------------------------------------------------------------------

    def _account(self, events: EventSocket, drops: int, now: int) -> None:
        """Report the events without room that the kernel has counted since the last time, to every sink."""
        pipeline, reported = self._pipeline, self.reported
        if pipeline.guard is not None:
            self._account_retried(events, pipeline.guard, drops, now)
            return
        lost = (drops - reported.drops) % DROPS_MODULUS
        self.reported = reported._replace(drops=drops)
        pipeline.report_lost(Lost(lost, self._looked_ns, now, "kernel"))

    def _account_retried(self, events: EventSocket, guard: Guard, drops: int, now: int) -> None:
        """Account for events without room: they are not lost as long as the kernel tries again."""
        state, released_at = guard.read_release()
        if state == RELEASING:
            return
        if state == RELEASED:
            self._pipeline.guard, drops = None, released_at  # what came after them is accounted for next
        retried = (drops - self.reported.drops) % DROPS_MODULUS
        self.reported = self.reported._replace(drops=drops)
        self._pipeline.stats.events_retried_total += retried
        if retried and events.read_groups() & ~EventType.DESTROY:
            # A NEW or UPDATE is not sent again: what it would have said comes with the flow's next event.
            lost = Lost(ABSENT, self._looked_ns, now, "kernel", "merged into later events")
            self._pipeline.report_lost(lost)
        self._pipeline.on_lost(0)

    # ---- the table ------------------------------------------------------------------------------------

    def _read_table(self, resync: Resync) -> None:
        """One step, unless a sink that works would have no room for its flows.

        Not before each reader has read all that may be about the flows to be decided. And under the
        lock: what another reader hands on may not come between the decision about a flow and its report.
        """
        pipeline = self._pipeline
        if not all(resync.is_settled(reader.emptied_at) for reader in pipeline.readers):
            return
        if not self._has_table_room():
            return
        with pipeline.lock:
            fresh = resync.step()
            if fresh:
                self._report_flows(resync, fresh)
            if resync.is_over:
                pipeline.resync = None

    def _report_flows(self, resync: Resync, fresh: Selection) -> None:
        """Flows of the table that the sinks have not heard of: decided as the NEW that was lost."""

        def note(kept: Selection) -> None:
            resync.batch.set_type(kept, EventType.SNAPSHOT)
            resync.note_reported(resync.batch, kept)
            self._pipeline.stats.events_snapshot_total += len(kept) // INDEX_BYTES

        self._report_found(resync.batch, fresh, EventType.NEW, note)

    def _report_found(
        self, batch: EventBatch, found: Selection, event_type: EventType, note: Callable[[Selection], None]
    ) -> None:
        """Flows of the table, which rules know by this type. What they keep `note` gets, then the sinks."""
        pipeline, tables, locations = self._pipeline, self._take_tables(), self._locations
        if locations is not None:
            locations.locate(batch, found)
        batch.set_type(found, event_type)
        kept = pipeline.engine.decide(batch, tables.filter, found, locations)
        if kept:
            parts, wanted = self._divide(batch, tables, kept), self._divide_tails(batch, kept)
            note(kept)
            self._hand_on(batch, kept, self._render_all(batch, parts), self._render_tails(batch, wanted))

    def _has_table_room(self) -> bool:
        """Whether each sink that works has room for flows of the table."""
        outboxes = self._pipeline.outboxes
        return all(outbox.state is not SinkState.OK or outbox.has_room(TABLE_ROOM) for outbox in outboxes)

    def _beat(self, heartbeat: Heartbeat) -> None:
        """Write the chunk of the table that was read, and read the next one. Under the lock, as above."""
        if not self._has_table_room():
            heartbeat.postpone()
            return
        with self._pipeline.lock:
            living = heartbeat.take()
            if living:
                self._report_living(heartbeat, living)
            heartbeat.go_on()

    def _report_living(self, heartbeat: Heartbeat, living: Selection) -> None:
        """Those of the chunk that the rules keep. What another one has counted is for its next record."""

        def note(kept: Selection) -> None:
            stats = self._pipeline.stats
            stats.heartbeats_without_room_total += heartbeat.advance(kept)
            stats.heartbeats_total += len(kept) // INDEX_BYTES

        self._report_found(heartbeat.batch, living, EventType.ALIVE, note)


def _list_ended(batch: EventBatch, parts: list[Part]) -> list[Part]:
    """Of what each sink gets, the flows that have ended."""
    return [(outbox, batch.of_types(events, EventType.DESTROY), own) for outbox, events, own in parts]
