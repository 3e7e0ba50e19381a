"""What can be asked of the daemon while it runs: bus/control.py's Control, which is the XML, done.

A change is prepared whole, with everything that can be wrong with it, and only then made: the answer says
what changed, or what is wrong, and then nothing has changed.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from conntrackd import VERSION, logs, resources, sink_changes
from conntrackd.active_filter import (
    RUN_TIME,
    CoreFilter,
    Filter,
    RuleChange,
    compile_filter,
    name_run_time,
    prepare_rules,
)
from conntrackd.apart import run_apart, run_to_its_end
from conntrackd.bus.control import (
    FLUSH_SECONDS,
    Control,
    DaemonStatus,
    Descriptor,
    FilterStatus,
    Finding,
    Listener,
    SetEntry,
    SetStatus,
    SinkStatus,
    Statistics,
    asked_by_root,
)
from conntrackd.config import options
from conntrackd.config.option import Option
from conntrackd.config.read import Config, changed, list_unapplied, raise_mistakes
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState
from conntrackd.errors import ConntrackdError, UnavailableError, UsageError
from conntrackd.filter import cost
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.explain import list_set_changes
from conntrackd.flow import Protocol
from conntrackd.records import choose_community_seeds
from conntrackd.sink_changes import SinkChange
from conntrackd.sink_filters import describe, list_warnings
from conntrackd.stats import list_counters, measure_process
from conntrackd.tails import MAX_TAILS

if TYPE_CHECKING:
    from conntrackd.daemon import Daemon

logger = logging.getLogger(__name__)

# The kernel counts a buffer twice; people see the size that conntrack.buffer asks for.
COUNTED: Final = 2
TAILS_OF_ROOT: Final = 2
# Changes of this time are cleared up after together.
COLLECT_SECONDS: Final = 1.0


class DaemonControl(Control):
    """The daemon's Control. Every method runs in the thread of the event loop."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._revert: asyncio.TimerHandle | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._again = False
        self._collecting: asyncio.TimerHandle | None = None
        self.turn = asyncio.Lock()
        """Of whoever changes something: one at a time."""
        self._spoolless: list[str] = []
        self._started: Config | None = None
        """The configuration at the start: each reload reports what still waits for a restart."""

    # ---- reload ---------------------------------------------------------------------------------------

    def reload_soon(self) -> None:
        """SIGHUP. Any number of them while a reload is under way are one more reload."""
        if self._reloading is not None and not self._reloading.done():
            self._again = True
            return
        self._reloading = asyncio.get_running_loop().create_task(self._reload_by_signal())

    async def _reload_by_signal(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            self._daemon.notifier.reloading()
            try:
                for line in await self.reload():
                    logger.info("reload: %s", line)
            except ConntrackdError as error:
                logger.error(
                    "reload: %s\nhint: nothing has changed, but files and connections are opened anew", error
                )
            except Exception:  # the edge, as that of the bus is
                logger.exception("reload: failed")
            finally:
                self._daemon.notifier.ready()

    async def reload(self) -> list[str]:
        async with self.turn:
            try:
                async with self._counted():
                    return await self._reload()
            except ConntrackdError:
                # Whatever is wrong with the configuration: a file that was moved away has to be made anew.
                for outbox in self._daemon.outboxes.values():
                    outbox.reopen()
                raise

    async def _reload(self) -> list[str]:
        daemon = self._daemon
        old, new = daemon.config, await run_apart(daemon.sources.read)
        sink_changes.check_sinks(old, new, daemon.outboxes)
        rules = await run_apart(prepare_rules, new, new, daemon.pipeline)
        changes = changed(old, new)
        await run_apart(_check_restart, new, list_unapplied(changes))
        geoip = daemon.pipeline.geoip  # which looks by itself whether its files have changed
        if any(option.key.startswith("geoip.") for option in changes):
            geoip = await run_apart(daemon.open_geoip, new)
        daemon.source.activate(new)
        metrics = None
        try:
            metrics = daemon.metrics.prepare(new)
            sinks = await run_apart(sink_changes.prepare, daemon, new, changes)  # spools, certificates
        except BaseException:
            daemon.source.deactivate(old)
            if metrics is not None:
                metrics.close()
            raise
        # From here on nothing can fail.
        lines = [f"{option.key} is {_show(option, new)}" for option in changes if option.reload]
        lines += [*sink_changes.describe(old, new), *list_set_changes(daemon.live_sets.in_force, rules.sets)]
        ended = [what for what in self._list_run_time() if not what.startswith("set ")]  # those are in it
        lines += [f"{what} is as configured again" for what in ended]
        lines += self._note_waiting(old, new, sinks)
        daemon.config = new
        daemon.source.deactivate(new)
        daemon.source.look()
        daemon.metrics.apply(metrics)
        logs.set_level(new[options.LOG_LEVEL])
        self._apply(rules)
        daemon.pipeline.set_geoip(geoip)
        daemon.pipeline.community_seeds = choose_community_seeds(new)
        await sink_changes.apply(daemon, sinks)
        warnings = [*map(str, new.warnings), *list_warnings(rules.filter, rules.sinks, geoip)]
        return [*(lines or ["nothing has changed"]), *(f"warning: {warning}" for warning in warnings)]

    def _note_waiting(self, old: Config, new: Config, sinks: Sequence[SinkChange]) -> list[str]:
        """What a restart applies and no reload does; as lines for people."""
        removed = {change.name for change in sinks if change.made is None}
        self._started = sink_changes.adopt(self._started or old, new, self._daemon.outboxes.keys() - removed)
        self._spoolless = sink_changes.list_without_spool(self._daemon, old, new, self._spoolless)
        waiting = list_unapplied(changed(self._started, new))
        lines = [f"{option.key} has changed and needs a restart" for option in waiting]
        lines += [f"sink {name} gets its spool at the next start" for name in self._spoolless]
        return [f"{line}: systemctl restart conntrackd" for line in lines]

    async def reload_filter(self) -> list[str]:
        # With the rules and sets of now, the other settings as they were: what they say is a reload's affair.
        daemon = self._daemon
        async with self.turn, self._counted():
            new = await run_apart(daemon.sources.read)
            rules = await run_apart(prepare_rules, new, daemon.config, daemon.pipeline)
            ended = daemon.sink_filters.list_changed()
            self._apply(rules)
        geoip = daemon.pipeline.geoip
        own = [(name, sink) for name, sink in rules.sinks.items() if sink.rules or name in ended]
        lines = [line for name, sink in own for line in describe(name, sink, geoip)]
        return [*self._describe(rules.filter), *lines]

    def _apply(self, new: RuleChange) -> None:
        """Replace all rules and sets, those of run time as well."""
        daemon = self._daemon
        # A sink that the change removes keeps its filter until it has stopped.
        sinks = {**daemon.sink_filters.in_force, **new.sinks}
        daemon.sink_filters.configure(new.sinks)
        daemon.live_sets.configure(new.config, new.sets)
        self._put_in_force(new.filter, sinks, new.opened)
        daemon.configured_filter = new.filter
        daemon.pipeline.flow_metrics = new.flow_metrics
        daemon.pipeline.interrupt()

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        """A change, made or refused."""
        stats = self._daemon.stats
        try:
            yield
        except (ConntrackdError, OSError) as error:
            stats.reloads_failed_total += 1
            if isinstance(error, OSError):  # modules are loaded late, and are files
                resources.raise_descriptors(error)
            raise
        finally:
            self._collect_soon()
        stats.reloads_total += 1

    def _collect_soon(self) -> None:
        """Free replaced filters: they form reference cycles, and the collector rarely runs.

        After 10,000 reloads that was 14 MB. Looking takes 10 ms: once after many changes.
        """
        if self._collecting is None:
            loop = asyncio.get_running_loop()
            self._collecting = loop.call_later(COLLECT_SECONDS, self._collect)

    def _collect(self) -> None:
        self._collecting = None
        gc.collect()

    # ---- the filter -----------------------------------------------------------------------------------

    def _put_in_force(self, rules: Filter, sinks: Mapping[str, CoreFilter], sets: object = None) -> None:
        if self._revert is not None:
            self._revert.cancel()
            self._revert = None
        self._daemon.set_filter(rules, sinks, sets)

    def _describe(self, rules: Filter) -> list[str]:
        count = len(rules.rules)
        instructions = self._count_instructions()
        kernel = f"{instructions} instructions in the kernel" if instructions else "none in the kernel"
        first = f"{count} rule{'' if count == 1 else 's'} in force, from {rules.origin}; {kernel}"
        return [first, *rules.list_remarks(self._daemon.pipeline.geoip)]

    async def _compile(self, rules: Sequence[str], origin: str) -> Filter:
        """In a thread: signals, the bus and the watchdog go on. How much it may cost: filter/cost.py.

        Changes come one at a time, and so do those who only look (bus/limits.py, Turns); neither waits here
        for the other.
        """
        texts, daemon = [RuleText(rule) for rule in rules], self._daemon
        readers, sets = len(daemon.pipeline.readers), daemon.live_sets.in_force
        return await run_apart(compile_filter, texts, origin, daemon.config, daemon.engine, readers, sets)

    async def _compile_to_look(self, rules: Sequence[str]) -> Filter:
        texts, daemon = [RuleText(rule) for rule in rules], self._daemon
        sets = daemon.live_sets.in_force
        return await run_to_its_end(compile_filter, texts, "", daemon.config, daemon.engine, 1, sets)

    async def set_filter(self, rules: list[str], timeout_s: int) -> list[str]:
        # In turn, or a reload in the meantime would leave rules for settings that are gone.
        async with self.turn, self._counted():
            new = await self._compile(rules, name_run_time(timeout_s))
            self._put_in_force(new, self._daemon.sink_filters.in_force)
            if timeout_s:
                self._revert = asyncio.get_running_loop().call_later(timeout_s, self._end_run_time)
            return self._describe(new)

    def _end_run_time(self) -> None:
        self._revert = None
        self._daemon.set_filter(self._daemon.configured_filter, self._daemon.sink_filters.in_force)
        logger.info("the run-time filter has expired, %s", self._describe(self._daemon.filter)[0])

    async def reset_filter(self) -> list[str]:
        async with self.turn, self._counted():
            self._put_in_force(self._daemon.configured_filter, self._daemon.sink_filters.in_force)
            return self._describe(self._daemon.filter)

    async def check_filter(self, rules: list[str]) -> list[str]:
        return list((await self._compile_to_look(rules)).rules)

    async def explain_filter(self, rules: list[str]) -> str:
        candidate = await self._compile_to_look(rules) if rules else self._daemon.filter
        sets = self._daemon.live_sets.in_force
        return await run_to_its_end(candidate.explain, self._daemon.config, sets)

    async def tail(self, rules: list[str], limit: int) -> Descriptor:
        if not asked_by_root.get() and len(self._daemon.tails) >= MAX_TAILS - TAILS_OF_ROOT:
            raise UnavailableError(
                f"{len(self._daemon.tails)} tails are open, the last {TAILS_OF_ROOT} are reserved for root",
                hint="end one of them, for example with ^C",
            )
        # As a sink's own: it decides about what the global filter keeps, whatever that is by then.
        new = await self._daemon.sink_filters.compile_to_look(rules)
        cost.check_tail(new.parsed)
        tail = Descriptor(self._daemon.tails.open(new.tables, limit))
        self._daemon.pipeline.interrupt()
        return tail

    # ---- what there is to know ------------------------------------------------------------------------

    async def doctor(self) -> list[Finding]:
        self._daemon.source.look(is_timed=False)
        return await run_to_its_end(self._daemon.examine)

    async def set_log_level(self, level: str) -> list[str]:
        logs.set_level(level)
        self._daemon.notify_changed()
        lasts = "as configured" if level == self._daemon.config[options.LOG_LEVEL] else RUN_TIME
        return [f"log level is {level}, {lasts}"]

    def status(self) -> DaemonStatus:
        daemon, revert = self._daemon, self._revert
        left = 0 if revert is None else max(1, round(revert.when() - asyncio.get_running_loop().time()))
        rules = daemon.filter
        return DaemonStatus(
            version=VERSION,
            start_us=daemon.start_us,
            paths=tuple(map(str, daemon.config.paths)),
            filter=FilterStatus(rules.rules, rules.origin, left, rules.groups, self._count_instructions()),
            buffer=self._measure_buffer(),
            log_level=logs.get_level(),
            run_time=tuple(self._list_run_time()),
            problems=tuple(problem.replace("\nhint: ", "; ") for problem in self._daemon.list_problems()),
        )

    def _count_instructions(self) -> int:
        """Of the program that the kernel runs."""
        events = self._daemon.source.events
        return self._daemon.filter.instructions if events is None or events.has_room else 0

    def _measure_buffer(self) -> int:
        events = self._daemon.source.events
        return (self._daemon.stats.buffer_bytes if events is None else events.measure().size) // COUNTED

    def _list_run_time(self) -> Iterator[str]:
        daemon = self._daemon
        if daemon.filter is not daemon.configured_filter:
            yield "filter"
        if logs.get_level() != daemon.config[options.LOG_LEVEL]:
            yield "log level"
        for name in daemon.sink_filters.list_changed():
            yield f"filter of sink {name}"
        for name in daemon.live_sets.list_changed():
            yield f"set {name}"
        for name, outbox in daemon.outboxes.items():
            if outbox.state is SinkState.DISABLED:
                yield f"sink {name}"

    def statistics(self) -> Statistics:
        daemon = self._daemon
        with daemon.pipeline.lock:  # what stats.py says of their sums holds then
            counters = list_counters(daemon.stats)
            sinks = {name: _count_sink(outbox) for name, outbox in daemon.outboxes.items()}
            flows = [metric.snapshot() for metric in daemon.pipeline.flow_metrics]
        for number, count in sorted(daemon.pipeline.protocols.items()):
            counters[f"events_{_name_protocol(number)}_total"] = count
        counters["problems"] = len(daemon.problems)
        counters["tails_open"] = len(daemon.tails)
        counters["tails_opened_total"] = daemon.tails.opened_total
        counters["tails_dropped_total"] = daemon.tails.dropped_total
        counters["buffer_bytes"] = self._measure_buffer()
        counters |= measure_process()
        delays = {name: outbox.count_delays() for name, outbox in daemon.outboxes.items()}
        counts, suppressed = daemon.filter.list_counts(), daemon.filter.list_suppressed()
        return Statistics(counters, sinks, counts, delays, suppressed, flows)

    # ---- the filters of sinks -------------------------------------------------------------------------

    async def set_sink_filter(self, name: str, rules: list[str], timeout_s: int) -> list[str]:
        async with self.turn:
            self._get_outbox(name)
            async with self._counted():
                return await self._daemon.sink_filters.set(name, rules, timeout_s)

    async def reset_sink_filter(self, name: str) -> list[str]:
        async with self.turn:
            self._get_outbox(name)
            async with self._counted():
                return await self._daemon.sink_filters.reset(name)

    async def explain_sink_filter(self, name: str, rules: list[str]) -> str:
        self._get_outbox(name)
        return await self._daemon.sink_filters.explain(name, rules)

    # ---- sets -----------------------------------------------------------------------------------------

    async def list_sets(self) -> list[SetStatus]:
        return self._daemon.live_sets.list_statuses()

    async def show_set(self, name: str, after: str) -> list[SetEntry]:
        return self._daemon.live_sets.list_entries(name, after)

    async def reload_sets(self, names: list[str]) -> list[str]:
        async with self.turn, self._counted():
            return await self._daemon.live_sets.reload(names)

    async def add_to_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        async with self.turn:
            return await self._daemon.live_sets.change(name, entries, timeout_s, is_added=True)

    async def remove_from_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        async with self.turn:
            return await self._daemon.live_sets.change(name, entries, timeout_s, is_added=False)

    # ---- sinks ----------------------------------------------------------------------------------------

    def list_sinks(self) -> list[str]:
        return list(self._daemon.outboxes)

    def sink_status(self, name: str) -> SinkStatus:
        outbox = self._get_outbox(name)
        filters = self._daemon.sink_filters
        counters = _count_sink(outbox)
        return SinkStatus(
            outbox.state.value,
            outbox.error,
            counters,
            filters.get_status(name),
            filters.list_counts(name),
            filters.list_suppressed(name),
        )

    async def enable_sink(self, name: str) -> list[str]:
        self._get_outbox(name).enable()
        self._daemon.notify_changed()
        return [f"sink {name} is enabled, as configured"]

    async def disable_sink(self, name: str) -> list[str]:
        self._get_outbox(name).disable()
        self._daemon.pipeline.interrupt()
        self._daemon.notify_changed()
        return [f"sink {name} is disabled, {RUN_TIME}; what comes is dropped and counted"]

    async def flush_sink(self, name: str) -> bool:
        outbox = self._get_outbox(name)
        if outbox.is_out():
            raise UnavailableError(
                f"sink {name} is {outbox.state.value}", hint=f"conntrackctl sink enable {name}"
            )
        # What has been read of the kernel's events comes first, also where the core keeps it for a moment.
        self._daemon.pipeline.interrupt()
        await sink_changes.wait_for_batches(self._daemon.pipeline)
        return await run_apart(outbox.flush, FLUSH_SECONDS)

    def _get_outbox(self, name: str) -> Outbox:
        outbox = self._daemon.outboxes.get(name)
        if outbox is None:
            known = ", ".join(self._daemon.outboxes)
            raise UsageError(
                f"unknown sink {name!r}", hint=f"one of: {known}; others are off or not in the configuration"
            )
        return outbox

    def subscribe(self, listener: Listener) -> None:
        self._daemon.listeners.append(listener)


def _check_restart(config: Config, waiting: Sequence[Option[object]]) -> None:
    """Raise what would keep the restart that these wait for from working."""
    if waiting:
        from conntrackd.verify import list_hindrances  # noqa: PLC0415  # most reloads do without

        raise_mistakes(list_hindrances(config, waiting))


def _show(option: Option[object], config: Config) -> str:
    return "another one" if option.secret else str(option.kind.render(config[option])) or "not set"


def _count_sink(outbox: Outbox) -> dict[str, int]:
    """Its counters; without a spool there are none of one."""
    return list_counters(outbox.snapshot(), has_spool=outbox.has_spool)


def _name_protocol(number: int) -> str:
    try:
        return Protocol(number).name.lower()
    except ValueError:
        return str(number)
