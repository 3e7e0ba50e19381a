"""What a reload changes in the sinks: prepared whole in a thread, then applied without a fault.

A sink that the new configuration does not name goes as one that it turns off: it has its time to deliver, and
what is left stays in its spool, if it has one, or is dropped and counted. The spool's files stay.
"""

import asyncio
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd import resources
from conntrackd.config import options
from conntrackd.config.option import Option
from conntrackd.config.read import Config
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import Sink
from conntrackd.pipeline import Pipeline
from conntrackd.sinks import ConfiguredSink, list_sinks
from conntrackd.sinks.anonymizer import read_anonymizer

if TYPE_CHECKING:
    from conntrackd.daemon import Daemon


BATCH_SECONDS: Final = 3.0
LOOK_SECONDS: Final = 0.002


class SinkChange(NamedTuple):
    """`made`: an outbox to add, a sink to put into its outbox, None to remove it."""

    name: str
    made: Outbox | Sink | None
    queue: int = 0
    """Of the sink that is put into its outbox."""


def check_sinks(old: Config, new: Config, outboxes: Mapping[str, Outbox]) -> None:
    """Raise where one that runs is to be of another kind, or its spool is to be that of a new one.

    What waits for it was written for the old kind, and goes to the spool until it has ended.
    """
    for sink in new.named.values():
        if sink.name in outboxes and sink.name in old.named and not old.has(sink):
            message = (
                f"is {sink.kind}, and the sink {sink.name} that runs is of kind {old.named[sink.name].kind}"
            )
            hint = "use another name, remove it by one reload and add it by the next, or restart"
            raise new.explain(sink.kind_option, message, hint)
    held = {
        (sink.kind.name, os.path.realpath(folder)): sink.name
        for sink in list_sinks(old)
        if sink.name in outboxes and (folder := sink.kind.find_spool(sink.config)) is not None
    }
    for name, kind, view in list_sinks(new):
        folder = kind.find_spool(view) if name not in outboxes and kind.enabled(view) else None
        holder = None if folder is None else held.get((kind.name, os.path.realpath(folder)))
        if holder is not None and kind.spool is not None:
            message = f"is {folder}, which sink {holder} has until it is removed"
            hint = (
                f"use another directory, remove {holder} by one reload and add {name} by the next, or restart"
            )
            raise view.explain(kind.spool.path, message, hint)


def prepare(daemon: "Daemon", new: Config, changes: Sequence[Option[object]]) -> list[SinkChange]:
    """Whatever can be wrong with them is raised, and then nothing of it is left. Outboxes that come run."""
    found: list[SinkChange] = []
    wanted = [sink for sink in list_sinks(new) if sink.is_enabled]
    try:
        for sink in wanted:
            if sink.name not in daemon.outboxes:
                found.append(SinkChange(sink.name, daemon.create_outbox(sink)))
            elif any(sink.uses(option) for option in changes) or _has_another_key(daemon, sink):
                queue = sink.config[sink.kind.options.queue]
                found.append(SinkChange(sink.name, sink.kind.create(sink.config), queue))
        _start(daemon, [change.made for change in found if isinstance(change.made, Outbox)])
    except BaseException:
        for change in found:
            if isinstance(change.made, Outbox):
                change.made.stop(0.0)  # or its spool would be in use for the next reload
        raise
    names = {sink.name for sink in wanted}
    return [*found, *(SinkChange(name, None) for name in daemon.outboxes if name not in names)]


def _start(daemon: "Daemon", outboxes: Sequence[Outbox]) -> None:
    """Here, where a thread that the system does not give fails the whole change. Raises ResourceError."""
    try:
        for outbox in outboxes:
            outbox.start()
    except RuntimeError as error:  # how CPython says so
        more = len(outboxes) + len(daemon.outboxes) + len(daemon.pipeline.readers) - 1
        raise resources.explain_threads(more) from error


def _has_another_key(daemon: "Daemon", sink: ConfiguredSink) -> bool:
    """Whether pseudonyms are others now, though all settings are the same. ConfigError for no key at all."""
    return read_anonymizer(sink.config, sink.kind.name) != daemon.outboxes[sink.name].template.anonymizer


async def apply(daemon: "Daemon", changes: Sequence[SinkChange]) -> None:
    """From the next batch on. Returns when those that go have ended."""
    removed, outboxes = [], dict(daemon.outboxes)  # replaced as a whole: other threads look at them
    if any(change.made is None for change in changes):  # and again below, what came since
        daemon.pipeline.report_suppressed(at_once=True)
    for outbox in outboxes.values():
        outbox.enable()  # what was switched off at run time lasts until now
        outbox.reopen()
    for name, made, queue in changes:
        if made is None:
            removed.append(outboxes.pop(name))
        elif isinstance(made, Outbox):
            outboxes[name] = made
        else:
            outboxes[name].replace(made, queue)
    daemon.outboxes, daemon.pipeline.outboxes = outboxes, tuple(outboxes.values())
    daemon.pipeline.interrupt()
    if removed:
        await wait_for_batches(daemon.pipeline)
        daemon.pipeline.report_suppressed(at_once=True, removed=removed)
        daemon.sink_filters.apply()
        await daemon.stop_outboxes(removed, daemon.config[options.SHUTDOWN_TIMEOUT])
    daemon.notify_changed()


async def wait_for_batches(pipeline: Pipeline) -> None:
    """Until those who were there have what was divided among them: who is stopped takes nothing more.

    A batch takes milliseconds; a reader that stands still is not waited for, and is a problem of its own.
    """
    with pipeline.lock:  # under which losses and flows of the table are handed on
        begun = [(reader, reader.begun) for reader in pipeline.readers]
    deadline = time.monotonic() + BATCH_SECONDS
    while any(reader.done < number for reader, number in begun) and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)


def describe(old: Config, new: Config) -> list[str]:
    """Which sinks are named now, and which are not any more."""
    lines = [
        f"sink {sink.name} ({sink.kind}) is new{'' if new[sink.enable] else ', and off'}"
        for sink in new.named.values()
        if not old.has(sink)
    ]
    return lines + [
        f"sink {sink.name} ({sink.kind}) is removed" for sink in old.named.values() if not new.has(sink)
    ]


def list_without_spool(daemon: "Daemon", old: Config, new: Config, without: Sequence[str]) -> list[str]:
    """Sinks for which a spool makes sense since a reload: nobody gets one while it runs."""
    found = []
    for name, kind, view in list_sinks(new):
        if name not in daemon.outboxes or not kind.enabled(view):
            continue
        before = old.view(name)
        if kind.gains_spool(before, view) or (name in without and not kind.gains_spool(view, before)):
            found.append(name)
    return found


def adopt(started: Config, new: Config, running: Collection[str]) -> Config:
    """The settings with which all runs, of which those of all but the `running` sinks are the new ones.

    These go on as they were made. Compared with this the next reload reports what waits for a restart.
    """
    others = [sink for sink in list_sinks(new) if sink.name not in running]
    fresh = {option.key: new.settings[option.key] for sink in others for option in sink.list_options()}
    own = {name: sink for name, sink in new.named.items() if name not in running or started.has(sink)}
    settings = MappingProxyType({**started.settings, **fresh})
    return replace(started, settings=settings, named=MappingProxyType(own))
