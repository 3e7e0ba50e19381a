"""How events come in: a new socket or the last process's, the table beside it, what is lost in between."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from conntrackd import checks, options
from conntrackd.config import Config
from conntrackd.errors import ConntrackdError
from conntrackd.filtering import Filter, change_filter
from conntrackd.flow import NANO
from conntrackd.guard import LIMIT, RELIABLE, Guard
from conntrackd.handover import Handover
from conntrackd.netlink import tracking
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import EventSocket
from conntrackd.netlink.table import Table
from conntrackd.notify import Notifier, take_descriptors
from conntrackd.pipeline import Pipeline
from conntrackd.resync import Resync
from conntrackd.stats import Stats
from conntrackd.values import render_size

logger = logging.getLogger(__name__)

# The name of the socket in systemd's store of descriptors (sd_pid_notify_with_fds(3)).
STORED: Final = "events"


class Intake:
    """What the daemon has of the kernel. All but listen() is called in the main thread."""

    def __init__(
        self, config: Config, handover: Handover, notifier: Notifier, pipeline: Pipeline, stats: Stats
    ) -> None:
        self.events: EventSocket | None = None
        """None before open(), and in a replay."""
        self.is_tracking: bool | None = None
        self._config = config
        self._handover = handover
        self._notifier = notifier
        self._pipeline = pipeline
        self._stats = stats
        self._guard: Guard | None = None
        self._is_adopted = False
        self._told_release = False

    def open(self, stack: ExitStack, rules: Filter, environ: Mapping[str, str]) -> None:
        """Have connections tracked where that is asked for, and hear of them until the stack is closed.

        Before any thread is started. Raises ConntrackdError.
        """
        config = self._config
        if config[options.CONNTRACK_ACTIVATE]:
            stack.enter_context(tracking.activate(config[options.CONNTRACK_NETNS]))
        with enter(config[options.CONNTRACK_NETNS]):
            self.events = self._adopt(rules, environ)
            self.is_tracking = tracking.is_tracking()
            self._open_resync(stack)
            if self.events is None:
                self.events = EventSocket.open(
                    groups=rules.groups, buffer=config[options.CONNTRACK_BUFFER], program=rules.program
                )
            if config[options.CONNTRACK_RELIABLE]:
                self._guard = self._pipeline.guard = Guard(self.events, Table())
        stack.callback(self.events.close)
        if not self._is_adopted:
            self._tell_gap()
        # A second time under the same name there would be two of them.
        self._pipeline.keeps_socket = self._is_adopted or self._notifier.store(STORED, self.events.fileno())

    def _adopt(self, rules: Filter, environ: Mapping[str, str]) -> EventSocket | None:
        """The socket that the last process left in systemd's store, with the events since then."""
        passed = take_descriptors(dict(environ))
        mine = passed.pop(STORED, [])
        for descriptor in [*mine[1:], *(each for others in passed.values() for each in others)]:
            os.close(descriptor)
        if not mine:
            return None
        try:
            events = EventSocket.adopt(mine[0], buffer=self._config[options.CONNTRACK_BUFFER])
        except ConntrackdError as error:
            logger.warning("%s, opening a new socket: events since the last stop are lost", error)
            self._notifier.remove(STORED)
            return None
        change_filter(self._pipeline, events, replace(rules, groups=events.find_groups()), rules)
        self._is_adopted = True
        logger.info("took over the socket of the last process, %d bytes are queued", events.measure().used)
        return events

    def _open_resync(self, stack: ExitStack) -> None:
        """In the events' network namespace."""
        after_loss = self._config[options.CONNTRACK_RESYNC] == "snapshot"
        at_start = self._config[options.CONNTRACK_SNAPSHOT]
        if not (after_loss or at_start):
            return
        table = Table()
        stack.callback(table.close)
        self._pipeline.resync = Resync(table, self._pipeline.engine, self._stats, after_loss=after_loss)
        if at_start:
            self._pipeline.resync.request(at_start=True)

    def _tell_gap(self) -> None:
        """Of what happened between the last process and this one nothing is known but that it is missing."""
        gap = self._handover.find_gap(time.time_ns())
        if gap is None:
            return
        times = [time.strftime("%F %T", time.localtime(each // NANO)) for each in (gap.since, gap.until)]
        logger.warning("nobody listened from %s to %s: the events of that time are lost", *times)
        self._pipeline.tell_lost(gap)

    def listen(self) -> None:
        """In the reader's thread, until the pipeline is stopped."""
        assert self.events is not None
        self._pipeline.listen(self.events, self._handover.read_drops() if self._is_adopted else 0)

    def note_drops(self) -> None:
        """For the next process: so many of the socket's drops are told. In the reader's thread."""
        if self._pipeline.keeps_socket:
            self._handover.note_drops(self._pipeline.drops)

    def note_listening(self, *, at_once: bool = False) -> None:
        """For the next process: until now nothing is missing."""
        if self.events is not None:
            self._handover.note_listening(time.time_ns(), at_once=at_once)

    def end(self) -> None:
        """The reader has ended. What the kernel has repeated by now is no loss to the next process."""
        if self._guard is not None:
            self._guard.close()
            _, drops = self._guard.find_release()
            if self._pipeline.keeps_socket and self._pipeline.guard is not None:
                self._handover.note_drops(drops)
        self.note_listening(at_once=True)

    def look_again(self) -> None:
        """Whether connections are tracked by now: rules may have come since the start. From any thread."""
        try:
            with enter(self._config[options.CONNTRACK_NETNS]):
                self.is_tracking = tracking.is_tracking()
        except ConntrackdError as error:
            logger.debug("tracking: %s", error)

    def tell_release(self) -> None:
        """That the mode in which no DESTROY is lost is over, once."""
        if self._guard is None or self._told_release:
            return
        if self._guard.has_ended() or self._guard.find_release()[0] != RELIABLE:
            self._told_release = True
            logger.warning("conntrack.reliable is off until a restart, so that the connection table has room")

    def find_problems(self) -> list[str]:
        """What keeps events from coming, a line each with what to do."""
        problems = []
        if self.events is not None:
            if self.is_tracking is False and not self._stats.events_received_total:
                problems.append(tracking.NOT_TRACKED)
            size, asked = self.events.measure().size // 2, self._config[options.CONNTRACK_BUFFER]
            if size < asked:
                problems.append(
                    f"the receive buffer has {render_size(size)} instead of {render_size(asked)}\n"
                    f"hint: run as root, or sysctl -w net.core.rmem_max={asked}"
                )
            if not self.events.has_room:
                problems.append(f"{checks.NO_ROOM}\nhint: {checks.MORE_ROOM}")
        if self._stats.events_lost_total:
            problems.append(
                f"{self._stats.events_lost_total} events were lost in the kernel\n"
                "hint: a larger conntrack.buffer, or a filter that keeps less"
            )
        if self._guard is not None and self._guard.find_release()[0] != RELIABLE:
            problems.append(
                f"conntrack.reliable is off until a restart: the connection table was over {LIMIT:.0%} full\n"
                "hint: a larger conntrack.buffer or net.netfilter.nf_conntrack_max, then a restart"
            )
        return problems
