"""The source of events: a new socket or the last process's, the table beside it, what is lost in between."""

import logging
import math
import os
import threading
import time
from contextlib import ExitStack
from typing import Final

from conntrackd import advice, checks
from conntrackd.active_filter import Filter
from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.errors import ConntrackdError
from conntrackd.flow import ABSENT, NANO, Lost
from conntrackd.netlink.activation import TrackingTable
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import (
    NAME,
    EventSocket,
    EventSockets,
    SocketShare,
    is_name,
    is_whole,
    list_shares,
    open_share,
)
from conntrackd.netlink.table import ConntrackTable
from conntrackd.netlink.tracking import News
from conntrackd.notify import Notifier
from conntrackd.pipeline import Pipeline
from conntrackd.reader import ReportedDrops
from conntrackd.resources import has_descriptors, try_descriptors
from conntrackd.source.changeover import Changeover
from conntrackd.source.hearing import Hearing
from conntrackd.source.heartbeat import Heartbeat
from conntrackd.source.resync import Resync
from conntrackd.source.state_directory import StateDirectory
from conntrackd.source.table_guard import LIMIT, RELIABLE, Guard
from conntrackd.stats import Stats
from conntrackd.units import render_size

logger = logging.getLogger(__name__)

# The name in systemd's store of descriptors (sd_pid_notify_with_fds(3)) of the socket that the table belongs
# to which has connections tracked; those of events are in netlink/socket.py. What is kept there lasts through
# a restart, and goes at a real stop.
STORED_TABLE: Final = "table"
# A loss is a problem for so long: it is over, but for who asks every few minutes.
LOSS_SECONDS: Final = 300.0
ENTER_DESCRIPTORS: Final = 3
ACCT: Final = "nf_conntrack_acct"
NO_COUNTERS: Final = "ALIVE records come without counters: flows that began without accounting have none"


class KernelSource:
    """Sockets, namespace and table of the kernel. All but listen() is called in the main thread."""

    def __init__(
        self, config: Config, state: StateDirectory, notifier: Notifier, pipeline: Pipeline, stats: Stats
    ) -> None:
        self.events: EventSockets | None = None
        """None before open(), and in a replay."""
        self.hearing: Hearing | None = None
        self.news: News | None = None
        """Readable when the rules have changed, for hear_news(). None: they are looked at now and then."""
        self._table: TrackingTable | None = None
        self._config = config
        self._state = state
        self._notifier = notifier
        self._pipeline = pipeline
        self._stats = stats
        self._guard: Guard | None = None
        self._changeover: Changeover | None = None
        self._stored: set[SocketShare] = set()
        """Sockets that systemd keeps."""
        self._reported: list[ReportedDrops] = []
        """Of each reader's socket, at the start."""
        self._began_ns = time.time_ns()
        self._ended: set[int] = set()
        """Readers that have handed on all that they had read."""
        self._noting = threading.Lock()
        self._is_adopted = False
        self._is_started = False
        self._lost, self._lost_at = 0, -math.inf
        self._release_reported = False

    def open(self, stack: ExitStack, rules: Filter, stored: dict[str, list[int]]) -> None:
        """Open the sockets, and have connections tracked if asked for, until the stack is closed.

        `stored`: what the last process left in systemd's store, by name. Before any thread is started.
        Raises ConntrackdError.
        """
        config = self._config
        # What looks for the C library, to enter a namespace, has other words for this.
        try_descriptors(ENTER_DESCRIPTORS)
        with enter(config[options.CONNTRACK_NETNS], config.locate(options.CONNTRACK_NETNS)):
            self._activate(stored.pop(STORED_TABLE, []))
            stack.callback(self._close_table)
            self.events = self._open_sockets(rules, stored)
            stack.callback(self.events.close)
            self._open_resync(stack)
            self._open_heartbeat(stack)
            if has_descriptors():
                self.news = News()
                stack.callback(self.news.close)
            if config[options.CONNTRACK_RELIABLE]:
                self._guard = self._pipeline.guard = Guard(self._list_sockets()[0], ConntrackTable())
        self._begin_hearing(self._list_sockets()[0])
        self._report_gap()
        self._pipeline.keeps_socket = self._store(self.events)

    def _activate(self, stored: list[int]) -> None:
        """In the events' network namespace. The table of the last process goes where none is wanted now."""
        wanted = self._config[options.CONNTRACK_ACTIVATE]
        for number in stored[1:] if wanted else stored:
            os.close(number)
        if stored and not wanted:
            self._notifier.remove(STORED_TABLE)
        if not wanted:
            return
        if stored:
            try:
                self._table = TrackingTable.adopt(stored[0])
                return
            except ConntrackdError as error:
                logger.warning("%s, creating a new table", error)
                self._notifier.remove(STORED_TABLE)
        self._table = TrackingTable.open()
        self._notifier.store(STORED_TABLE, self._table.fileno())

    @property
    def is_active(self) -> bool:
        """Whether the daemon has connections tracked."""
        return self._table is not None

    def _close_table(self) -> None:
        if self._table is not None:
            self._table.close()

    def activate(self, config: Config) -> None:
        """Have connections tracked where the configuration says so now. Raises ConntrackdError.

        In the thread of open(). A table that should be there and is not is made again.
        """
        if self.events is None or not config[options.CONNTRACK_ACTIVATE]:
            return
        if self._table is not None:
            self._table.ensure()
        else:
            with enter(self._config[options.CONNTRACK_NETNS], self._config.locate(options.CONNTRACK_NETNS)):
                self._table = TrackingTable.open()
            self._notifier.store(STORED_TABLE, self._table.fileno())

    def deactivate(self, config: Config) -> None:
        """Have nothing tracked any more where the configuration does not say so now."""
        if self._table is not None and not config[options.CONNTRACK_ACTIVATE]:
            self._notifier.remove(STORED_TABLE)
            self._table.close()
            self._table = None

    def _begin_hearing(self, events: EventSocket) -> None:
        self.hearing = Hearing(self._config[options.CONNTRACK_NETNS], events.read_namespace())
        since = self._state.read_deaf()
        if since:
            self.hearing.resume(since)
        self.look()
        self._is_started = True

    def _open_sockets(self, rules: Filter, stored: dict[str, list[int]]) -> EventSockets:
        """Those that the last process left in systemd's store, with the events since then, and new ones.

        Of another number of readers what is there is still to be read: see Changeover.
        """
        found = self._adopt(stored)
        self._is_adopted = is_whole(found)
        if found:
            what = "the socket" if len(found) == 1 else f"{len(found)} sockets"
            queued = sum(one.measure().used for one in found.values())
            logger.info("took over %s of the last process with %d bytes queued", what, queued)
        sockets: dict[SocketShare, EventSocket] = {}
        old: list[tuple[EventSocket, ReportedDrops]] = []
        for share in list_shares(self._config[options.CONNTRACK_READERS]):
            events = found.pop(share.name, None)
            drops = self._state.read_drops(share.name)
            if events is not None and not events.read_groups():
                # It heard of nothing: of a changeover from it that was not completed, or no event was wanted.
                old.append((events, ReportedDrops(drops=drops)))
                self._notifier.remove(share.name)
                events = None
            sockets[share] = self._open_share(share, rules) if events is None else events
            self._stored |= {share} if events is not None else set()
            self._reported.append(ReportedDrops(share.name, 0 if events is None else drops))
        opened = EventSockets(sockets)
        self._put_in_force(rules, opened)
        old += [(events, ReportedDrops(name, self._state.read_drops(name))) for name, events in found.items()]
        if old:
            # Stored before the old ones cease to hear: an event is always in one that lasts.
            self._store(opened)
            self._changeover = Changeover(old, opened)
        return opened

    def _open_share(self, share: SocketShare, rules: Filter) -> EventSocket:
        """A new socket, of which no drop is reported: what is noted was another one's of this name."""
        if self._state.read_drops(share.name):
            self._state.note_drops(share.name, 0)
        buffer = self._config[options.CONNTRACK_BUFFER]
        return open_share(share, groups=rules.groups, buffer=buffer, program=rules.program)

    def _put_in_force(self, rules: Filter, events: EventSockets) -> None:
        """In sockets of the last process, which may have had another filter. Tables are in force already."""
        groups = 0
        for share in self._stored:
            groups |= events.sockets[share].read_groups()
        if self._stored:
            events.join(rules.groups)
            events.attach(rules.program)
            events.leave(groups & ~rules.groups)

    def _store(self, events: EventSockets) -> bool:
        """Have systemd keep all of them. A second time under the same name there would be two."""
        for share, one in events.sockets.items():
            if share not in self._stored and self._notifier.store(share.name, one.fileno()):
                self._stored.add(share)
        return len(self._stored) == len(events.sockets)

    def _adopt(self, stored: dict[str, list[int]]) -> dict[str, EventSocket]:
        """The sockets of events among what is stored, by their names; the rest is closed."""
        found: dict[str, EventSocket] = {}
        for name, descriptors in stored.items():
            for descriptor in descriptors[1:] if is_name(name) else descriptors:
                os.close(descriptor)
            if not is_name(name) or not descriptors:
                continue
            try:
                found[name] = EventSocket.adopt(descriptors[0], buffer=self._config[options.CONNTRACK_BUFFER])
            except ConntrackdError as error:
                logger.warning("%s, opening a new socket: events since the last stop are lost", error)
                self._notifier.remove(name)
        return found

    def _list_sockets(self) -> list[EventSocket]:
        return [] if self.events is None else list(self.events.sockets.values())

    def _open_resync(self, stack: ExitStack) -> None:
        """In the events' network namespace."""
        after_loss = self._config[options.CONNTRACK_RESYNC] == "snapshot"
        at_start = self._config[options.CONNTRACK_SNAPSHOT]
        if not (after_loss or at_start):
            return
        table = ConntrackTable()
        stack.callback(table.close)
        self._pipeline.resync = Resync(table, self._pipeline.engine, self._stats, after_loss=after_loss)
        if at_start:
            self._pipeline.resync.request(at_start=True)

    def _open_heartbeat(self, stack: ExitStack) -> None:
        """In the events' network namespace."""
        interval = self._config[options.CONNTRACK_HEARTBEAT]
        if interval is None:
            return
        table, limit = ConntrackTable(), self._config[options.CONNTRACK_FLOWS_MAX]
        stack.callback(table.close)
        self._pipeline.heartbeat = Heartbeat(table, self._pipeline.engine, self._stats, interval, limit)

    def _report_gap(self) -> None:
        """Report what is missing since the last process, or of it, as a loss of unknown size."""
        find = self._state.find_kill if self._is_adopted else self._state.find_gap
        gap = find(time.time_ns())
        if gap is None:
            return
        times = [time.strftime("%F %T", time.localtime(moment // NANO)) for moment in (gap.since, gap.until)]
        text = "conntrackd was not running between %s and %s: events of that time are lost"
        if self._is_adopted:
            text = "conntrackd ended without a stop between %s and %s: events that it had read may be lost"
        logger.warning(text, *times)
        self._pipeline.report_lost(gap, self._state.read_held())

    def listen(self, number: int) -> None:
        """In the thread of the reader of this number, until the pipeline is stopped."""
        reader = self._pipeline.readers[number]
        self._state.note_running(self._began_ns)
        if self._changeover is not None and number == 0:
            self._changeover.run(reader)
            for name in self._changeover.names:
                self._notifier.remove(name)
        elif self._changeover is not None:
            self._changeover.wait(reader)
        reader.listen(self._list_sockets()[number], self._reported[number])
        self._ended.add(number)

    def note_drops(self) -> None:
        """Save for the next process how many drops of each socket are reported. From any thread."""
        if not self._pipeline.keeps_socket:
            return
        with self._noting:
            for name, drops in [reader.reported for reader in self._pipeline.readers]:
                if name:
                    self._state.note_drops(name, drops)

    def note_listening(self, *, at_once: bool = False) -> None:
        """Save for the next process until when nothing is missing, and what in sinks is older."""
        emptied_at = min(reader.emptied_at for reader in self._pipeline.readers)
        if self.events is None or emptied_at == -math.inf:
            return
        until = time.time_ns() - int((time.monotonic() - emptied_at) * NANO)
        # Asked after the readers: what they have handed on by then is in a sink, or delivered.
        oldest = {outbox.name: outbox.find_oldest() for outbox in self._pipeline.outboxes}
        held = {name: time_ns for name, time_ns in oldest.items() if time_ns is not None and time_ns < until}
        self._state.note_listening(until, held, at_once=at_once)

    def note_stopped(self) -> None:
        """The outboxes have ended, too: nothing is in memory alone, but for a reader that has not ended."""
        if self.events is not None and len(self._ended) == len(self._pipeline.readers):
            self.note_listening(at_once=True)
            self._state.note_running(0)

    def end(self) -> None:
        """The reader has ended. What the kernel has repeated by now is not a loss to the next process."""
        if self._guard is not None:
            self._guard.close()
            _, drops = self._guard.read_release()
            if self._pipeline.keeps_socket and self._pipeline.guard is not None:
                self._state.note_drops(NAME, drops)
        self.note_listening(at_once=True)
        self._report_deaf(at_end=True)

    def look_now_and_then(self) -> None:
        """Run the checks that are due. To be called every second, in the thread of open()."""
        if self._stats.events_lost_total != self._lost:
            self._lost, self._lost_at = self._stats.events_lost_total, time.monotonic()
        if self.hearing is not None and time.monotonic() >= self.hearing.look_at:
            self.look()

    def hear_news(self) -> None:
        """Check whether events can be heard, because the rules of the firewall have changed."""
        if self.news is not None:
            self.news.drain()
            self.look(is_timed=False)

    def look(self, *, is_timed: bool = True) -> None:
        """Check whether events can be heard. A time in which they could not is reported when it is over."""
        if self.hearing is None:
            return
        deaf, faults = self.hearing.deaf_ns, self.hearing.faults
        self.hearing.look(time.time_ns(), is_timed=is_timed)
        if self.hearing.deaf_ns != deaf:
            self._state.note_deaf(self.hearing.deaf_ns)
        if self._is_started:  # what there is at the start is reported with all other problems
            for fault in self.hearing.faults:
                if fault not in faults:
                    logger.warning("%s", self._explain(fault))
        self._report_deaf()

    def _explain(self, fault: str) -> str:
        """A fault of hearing.py with what to do."""
        return f"{fault}\nhint: {advice.advise_fault(fault, self._config, is_active=self.is_active)}"

    def _report_deaf(self, *, at_end: bool = False) -> None:
        gap = None if self.hearing is None else self.hearing.pop_gap(time.time_ns(), at_end=at_end)
        if gap is None:
            return
        since, until, reason = gap
        times = [time.strftime("%F %T", time.localtime(moment // NANO)) for moment in (since, until)]
        logger.warning("between %s and %s events may be missing: %s", *times, reason)
        self._pipeline.report_lost(Lost(ABSENT, since, until, "tracking", reason))
        self.note_listening(at_once=True)  # for it may be killed before a sink has that
        # The next process goes on from here, where it is not over.
        self._state.note_deaf(until if at_end else 0)

    def report_release(self) -> None:
        """That the mode in which no DESTROY is lost is over, once."""
        if self._guard is None or self._release_reported:
            return
        if self._guard.has_ended() or self._guard.read_release()[0] != RELIABLE:
            self._release_reported = True
            logger.warning("conntrack.reliable is off until a restart, so that the connection table has room")

    def list_problems(self) -> list[str]:
        """What keeps events from coming, a line each with what to do."""
        problems = []
        if self.hearing is not None:
            problems += [self._explain(fault) for fault in self.hearing.faults]
        if self.events is not None:
            size, asked = self.events.measure_buffer(), self._config[options.CONNTRACK_BUFFER]
            if size < asked:
                problems.append(
                    f"the receive buffer has {render_size(size)} instead of {render_size(asked)}\n"
                    f"hint: run as root, or {advice.advise_core('rmem_max', asked)}"
                )
            if not self.events.has_room:
                problems.append(f"{checks.NO_ROOM}\nhint: {advice.advise_room(self._config)}")
        heartbeat = self._pipeline.heartbeat
        if heartbeat is not None and not heartbeat.has_counters:
            problems.append(f"{NO_COUNTERS}\nhint: {advice.advise_conntrack(ACCT, 1, self._config)}")
        if time.monotonic() - self._lost_at < LOSS_SECONDS:
            problems.append(
                f"{self._stats.events_lost_total} events were lost in the kernel\n"
                "hint: a larger conntrack.buffer, or a filter that keeps less"
            )
        if self._guard is not None and self._guard.read_release()[0] != RELIABLE:
            problems.append(
                f"conntrack.reliable is off until a restart: the connection table was over {LIMIT:.0%} full\n"
                "hint: a larger conntrack.buffer or net.netfilter.nf_conntrack_max, then a restart"
            )
        return problems
