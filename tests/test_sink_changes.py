"""A sink that a reload removes has all that was divided among the sinks of before, and then its time."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conntrackd import sink_changes
from conntrackd.config import options
from conntrackd.config.read import changed, read_config
from conntrackd.daemon import Daemon
from conntrackd.render import json
from conntrackd.sink_changes import SinkChange


def make_daemon(readers: list[Any], stopped: list[list[int]]) -> Daemon:
    async def stop(outboxes: list[Any], _: float) -> None:
        stopped.append([reader.done for reader in readers])

    outbox = SimpleNamespace(enable=lambda: None, reopen=lambda: None)
    pipeline = SimpleNamespace(
        interrupt=lambda: None,
        readers=tuple(readers),
        lock=threading.Lock(),
        outboxes=(outbox,),
        report_suppressed=lambda **_: None,
    )
    config = {options.SHUTDOWN_TIMEOUT: 1.0}
    daemon = SimpleNamespace(outboxes={"a": outbox}, pipeline=pipeline, config=config, stop_outboxes=stop)
    daemon.sink_filters = SimpleNamespace(apply=lambda: None)
    daemon.notify_changed = lambda: stopped.append([])
    return cast(Daemon, daemon)


def test_a_sink_is_stopped_when_no_batch_is_on_its_way_to_it() -> None:
    idle, busy = SimpleNamespace(begun=7, done=7), SimpleNamespace(begun=4, done=3)
    stopped: list[list[int]] = []
    daemon = make_daemon([idle, busy], stopped)

    async def run() -> None:
        change = asyncio.create_task(sink_changes.apply(daemon, [SinkChange("a", None)]))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (daemon.pipeline.outboxes, stopped) == ((), [])  # the next batch has none of it, this one has
        busy.begun = 5  # the reader goes on, and what it began since then is divided among others
        busy.done = 4
        await asyncio.wait_for(change, 10)

    asyncio.run(run())

    assert stopped == [[7, 4], []]


def test_who_looks_at_the_sinks_in_another_thread_sees_those_of_before_or_those_of_after() -> None:
    daemon = make_daemon([], [])
    looking = iter(daemon.outboxes.items())

    asyncio.run(sink_changes.apply(daemon, [SinkChange("a", None)]))

    assert [name for name, _ in looking] == ["a"]
    assert list(daemon.outboxes) == []


def test_a_reader_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_changes, "BATCH_SECONDS", 0.01)
    stopped: list[list[int]] = []
    daemon = make_daemon([SimpleNamespace(begun=1, done=0)], stopped)

    asyncio.run(sink_changes.apply(daemon, [SinkChange("a", None)]))

    assert stopped == [[0], []]


def test_a_host_name_makes_those_anew_that_can_write_it_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    text = (
        "sink: {stream: {enable: true}, syslog: {enable: true, address: 'udp://127.0.0.1:514'}}\n"
        "sinks: {siem: {kind: loki, address: 'http://127.0.0.1:3100'}, own: {kind: journal}}\n"
    )
    path.write_text(text)
    old = read_config({}, {}, path)
    path.write_text(f"{text}host: edge2\n")
    new = read_config({}, {}, path)
    outbox = SimpleNamespace(template=json.TEMPLATE)
    daemon = cast(
        Daemon, SimpleNamespace(outboxes=dict.fromkeys(("stream", "syslog", "siem", "own"), outbox))
    )

    changes = sink_changes.prepare(daemon, new, changed(old, new))

    assert [change.name for change in changes] == ["stream", "syslog", "siem"]
