"""What the readers of events share: the filter in force, the outboxes, the counters, the end."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd.delivery.outbox import Outbox
from conntrackd.engine import Engine, Locations, Opaque, RuleTable, Tally
from conntrackd.errors import ConfigError
from conntrackd.flow import EventType, Lost
from conntrackd.metrics.flows import FlowMetric
from conntrackd.reader import Reader
from conntrackd.records import Records
from conntrackd.source.heartbeat import Heartbeat
from conntrackd.source.resync import Resync
from conntrackd.source.table_guard import Guard
from conntrackd.stats import Stats
from conntrackd.suppressed import Suppressed
from conntrackd.tails import Tails

if TYPE_CHECKING:
    from conntrackd.geoip.databases import GeoIP  # maxminddb is for those who have a database

logger = logging.getLogger(__name__)

# How long a replay waits at a time for room in an outbox.
ROOM_SECONDS: Final = 0.1
NO_SINKS: Final[Mapping[str, Sequence[RuleTable]]] = MappingProxyType({})
NOWHERE: Final[Mapping[str, int]] = MappingProxyType({})
ONLY_EVENTS: Final = Records()


class Tables(NamedTuple):
    """What decides for one reader: the global filter, and by their names those of sinks that have one."""

    filter: RuleTable
    sinks: Mapping[str, RuleTable]
    records: Records
    """What is written of what they keep."""
    sets: Opaque = None
    """What the engine has made of the sets that all of these use, and tails; None: those they came with."""

    def use_sets(self) -> None:
        """In the thread of the reader, between two batches."""
        for table in (self.filter, *self.sinks.values()) if self.sets is not None else ():
            table.use_sets(self.sets)


class Pipeline:
    """What happens to events. Its readers listen, each in a thread of its own, or one of them replays."""

    def __init__(  # the parts of the path in their order
        self,
        engine: Engine,
        tables: Sequence[RuleTable],
        geoip: "GeoIP | None",
        outboxes: Sequence[Outbox],
        tails: Tails,
        stats: Stats,
        sink_tables: Mapping[str, Sequence[RuleTable]] = NO_SINKS,
        records: Records = ONLY_EVENTS,
    ) -> None:
        """`tables`: the filter in force, one for each reader; `sink_tables`, `records`: see set_tables()."""
        self.engine = engine
        self.tables = _arrange(tables, sink_tables, records)
        self.outboxes = tuple(outboxes)
        self.tails = tails
        self.stats = stats
        self.on_lost: Callable[[int], None] = lambda _: None
        """Gets the number of events when the kernel's counter of drops has risen, 0 if they come later."""
        self.protocols: Counter[int] = Counter()
        """Events handed to the sinks, by protocol number."""
        self.lock = threading.Lock()
        """Held while counters change: whoever has it reads counters whose sums hold."""
        self.stopping = False
        self.keeps_socket = False
        self.resync: Resync | None = None
        self.heartbeat: Heartbeat | None = None
        self.guard: Guard | None = None
        self.community_seeds: tuple[int | None, Mapping[str, int]] = (None, {})
        """Of all records, None where they have no Community ID; and by name of the sinks that ask for one."""
        self.flow_metrics: Sequence[FlowMetric] = ()
        """What connections are counted by. Replaced as a whole, from any thread."""
        self._geoip = geoip
        self.generation = 0
        """Changes with the databases."""
        self.readers = tuple(Reader(self, number) for number in range(len(self.tables)))
        self._turns = (0,) * len(self.readers)
        self._suppressed = Suppressed()
        self._suppressed.replace(tables[0], sink_tables, self._turns)

    def set_tables(
        self,
        tables: Sequence[RuleTable],
        sink_tables: Mapping[str, Sequence[RuleTable]],
        records: Records = ONLY_EVENTS,
        sets: Opaque = None,
    ) -> None:
        """All filters, each for every reader, from the next batch on: none is decided by some of each.

        A sink that is not in `sink_tables` has no filter of its own; `records` is what is written of what is
        kept; `sets` are those of Engine.open_sets(), None for the ones of before. From any thread.
        """
        with self.lock:
            arranged = _arrange(tables, sink_tables, records)
            self.tables = _put_sets(arranged, self.tables[0].sets if sets is None else sets)
            self._suppressed.replace(tables[0], sink_tables, self._list_turns())
        self.interrupt()

    def set_sets(self, sets: Opaque) -> None:
        """The sets of all filters and tails alone, likewise: counters and limits of rules go on."""
        with self.lock:
            self.tables = _put_sets(self.tables, sets)
        self.interrupt()

    def interrupt(self) -> None:
        """From the next batch on readers look at what has changed. From any thread, after the change."""
        for reader in self.readers:
            reader.batch.interrupt()

    @property
    def geoip(self) -> "GeoIP | None":
        """Where locations come from."""
        return self._geoip

    @property
    def geoip_faults(self) -> Mapping[Path, ConfigError]:
        """Of databases that were replaced by ones that cannot be used."""
        geoip = self._geoip  # a reload may replace it meanwhile
        return {} if geoip is None else geoip.faults

    def set_geoip(self, geoip: "GeoIP | None") -> None:
        """From the next batch on. From any thread."""
        if geoip is not self._geoip:
            self._geoip = geoip
            self.generation += 1
            self.interrupt()

    def open_locations(self) -> Locations | None:
        """For one reader: what the databases say, remembered."""
        geoip = self._geoip
        return None if geoip is None else self.engine.open_locations(geoip, geoip.cache)

    def stop(self) -> None:
        """Ends the readers when what the kernel has queued is read, or soon. From any thread."""
        self.stopping = True

    def has_moved(self) -> bool:
        """Whether each reader has gone round since the last time that this was so."""
        turns = self._list_turns()
        if any(now == then for now, then in zip(turns, self._turns, strict=True)):
            return False
        self._turns = turns
        return True

    def _list_turns(self) -> tuple[int, ...]:
        return tuple(reader.turns for reader in self.readers)

    def replay(self, batches: Iterable[tuple[int, int]]) -> None:
        """Process a recording, loaded into the first reader's batch; waits for sinks slower than the file."""
        reader = self.readers[0]
        for messages, malformed in batches:
            reader.turns += 1
            if self.stopping:
                return
            self._wait_for_room(messages)
            reader.process(reader.batch, messages, 0, malformed)
        for outbox in self.outboxes:
            while not (outbox.is_out() or outbox.flush(ROOM_SECONDS, at_once=False) or self.stopping):
                reader.turns += 1

    def count_received(
        self, batches: int, datagrams: int, forged: int, malformed: int, filtered: int
    ) -> None:
        """What came, and what of it the global filter has dropped. Under the lock."""
        stats = self.stats
        stats.batches_received_total += batches
        stats.events_received_total += datagrams - forged
        stats.events_forged_total += forged
        stats.events_malformed_total += malformed
        stats.events_filtered_total += filtered

    def count(self, kinds: Iterable[Tally]) -> None:
        """Events for the sinks. Under the lock."""
        stats = self.stats
        for event_type, protocol, events in kinds:
            stats.events_accepted_total += events
            self.protocols[protocol] += events
            if event_type == EventType.FLOW:
                stats.flows_total += events
            elif event_type == EventType.NEW:
                stats.events_new_total += events
            elif event_type == EventType.UPDATE:
                stats.events_update_total += events
            else:
                stats.events_destroy_total += events

    def note_fill(self) -> None:
        """Update the gauges of the buffer, after a reader has measured its socket's queue."""
        stats = self.stats
        with self.lock:
            stats.buffer_used_bytes = used = sum([reader.fill[0] for reader in self.readers])
            stats.buffer_bytes = sum([reader.fill[1] for reader in self.readers])
            stats.buffer_peak_bytes = max(stats.buffer_peak_bytes, used)

    def report_lost(self, lost: Lost, earlier: Mapping[str, int] = NOWHERE) -> None:
        """Report a loss to every sink, past every filter: as since `earlier` to those that it names."""
        with self.lock:
            self.stats.events_lost_total += max(0, lost.count) if lost.where == "kernel" else 0
            for outbox in self.outboxes:
                outbox.report(replace(lost, since=min(lost.since, earlier.get(outbox.name, lost.since))))
            self.tails.report(lost)
            if self.resync is not None:
                self.resync.request()
        self.on_lost(max(0, lost.count))

    def report_suppressed(self, *, at_once: bool = False, removed: Sequence[Outbox] = ()) -> None:
        """Report what limits have held back to the sinks that it would have gone to, past every filter.

        `removed` are some that get no events any more. To be called all the time: it does something once a
        second at most, unless `at_once`. From any thread.
        """
        with self.lock:
            found = self._suppressed.take(time.monotonic(), self._list_turns(), at_once=at_once)
            for name, held in found:
                self.stats.events_suppressed_total += 0 if name else held.count
                for outbox in (*self.outboxes, *removed):
                    if name in ("", outbox.name):
                        outbox.report(held)
                if not name:
                    self.tails.report(held)

    def _wait_for_room(self, events: int) -> None:
        for outbox in self.outboxes:
            while not (outbox.has_room(events) or self.stopping):
                self.readers[0].turns += 1
                outbox.flush(ROOM_SECONDS, at_once=False)


def _put_sets(tables: Sequence[Tables], sets: Opaque) -> tuple[Tables, ...]:
    return tuple(found._replace(sets=sets) for found in tables)


def _arrange(
    tables: Sequence[RuleTable], sink_tables: Mapping[str, Sequence[RuleTable]], records: Records
) -> tuple[Tables, ...]:
    """By reader what is by filter."""
    return tuple(
        Tables(table, {name: own[number] for name, own in sink_tables.items()}, records)
        for number, table in enumerate(tables)
    )
