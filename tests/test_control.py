"""control.py: what callers ask for costs them their time, and not the daemon's."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from conntrackd import control
from conntrackd.config import read_config
from conntrackd.control import DaemonControl
from conntrackd.daemon import Daemon
from conntrackd.filter.pycode import Selector
from conntrackd.filtering import Filter, compile_filter
from conntrackd.flow import Flow
from conntrackd.netlink.decode import Decoder
from conntrackd.netlink.recording import read_batches
from conntrackd.pipeline import Pipeline
from conntrackd.sinks.tail import Tails
from conntrackd.stats import Stats


def make_control() -> DaemonControl:
    tails = SimpleNamespace(open=lambda selector, limit: 7)
    notifier = SimpleNamespace(reloading=lambda: None, ready=lambda: None)
    daemon = SimpleNamespace(config=read_config({}, {}), tails=tails, notifier=notifier)
    return DaemonControl(cast(Daemon, daemon))


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda each: each.check_filter(["DENY any"]), ["drop any"]),
        (lambda each: each.open_tail(["drop any"], 1), 7),
    ],
)
def test_the_loop_turns_while_rules_are_compiled(ask: Any, answer: object, mocker: MockerFixture) -> None:
    turned = threading.Event()

    def compile_slowly(*arguments: Any) -> Filter:
        assert turned.wait(10), "the loop stands still"
        return compile_filter(*arguments)

    mocker.patch.object(control, "compile_filter", compile_slowly)

    async def run() -> object:
        asyncio.get_running_loop().call_later(0.01, turned.set)
        return await ask(make_control())

    assert asyncio.run(run()) == answer


def test_lists_of_rules_are_compiled_one_after_the_other(mocker: MockerFixture) -> None:
    inside = most = 0

    def count(*arguments: Any) -> Filter:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return compile_filter(*arguments)
        finally:
            inside -= 1

    mocker.patch.object(control, "compile_filter", count)

    async def run() -> None:
        each = make_control()
        await asyncio.gather(*(each.check_filter([f"drop port {port}"] * 20) for port in range(20)))

    asyncio.run(run())

    assert most == 1


def test_counters_are_read_between_two_batches_and_never_in_one() -> None:
    """Each event is counted as received first, and then as what became of it."""
    inside, go_on = threading.Event(), threading.Event()

    def select(flows: list[Flow]) -> list[Flow]:
        inside.set()
        assert go_on.wait(10)
        return flows[:1]

    stats, tails = Stats(), Tails()
    selector = cast(Selector, mocked := SimpleNamespace(needs_location=False, counts=[]))
    pipeline = Pipeline(Decoder(stats), selector, None, [], tails, stats)
    pipeline._select = select  # type: ignore[method-assign]  # stands still in the middle of a batch
    daemon = SimpleNamespace(
        stats=stats,
        tails=tails,
        pipeline=pipeline,
        outboxes={},
        problems=[],
        filter=SimpleNamespace(selector=mocked),
    )
    corpus = Path(__file__).parent / "netlink" / "corpus" / "tcp.nl"
    reader = threading.Thread(target=pipeline.replay, args=(read_batches(corpus, 0),))
    reader.start()
    assert inside.wait(10)
    answers: list[Mapping[str, int]] = []
    asker = threading.Thread(
        target=lambda: answers.append(DaemonControl(cast(Daemon, daemon)).statistics().counters)
    )
    asker.start()
    asker.join(0.1)
    assert asker.is_alive()
    go_on.set()
    asker.join(10)
    reader.join(10)

    (answer,) = answers
    became = answer["events_filtered_total"] + answer["events_accepted_total"]
    assert answer["events_received_total"] == became + answer["events_malformed_total"] > 0


def test_any_number_of_signals_during_a_reload_are_one_more(mocker: MockerFixture) -> None:
    calls = 0

    async def run() -> None:
        each, gate = make_control(), asyncio.Event()

        async def reload() -> list[str]:
            nonlocal calls
            calls += 1
            await gate.wait()
            return []

        mocker.patch.object(each, "reload", reload)
        each.reload_soon()
        await asyncio.sleep(0)
        for _ in range(1000):
            each.reload_soon()
        gate.set()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*others)

    asyncio.run(run())

    assert calls == 2


def test_what_a_change_leaves_behind_is_collected_soon(mocker: MockerFixture) -> None:
    mocker.patch.object(control, "COLLECT_SECONDS", 0.0)

    class Old:
        def __init__(self) -> None:
            self.itself = self

    async def change() -> list[str]:
        left.append(weakref.ref(Old()))
        return []

    async def run() -> None:
        each = make_control()
        each._daemon.stats = Stats()
        await each._count(change())
        while left[0]() is not None:
            await asyncio.sleep(0)

    left: list[weakref.ref[Old]] = []
    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(run(), 10))
    finally:
        gc.enable()
