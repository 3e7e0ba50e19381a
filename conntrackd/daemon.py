"""Config -> objects -> run -> stop; signals, sd_notify, watchdog. Joins the parts; control.py reloads them.

Three kinds of threads: the readers (socket to outboxes, reader.py), one for each sink (delivery/outbox.py),
and the main one with asyncio for D-Bus, signals and the watchdog, which is what stands here.
"""

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conntrackd import checks, resources
from conntrackd.active_filter import (
    CoreFilter,
    Filter,
    change_filter,
    list_sink_tables,
    read_filter,
    read_sink_filters,
)
from conntrackd.bus.control import Finding, Listener, SinkStatus
from conntrackd.config import options
from conntrackd.config.read import ETC, Config, Reading, check_sinks, raise_mistakes, read_all
from conntrackd.config.rules import read_sets
from conntrackd.control import DaemonControl
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState
from conntrackd.engine import load_engine
from conntrackd.errors import ConfigError, ResourceError
from conntrackd.flow import EventType
from conntrackd.lean import share_arena, without
from conntrackd.live_sets import LiveSets
from conntrackd.metrics.flows import open_flow_metrics
from conntrackd.metrics.listener import PASSED
from conntrackd.metrics.service import Metrics
from conntrackd.netlink.recording import explain_fault, read_batches
from conntrackd.notify import Notifier, read_watchdog, take_descriptors
from conntrackd.pipeline import Pipeline
from conntrackd.progress import Progress
from conntrackd.records import choose_community_seeds
from conntrackd.sink_filters import SinkFilters, list_warnings
from conntrackd.sinks import ConfiguredSink, list_sinks
from conntrackd.source.kernel import KernelSource
from conntrackd.source.state_directory import StateDirectory
from conntrackd.stats import SinkStats, Stats
from conntrackd.tails import Tails
from conntrackd.units import render_size
from conntrackd.unwritten import list_faults

if TYPE_CHECKING:
    from conntrackd.geoip.databases import GeoIP

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
# How many more objects there are before the collector looks for cycles among them. Events make none: at 700,
# Python's default, it would walk over those of each batch.
GARBAGE_OBJECTS: Final = 100_000
# What the reader may take at the end for what the kernel has queued.
READER_SECONDS: Final = 3.0
# A reader that gives no sign of life for so long stands still; it gives four a second.
STILL_SECONDS: Final = 5.0
# A firewall that changes its rules all the time is looked at no more often.
NEWS_SECONDS: Final = 0.1

BAD_STATES: Final = frozenset({SinkState.RETRYING, SinkState.REFUSED, SinkState.FAILED})


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the configuration comes from, so that a reload can read it again."""

    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    etc: Path = ETC

    def examine(self) -> Reading:
        """The settings as far as they can be understood, and all that is wrong with them."""
        reading = read_all(self.overrides, self.environ, self.path, self.etc)
        mistakes = list(reading.mistakes)
        for check_setting, key in ((check_sinks, "sink"), (_check_replay, options.CONNTRACK_REPLAY.key)):
            try:
                check_setting(reading.config)
            except ConfigError as error:
                if reading.knows(key):  # else it may well follow from those
                    mistakes.append(error)
        return replace(reading, mistakes=tuple(mistakes))

    def read(self) -> Config:
        """Raises ConfigError or ManyErrors."""
        reading = self.examine()
        raise_mistakes(reading.mistakes)
        return reading.config


class Daemon:
    """All that runs. Built whole or not at all: what can be wrong is found before anything starts."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.config = sources.read()
        # Before anything is opened in the directory: a second process is to leave it alone.
        state = StateDirectory(
            self.config[options.STATE_DIRECTORY], self.config.locate(options.STATE_DIRECTORY)
        )
        self.stats = Stats()
        self.tails = Tails()
        self.start_us = time.time_ns() // 1000
        self.engine = load_engine(sources.environ)
        self.live_sets = LiveSets(self, sets := read_sets(self.config))
        self.configured_filter = self.filter = read_filter(self.config, self.engine, sets)
        self.sink_filters = SinkFilters(self, read_sink_filters(self.config, self.engine, sets))
        self.outboxes = {
            sink.name: self.create_outbox(sink) for sink in list_sinks(self.config) if sink.is_enabled
        }
        self.pipeline = Pipeline(
            self.engine,
            self.filter.tables,
            self.open_geoip(self.config),
            tuple(self.outboxes.values()),
            self.tails,
            self.stats,
            list_sink_tables(self.sink_filters.in_force),
            self.filter.records,
        )
        self.pipeline.on_lost = self._note_lost
        self.pipeline.community_seeds = choose_community_seeds(self.config)
        self.pipeline.flow_metrics = open_flow_metrics(self.config, self.pipeline, sets)
        self.notifier = Notifier(sources.environ)
        self.source = KernelSource(self.config, state, self.notifier, self.pipeline, self.stats)
        self.listeners: list[Listener] = []
        self.control = DaemonControl(self)
        self.metrics = Metrics(self.control)
        self._unwritten = (state.unwritten, self.metrics.unwritten)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._over = threading.Event()
        self._watches_geoip = False
        self._error: Exception | None = None
        self._states: dict[str, tuple[SinkState, str]] = {}
        self._progress = Progress(time.monotonic)
        self.problems: list[str] = []
        self._hurry = False
        self._stopping: tuple[Outbox, ...] = ()
        self._stands_still = False

    # ---- building -------------------------------------------------------------------------------------

    def create_outbox(self, sink: ConfiguredSink) -> Outbox:
        """A sink behind its outbox, not yet started. Raises ConfigError."""
        return Outbox(
            sink.kind.create(sink.config),
            queue=sink.config[sink.kind.options.queue],
            stats=SinkStats(),
            spool=sink.kind.open_spool(sink.config),
            on_failed=lambda reason: self._note_failed(sink.name, reason),
            name=sink.name,
            writer=self.engine.open_writer(),
        )

    def open_geoip(self, config: Config) -> "GeoIP | None":
        if not (paths := config[options.GEOIP_DATABASE]):
            return None
        from conntrackd.geoip.databases import GeoIP  # noqa: PLC0415  # maxminddb is for those who have a database

        return GeoIP(
            paths,
            config[options.GEOIP_LOCALE],
            config[options.GEOIP_CACHE],
            self.stats,
            config[options.STATE_DIRECTORY],
            [config.locate(options.GEOIP_DATABASE, number) for number in range(len(paths))],
        )

    # ---- running --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the first event to the last. Raises what keeps it from starting, or made it stop."""
        self._loop = asyncio.get_running_loop()
        # Before anything else is open: its modules are files, too.
        bus = self._serve_bus()
        with ExitStack() as stack:
            for coroutine in bus:  # those that never begin; the others are over by then
                stack.callback(coroutine.close)
            if self.config[options.CONNTRACK_REPLAY] is None:
                descriptors = take_descriptors(dict(self.sources.environ))
                passed = descriptors.pop(PASSED, [])
                self.source.open(stack, self.filter, descriptors)
                self.metrics.open(self.config, passed)
                stack.callback(self.metrics.close)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop_by_signal)
            self._loop.add_signal_handler(signal.SIGHUP, self.control.reload_soon)
            readers = await self._start_threads(stack)
            self._hear_news(stack)
            self._report_start()
            tasks = [asyncio.create_task(task) for task in (self._tick(), *bus)]
            await self._end.wait()
            await self._stop(readers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _start_threads(self, stack: ExitStack) -> list[threading.Thread]:
        """All of them, the readers last, which are returned. Raises ResourceError."""
        readers = [
            threading.Thread(target=self._read, args=(number,), name=f"reader-{number}", daemon=True)
            for number in range(len(self.pipeline.readers))
        ]
        stack.callback(self._over.set)
        try:
            # The event loop's helper, without which there is no orderly stop: it may not fail to start then.
            await asyncio.to_thread(int)
            for outbox in self.outboxes.values():
                outbox.start()
            self.watch_geoip()
            for reader in readers:
                reader.start()
        except RuntimeError as error:  # how CPython says that the system gave it no thread
            raise resources.explain_threads(len(self.outboxes) + len(readers) - 1) from error
        return readers

    def _hear_news(self, stack: ExitStack) -> None:
        """Look at the kernel when the firewall's rules have changed: at once, and then not for a moment."""
        loop, news = asyncio.get_running_loop(), self.source.news
        if news is None:
            return
        over = threading.Event()

        def hear() -> None:
            loop.remove_reader(news.fileno())
            self.source.hear_news()
            self._watch_problems()
            loop.call_later(NEWS_SECONDS, wait)

        def wait() -> None:
            if not over.is_set():
                loop.add_reader(news.fileno(), hear)

        wait()
        stack.callback(loop.remove_reader, news.fileno())
        stack.callback(over.set)

    def _read(self, number: int) -> None:
        """The thread of one reader."""
        path = self.config[options.CONNTRACK_REPLAY]
        try:
            if path is not None:
                self.pipeline.replay(read_batches(path, time.time_ns(), self.pipeline.readers[0].batch))
            else:
                self.source.listen(number)
        except Exception as error:  # whatever it is: without its reader the daemon has to end, and say why
            self._error = error
        self.pipeline.stop()  # without one of them the others have but a part of the events
        self.request_stop()

    def request_stop(self) -> None:
        """End run() soon. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)

    def _stop_by_signal(self) -> None:
        if self._end.is_set():
            # Whoever asks twice does not want to wait: what is in memory goes to the spools, or is counted.
            logger.info("stopping at once")
            self._hurry = True
            for outbox in self._stopping:
                outbox.begin_stop(time.monotonic())
            return
        logger.info("stopping")
        self._end.set()

    async def _stop(self, readers: Sequence[threading.Thread]) -> None:
        """Read what the kernel has queued, give the sinks their time, count the rest."""
        self.notifier.stopping()
        self.pipeline.stop()
        deadline = time.monotonic() + READER_SECONDS
        for reader in readers:
            await asyncio.to_thread(reader.join, max(0.0, deadline - time.monotonic()))
        self.source.end()
        self.pipeline.report_suppressed(at_once=True)
        seconds = 0 if self._hurry else self.config[options.SHUTDOWN_TIMEOUT]
        self.notifier.extend_timeout(seconds + READER_SECONDS)
        self._stopping = tuple(self.outboxes.values())
        await self.stop_outboxes(self._stopping, seconds)
        self.source.note_stopped()
        self.tails.close()
        stats = self.stats
        dropped = {name: outbox.snapshot().sum_dropped() for name, outbox in self.outboxes.items()}
        logger.info(
            "received %d events, lost %d, logged %d%s",
            stats.events_received_total,
            stats.events_lost_total,
            stats.events_accepted_total,
            "".join(f"; sink {name} dropped {count}" for name, count in dropped.items() if count),
        )

    @staticmethod
    async def stop_outboxes(outboxes: Sequence[Outbox], seconds: float) -> None:
        """All at once: a sink that is away takes no time from the others."""
        deadline = time.monotonic() + seconds
        for outbox in outboxes:
            outbox.begin_stop(deadline)
        await asyncio.to_thread(_stop_outboxes, outboxes, deadline)

    # ---- reporting --------------------------------------------------------------------------------------

    def _report_start(self) -> None:
        names = ", ".join(self.outboxes)
        path = self.config[options.CONNTRACK_REPLAY]
        if not self.config.paths and (self.sources.etc / "conntrackd.yaml").exists():
            logger.info("%s is not read, because the command line says what to do", self.sources.etc)
        if path is not None:
            logger.info("replaying %s to %s", path, names)
        elif self.source.events is not None:
            groups = ", ".join(event.name or "" for event in EventType if event & self.filter.groups)
            size, readers = render_size(self.source.events.measure_buffer()), len(self.pipeline.readers)
            size += f" for each of {readers} readers" if readers > 1 else ""
            logger.info("listening to %s events, buffer %s, to %s", groups or "no", size, names)
        doubts = list_warnings(self.filter, self.sink_filters.in_force, self.pipeline.geoip)
        for warning in dict.fromkeys(map(str, (*self.config.warnings, *doubts, *self.list_problems()))):
            logger.warning("%s", warning)
        self.notifier.ready()

    def list_problems(self) -> list[str]:
        """What keeps events from coming or arriving, a line each with what to do."""
        problems = [*self.source.list_problems(), *map(str, self.sink_filters.list_silence())]
        if self.engine.fault:
            problems.append(f"{checks.NO_CORE} ({self.engine.fault})\nhint: {checks.NO_CORE_REMEDY}")
        if self._stands_still:
            problems.append("an event reader has stalled")
        for name, outbox in self.outboxes.items():
            trouble = self._progress.describe_trouble(name, outbox)
            if outbox.state in BAD_STATES:
                problems.append(f"sink {name} is {outbox.state.value}: {outbox.error}")
            elif trouble:
                problems.append(f"sink {name} {trouble}")
        if all(outbox.is_out() for outbox in self.outboxes.values()):
            problems.append("no sink is in use: events go nowhere\nhint: conntrackctl sink enable NAME")
        faults = (*list_faults(self._unwritten), *self.pipeline.geoip_faults.values())
        return [*problems, *map(str, faults)]

    def _watch_problems(self) -> None:
        """Notify the listeners when the problems have changed."""
        problems = self.list_problems()
        if problems != self.problems:
            self.problems = problems
            self.notify_changed()

    def _note_lost(self, count: int) -> None:
        self.source.note_drops()
        if count:
            for listener in self.listeners:
                listener.events_lost(count)

    def _note_failed(self, name: str, reason: str) -> None:
        """A sink is out for good: its reader has closed the pipe. Where it was the last, that is the end."""
        if all(outbox.state is SinkState.FAILED for outbox in self.outboxes.values()):
            logger.info("sink %s: %s, and no other is left", name, reason)
            self.request_stop()
        else:
            logger.error("sink %s: %s, stopped until it is enabled again", name, reason)

    # ---- now and then ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Signs of life for systemd as long as the reader gives them, and news for the listeners."""
        watchdog = read_watchdog(self.sources.environ)
        alive_until = time.monotonic()
        while True:
            if self.pipeline.has_moved():
                alive_until = time.monotonic()
                self.notifier.watchdog()
                self.source.note_listening()
            elif watchdog and time.monotonic() - alive_until > watchdog:
                logger.error("an event reader has stalled")
            self._stands_still = time.monotonic() - alive_until > STILL_SECONDS
            with suppress(RuntimeError):  # no thread to be had, for databases of a reload: soon, perhaps
                self.watch_geoip()
            self._report_states()
            self.pipeline.report_suppressed()
            self.source.report_release()
            self.source.look_now_and_then()
            self._watch_problems()
            await asyncio.sleep(min(TICK_SECONDS, watchdog / 3 or TICK_SECONDS))

    def watch_geoip(self) -> None:
        """In a thread of its own, that nothing waits for: a large database takes seconds."""
        if self.pipeline.geoip is not None and not self._watches_geoip:
            threading.Thread(target=self._refresh_geoip, name="geoip", daemon=True).start()
            self._watches_geoip = True

    def _refresh_geoip(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            if (geoip := self.pipeline.geoip) is not None:  # a reload may take it away meanwhile
                geoip.refresh()

    def notify_changed(self) -> None:
        """Notify the listeners: of what status() and sink_status() say something may have changed."""
        for listener in self.listeners:
            listener.status_changed()

    def _report_states(self) -> None:
        for name, outbox in self.outboxes.items():
            self._progress.look(name, outbox)
        states = {name: (outbox.state, outbox.error) for name, outbox in self.outboxes.items()}
        if states != self._states:
            self._states = states
            self.notify_changed()
        stats = self.stats
        self.notifier.status(
            f"{stats.events_received_total} events received, {stats.events_lost_total} lost, "
            f"{stats.events_accepted_total} logged"
        )

    def _serve_bus(self) -> list[Coroutine[Any, Any, None]]:
        if not self.config[options.BUS_ENABLE] or self.config[options.CONNTRACK_REPLAY] is not None:
            return []
        # Late: dbus-fast takes memory that a container with the stream sink alone does not need.
        with without("_hashlib", "gi"):  # 3 MiB of OpenSSL and GLib, of which nobody asks anything
            from conntrackd.bus.service import BusService  # noqa: PLC0415

        return [BusService(self.control, self.config[options.BUS_ADDRESS]).run()]

    def examine(self) -> list[Finding]:
        """What is wrong, as the doctor says it. Takes up to some seconds: not for the event loop's thread."""
        events, stats, hearing = self.source.events, self.stats, self.source.hearing
        sinks, troubles = {}, {}
        for name, outbox in self.outboxes.items():
            sinks[name] = SinkStatus(outbox.state.value, outbox.error, {})
            troubles[name] = self._progress.describe_trouble(name, outbox)
        situation = checks.Situation(
            is_tracking=None if hearing is None else hearing.is_tracking,
            buffer=stats.buffer_bytes // 2 if events is None else events.measure_buffer(),
            lost=stats.events_lost_total,
            sinks=sinks,
            has_room=events is None or events.has_room,
            faults=() if hearing is None else hearing.faults,
            is_active=self.source.is_active,
            engine_fault=self.engine.fault,
            troubles=troubles,
            silence=self.sink_filters.list_silence(),
            unwritten=list_faults(self._unwritten),
            databases=self.pipeline.geoip_faults,
        )
        return checks.examine(self.config, situation)

    def set_filter(self, new: Filter, sinks: Mapping[str, CoreFilter], sets: object = None) -> None:
        """Replace the one in force, while events flow, with those of the sinks: see change_filter()."""
        change_filter(self.pipeline, self.source.events, self.filter, new, sinks, sets)
        self.filter = new
        for listener in self.listeners:
            listener.filter_changed()


def _stop_outboxes(outboxes: Sequence[Outbox], deadline: float) -> None:
    """They have begun to stop: the first that hangs takes the time that the others need no more."""
    for outbox in outboxes:
        outbox.stop(deadline)


def _check_replay(config: Config) -> None:
    path = config[options.CONNTRACK_REPLAY]
    if path is not None and (reason := explain_fault(path)):
        raise config.explain(options.CONNTRACK_REPLAY, f"{path}: {reason}", joint=": ")


def run(sources: Sources) -> None:
    """Run the daemon until a signal ends it. Raises ConntrackdError or OSError."""
    gc.set_threshold(GARBAGE_OBJECTS)
    share_arena()
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
