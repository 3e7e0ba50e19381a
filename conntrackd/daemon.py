"""Config -> objects -> run -> reload -> stop; signals, sd_notify, watchdog. The only wiring.

Three kinds of threads: the reader (socket to outboxes, pipeline.py), one for each sink (sinks/outbox.py), and
the main one with asyncio for D-Bus, signals and the watchdog, which is what stands here.
"""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conntrackd import checks, options, resources
from conntrackd.bus.control import Finding, Listener, SinkStatus
from conntrackd.config import ETC, Config, check_sinks, read_config
from conntrackd.control import DaemonControl
from conntrackd.errors import ConfigError, ResourceError
from conntrackd.filtering import Filter, change_filter, read_filter
from conntrackd.flow import EventType
from conntrackd.handover import Handover
from conntrackd.intake import Intake, create_decoder
from conntrackd.netlink.recording import read_batches
from conntrackd.notify import Notifier, find_watchdog
from conntrackd.pipeline import Pipeline
from conntrackd.sinks import SINKS, SinkKind
from conntrackd.sinks.outbox import Outbox
from conntrackd.sinks.sink import SinkState
from conntrackd.sinks.tail import Tails
from conntrackd.stats import SinkStats, Stats
from conntrackd.values import render_size

if TYPE_CHECKING:
    from conntrackd.geoip import GeoIP

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
# How many more objects there are before the collector looks for cycles among them. Events make none: at 700,
# Python's default, it would walk over those of each batch.
GARBAGE_OBJECTS: Final = 100_000
# What the reader may take at the end for what the kernel has queued.
READER_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the configuration comes from, so that a reload can read it again."""

    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    etc: Path = ETC

    def read(self) -> Config:
        """Raises ConfigError or ManyErrors."""
        config = read_config(self.overrides, self.environ, self.path, self.etc)
        check_sinks(config)
        _check_replay(config)
        return config


class Daemon:
    """All that runs. Built whole or not at all: what can be wrong is found before anything starts."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.config = sources.read()
        # Before anything is opened in the directory: a second process is to leave it alone.
        handover = Handover(self.config[options.STATE_DIRECTORY], self.config.origin(options.STATE_DIRECTORY))
        self.stats = Stats()
        self.tails = Tails()
        self.start_us = time.time_ns() // 1000
        self.configured_filter = self.filter = read_filter(self.config)
        self.outboxes = {
            kind.name: self.create_outbox(kind, self.config) for kind in SINKS if kind.enabled(self.config)
        }
        self.pipeline = Pipeline(
            create_decoder(self.stats),
            self.filter.selector,
            self.open_geoip(self.config),
            tuple(self.outboxes.values()),
            self.tails,
            self.stats,
        )
        self.pipeline.on_lost = self._note_lost
        self.notifier = Notifier(sources.environ)
        self.intake = Intake(self.config, handover, self.notifier, self.pipeline, self.stats)
        self.listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._error: Exception | None = None
        self._states: dict[str, tuple[str, str]] = {}

    # ---- building -------------------------------------------------------------------------------------

    def create_outbox(self, kind: SinkKind, config: Config) -> Outbox[Any]:
        """A sink behind its outbox, not yet started. Raises ConfigError."""
        return Outbox(
            kind.create(config),
            queue=config[kind.queue],
            stats=SinkStats(),
            spool=kind.open_spool(config),
            on_failed=lambda reason: self._note_failed(kind.name, reason),
        )

    def open_geoip(self, config: Config) -> "GeoIP | None":
        if not config[options.GEOIP_DATABASE]:
            return None
        from conntrackd.geoip import GeoIP  # noqa: PLC0415  # maxminddb is for those who have a database

        return GeoIP(
            config[options.GEOIP_DATABASE],
            config[options.GEOIP_LOCALE],
            config[options.GEOIP_CACHE],
            self.stats,
            config[options.STATE_DIRECTORY],
        )

    # ---- running --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the first event to the last. Raises what keeps it from starting, or made it stop."""
        self._loop = asyncio.get_running_loop()
        control = DaemonControl(self)
        with ExitStack() as stack:
            if self.config[options.CONNTRACK_REPLAY] is None:
                self.intake.open(stack, self.filter, self.sources.environ)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop_by_signal)
            self._loop.add_signal_handler(signal.SIGHUP, control.reload_soon)
            reader = await self._start_threads(stack)
            self._tell_start()
            tasks = [asyncio.create_task(each) for each in (self._tick(), *self._serve_bus(control))]
            await self._end.wait()
            await self._stop(reader)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _start_threads(self, stack: ExitStack) -> threading.Thread:
        """All of them, the reader last, which is returned. Raises ResourceError."""
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        over = threading.Event()
        stack.callback(over.set)
        try:
            # The event loop's helper, without which there is no orderly stop: it may not fail to start then.
            await asyncio.to_thread(int)
            for outbox in self.outboxes.values():
                outbox.start()
            threading.Thread(target=self._watch_geoip, args=(over,), name="geoip", daemon=True).start()
            reader.start()
        except RuntimeError as error:  # how CPython says that the system gave it no thread
            raise resources.explain_threads(len(self.outboxes)) from error
        return reader

    def _read(self) -> None:
        """The reader's thread."""
        path = self.config[options.CONNTRACK_REPLAY]
        try:
            if path is not None:
                self.pipeline.replay(read_batches(path, time.time_ns()))
            else:
                self.intake.listen()
        except Exception as error:  # whatever it is: without its reader the daemon has to end, and say why
            self._error = error
        self.request_stop()

    def request_stop(self) -> None:
        """End run() soon. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)

    def _stop_by_signal(self) -> None:
        if not self._end.is_set():
            logger.info("stopping")
            self._end.set()
            return
        # Whoever asks twice does not want to wait. Nothing is thrown away for that: see Outbox.hurry().
        logger.info("stopping at once")
        for outbox in self.outboxes.values():
            outbox.hurry()

    async def _stop(self, reader: threading.Thread) -> None:
        """Read what the kernel has queued, give the sinks their time, count the rest."""
        self.notifier.stopping()
        self.pipeline.stop()
        await asyncio.to_thread(reader.join, READER_SECONDS)
        self.intake.end()
        seconds = self.config[options.SHUTDOWN_TIMEOUT]
        self.notifier.extend_timeout(seconds + READER_SECONDS)
        await self.stop_outboxes(list(self.outboxes.values()), seconds)
        self.tails.close()
        stats = self.stats
        logger.info(
            "received %d events, lost %d, logged %d",
            stats.events_received_total,
            stats.events_lost_total,
            stats.events_accepted_total,
        )

    @staticmethod
    async def stop_outboxes(outboxes: Sequence[Outbox[Any]], seconds: float) -> None:
        """All at once: a sink that is away takes no time from the others."""
        deadline = time.monotonic() + seconds
        for outbox in outboxes:
            outbox.begin_stop(deadline)
        await asyncio.to_thread(_stop_each, outboxes, deadline)

    # ---- telling --------------------------------------------------------------------------------------

    def _tell_start(self) -> None:
        names = ", ".join(self.outboxes)
        path = self.config[options.CONNTRACK_REPLAY]
        if path is not None:
            logger.info("replaying %s to %s", path, names)
        elif self.intake.events is not None:
            groups = ", ".join(each.name or "" for each in EventType if each & self.filter.groups)
            # The kernel doubles what it is asked for.
            size = render_size(self.intake.events.measure().size // 2)
            logger.info("listening to %s events, buffer %s, to %s", groups or "no", size, names)
        for warning in (*self.filter.warnings, *self.find_problems()):
            logger.warning("%s", warning)
        self.notifier.ready()

    def find_problems(self) -> list[str]:
        """What keeps events from coming or arriving, a line each with what to do."""
        problems = self.intake.find_problems()
        for name, outbox in self.outboxes.items():
            if outbox.state.value in ("retrying", "failed"):
                problems.append(f"sink {name} is {outbox.state.value}: {outbox.error}")
        return problems

    def _note_lost(self, count: int) -> None:
        self.intake.note_drops()
        if count:
            for listener in self.listeners:
                listener.events_lost(count)

    def _note_failed(self, name: str, reason: str) -> None:
        """A sink is out for good: its reader has closed the pipe. Where it was the last, that is the end."""
        if all(outbox.state is SinkState.FAILED for outbox in self.outboxes.values()):
            logger.info("sink %s: %s, and no other is left", name, reason)
            self.request_stop()
        else:
            logger.error("sink %s: %s, out until it is enabled again", name, reason)

    # ---- now and then ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Signs of life for systemd as long as the reader gives them, and news for the listeners."""
        watchdog = find_watchdog(self.sources.environ)
        turns, alive_until = -1, time.monotonic()
        while True:
            if self.pipeline.turns != turns:
                turns, alive_until = self.pipeline.turns, time.monotonic()
                self.notifier.watchdog()
                self.intake.note_listening()
            elif watchdog and time.monotonic() - alive_until > watchdog:
                logger.error("the reader of events stands still")
            self._tell_states()
            self.intake.tell_release()
            await asyncio.sleep(min(TICK_SECONDS, watchdog / 3 or TICK_SECONDS))

    def _watch_geoip(self, over: threading.Event) -> None:
        """A thread of its own, that nothing waits for: a large database takes seconds."""
        while not over.wait(TICK_SECONDS):
            if self.pipeline.geoip is not None:
                self.pipeline.geoip.refresh()

    def tell_sink(self, name: str) -> None:
        """Its state may have changed, or it came, or went."""
        for listener in self.listeners:
            listener.sink_changed(name)

    def _tell_states(self) -> None:
        for name, outbox in self.outboxes.items():
            state = (outbox.state.value, outbox.error)
            if self._states.get(name) != state:
                self._states[name] = state
                self.tell_sink(name)
        stats = self.stats
        self.notifier.status(
            f"{stats.events_received_total} events received, {stats.events_lost_total} lost, "
            f"{stats.events_accepted_total} logged"
        )

    def _serve_bus(self, control: DaemonControl) -> list[Coroutine[Any, Any, None]]:
        if not self.config[options.BUS_ENABLE] or self.config[options.CONNTRACK_REPLAY] is not None:
            return []
        # Late: dbus-fast takes memory that a container with the stream sink alone does not need.
        from conntrackd.bus.service import BusService  # noqa: PLC0415

        return [BusService(control, self.config[options.BUS_ADDRESS]).run()]

    def examine(self) -> list[Finding]:
        """What is wrong, as the doctor says it. Takes up to some seconds: not for the event loop's thread."""
        sinks = {
            name: SinkStatus(outbox.state.value, outbox.error, {}) for name, outbox in self.outboxes.items()
        }
        self.intake.look_again()
        events, stats = self.intake.events, self.stats
        buffer = (stats.buffer_bytes if events is None else events.measure().size) // 2
        has_room = events is None or events.has_room
        lost, is_tracking = stats.events_lost_total, self.intake.is_tracking
        return checks.examine(self.config, checks.Situation(is_tracking, buffer, lost, sinks, has_room))

    def set_filter(self, new: Filter) -> None:
        """Put it in the place of the one in force, while events flow."""
        change_filter(self.pipeline, self.intake.events, self.filter, new)
        self.filter = new
        for listener in self.listeners:
            listener.filter_changed()


def _stop_each(outboxes: Sequence[Outbox[Any]], deadline: float) -> None:
    """They have begun to stop: the first that hangs takes the time that the others need no more."""
    for outbox in outboxes:
        outbox.stop(deadline)


def _check_replay(config: Config) -> None:
    path = config[options.CONNTRACK_REPLAY]
    if path is not None and not os.access(path, os.R_OK):
        reason = "not permitted" if path.exists() else "no such file"
        origin = config.origin(options.CONNTRACK_REPLAY)
        raise ConfigError(f"conntrack.replay: {path}: {reason}", place=origin)


def check(sources: Sources) -> Config:
    """All that Daemon() would refuse, without any of it being started. Raises ConntrackdError."""
    config = sources.read()
    read_filter(config)
    for kind in SINKS:
        if kind.enabled(config):
            kind.create(config)
    return config


def run(sources: Sources) -> None:
    """The daemon, until it is told to end. Raises ConntrackdError or OSError."""
    gc.set_threshold(GARBAGE_OBJECTS)
    resources.try_descriptors()
    try:
        asyncio.run(_run(sources))
    except RuntimeError as error:
        # asyncio takes a thread to end, too: where there was none to start, there is none now.
        if isinstance(error.__context__, ResourceError):
            raise error.__context__ from None
        raise


async def _run(sources: Sources) -> None:
    await Daemon(sources).run()
