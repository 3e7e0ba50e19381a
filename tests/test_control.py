"""control.py: what callers ask for costs them their time, and not the daemon's."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from conntrackd import control
from conntrackd.active_filter import Filter, compile_filter
from conntrackd.config.read import read_config
from conntrackd.control import DaemonControl
from conntrackd.daemon import Daemon
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.spool import Spool
from conntrackd.engine import Tally
from conntrackd.errors import ManyErrors
from conntrackd.filter.diagnostics import RuleText
from conntrackd.flow import EventType
from conntrackd.metrics.table import METRICS, State
from conntrackd.netlink.recording import read_batches
from conntrackd.pipeline import Pipeline
from conntrackd.sink_filters import SinkFilters
from conntrackd.stats import SinkStats, Stats
from conntrackd.tails import Tails
from tests.delivery.fakes import FakeSink, put
from tests.engine.feed import ENGINES
from tests.messages import build_message
from tests.sinks.flows import make_flows


def make_control() -> DaemonControl:
    tails = SimpleNamespace(open=lambda selector, limit: 7)
    notifier = SimpleNamespace(reloading=lambda: None, ready=lambda: None)
    daemon = SimpleNamespace(
        config=read_config({}, {}),
        engine=ENGINES[0],
        tails=tails,
        notifier=notifier,
        pipeline=SimpleNamespace(readers=(None,), interrupt=lambda: None),
        live_sets=SimpleNamespace(in_force={}),
    )
    daemon.sink_filters = SinkFilters(cast(Daemon, daemon), {})
    return DaemonControl(cast(Daemon, daemon))


def test_a_flush_waits_for_what_the_core_keeps_of_a_file() -> None:
    sink, reader = FakeSink(batch_events=100, batch_wait=3600.0), SimpleNamespace(begun=1, done=0)
    outbox = Outbox(sink, queue=100, stats=SinkStats())

    def hand_on() -> None:
        put(outbox, make_flows(3))
        reader.done = 1

    def interrupt() -> None:
        asyncio.get_running_loop().call_soon(hand_on)

    pipeline = SimpleNamespace(readers=(reader,), lock=threading.Lock(), interrupt=interrupt)
    daemon = SimpleNamespace(outboxes={"stream": outbox}, pipeline=pipeline)
    outbox.start()
    is_empty = asyncio.run(DaemonControl(cast(Daemon, daemon)).flush_sink("stream"))
    received = list(sink.numbers)
    outbox.stop(0.0)

    assert (is_empty, received) == (True, [0, 1, 2])


def test_counters_of_a_spool_are_shown_where_there_is_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "loki", 1 << 20)
    daemon = SimpleNamespace(
        stats=Stats(),
        tails=Tails(),
        pipeline=SimpleNamespace(lock=threading.Lock(), protocols={}, flow_metrics=()),
        outboxes={
            "stream": Outbox(FakeSink(), queue=1, stats=SinkStats()),
            "loki": Outbox(FakeSink(), queue=1, stats=SinkStats(), spool=spool),
        },
        problems=[],
        source=SimpleNamespace(events=None),
        filter=SimpleNamespace(list_counts=list, list_suppressed=list),
    )
    daemon.sink_filters = SinkFilters(cast(Daemon, daemon), {})
    with closing(spool):
        asked = DaemonControl(cast(Daemon, daemon))
        statuses = {name: asked.sink_status(name).counters for name in daemon.outboxes}
        answers = [asked.statistics().sinks, statuses]
        state = cast(State, SimpleNamespace(statistics=asked.statistics(), sinks={}, now_ns=0))
        shown = {
            sample for metric in METRICS if metric.section == "sinks" for sample, _ in metric.read(state)
        }

    assert ("loki", "spool") in shown
    assert ("stream", "spool") not in shown
    of_spool = {
        *("sink_events_restored_total", "sink_events_dropped_spool_total", "sink_events_spooled"),
        *("sink_events_dropped_damaged_total", "sink_spool_errors_total", "sink_spool_damaged_total"),
    }
    for answer in answers:
        assert answer["loki"].keys() - answer["stream"].keys() == of_spool
        assert not [name for name in answer["stream"] if "spool" in name]


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda item: item.check_filter(["DENY any"]), ["drop any"]),
        (lambda item: item.tail(["drop any"], 1), 7),
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


def test_a_change_waits_for_nobody_who_looks(mocker: MockerFixture) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def compile_slowly(rules: Sequence[RuleText], *rest: Any) -> Filter:
        if rules[0].text == "log port 1":
            inside.set()
            assert go_on.wait(10)
        return compile_filter(rules, *rest)

    mocker.patch.object(control, "compile_filter", compile_slowly)

    async def run() -> bool:
        asked = make_control()
        looks = [asyncio.create_task(asked.check_filter(["log port 1"])) for _ in range(3)]
        await asyncio.to_thread(inside.wait, 10)
        rules = await asyncio.wait_for(asked._compile(["drop any"], ""), 10)
        is_open = not any(look.done() for look in looks)
        go_on.set()
        await asyncio.gather(*looks)
        return is_open and rules.rules == ("drop any",)

    assert asyncio.run(run())


def test_who_goes_away_keeps_his_turn_until_the_thread_has_ended(mocker: MockerFixture) -> None:
    """Or calls that are given up at once would be compiled side by side, as many as there are."""
    inside, go_on = threading.Event(), threading.Event()

    def compile_slowly(*arguments: Any) -> Filter:
        inside.set()
        assert go_on.wait(10)
        return compile_filter(*arguments)

    mocker.patch.object(control, "compile_filter", compile_slowly)

    async def run() -> tuple[bool, bool]:
        look = asyncio.create_task(make_control().check_filter(["log any"]))
        await asyncio.to_thread(inside.wait, 10)
        look.cancel()
        done, _ = await asyncio.wait([look], timeout=0.05)
        go_on.set()
        await asyncio.wait([look], timeout=10)
        return bool(done), look.cancelled()

    assert asyncio.run(run()) == (False, True)


def test_a_loop_that_ends_waits_for_no_thread_that_compiles(mocker: MockerFixture) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def compile_slowly(*arguments: Any) -> Filter:
        inside.set()
        assert go_on.wait(10), "the end has waited"
        return compile_filter(*arguments)

    mocker.patch.object(control, "compile_filter", compile_slowly)

    async def run() -> None:
        change = asyncio.create_task(make_control()._compile(["log any"], ""))
        look = asyncio.create_task(make_control().check_filter(["log any"]))
        await asyncio.to_thread(inside.wait, 10)
        look.cancel()  # by the session's end; the loop's own cancels once more
        change.cancel()

    asyncio.run(run())
    go_on.set()


@pytest.mark.parametrize("rules", [["log " + " or ".join(["not network public"] * 70)]])
def test_a_tail_that_would_hold_up_the_events_of_all_is_refused(rules: list[str]) -> None:
    asyncio.run(make_control().check_filter(rules))

    with pytest.raises(ManyErrors, match="comparisons: at most 1,024 are allowed"):
        asyncio.run(make_control().tail(rules, 0))


def test_a_tail_gets_what_the_filter_keeps_also_when_the_settings_change_while_it_is_open() -> None:
    opened: list[Any] = []
    control = make_control()
    daemon = cast(Any, control._daemon)
    daemon.config = read_config({"conntrack.events": ["DESTROY"]}, {})
    daemon.tails.open = lambda tables, limit: opened.extend(tables)
    asyncio.run(control.tail(["log any"], 0))
    batch = ENGINES[0].open_batch()
    batch.load(b"".join(map(build_message, make_flows(3))), 0, 1)
    every = batch.of_types(None, EventType.NEW)
    batch.set_type(every, EventType.SNAPSHOT)

    assert ENGINES[0].decide(batch, opened[0], every, None, is_part=True) == every != b""


def test_counters_are_read_between_two_batches_and_never_in_one() -> None:
    """Each event is counted as received first, and then as what became of it."""
    inside, go_on = threading.Event(), threading.Event()

    def count(kinds: Iterable[Tally]) -> None:
        inside.set()
        assert go_on.wait(10)
        Pipeline.count(pipeline, kinds)

    stats, tails, engine = Stats(), Tails(), ENGINES[0]
    table = engine.compile_table(())
    pipeline = Pipeline(engine, [table], None, [], tails, stats)
    pipeline.count = count  # type: ignore[method-assign]  # stands still in the middle of a batch
    batch = pipeline.readers[0].batch
    daemon = SimpleNamespace(
        stats=stats,
        tails=tails,
        pipeline=pipeline,
        outboxes={},
        problems=[],
        source=SimpleNamespace(events=None),
        filter=SimpleNamespace(list_counts=lambda: table.counts, list_suppressed=list),
    )
    corpus = Path(__file__).parent / "netlink" / "corpus" / "tcp.nl"
    reader = threading.Thread(target=pipeline.replay, args=(read_batches(corpus, 0, batch),))
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
        control, gate = make_control(), asyncio.Event()

        async def reload() -> list[str]:
            nonlocal calls
            calls += 1
            await gate.wait()
            return []

        mocker.patch.object(control, "reload", reload)
        control.reload_soon()
        await asyncio.sleep(0)
        for _ in range(1000):
            control.reload_soon()
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

    async def run() -> None:
        control = make_control()
        control._daemon.stats = Stats()
        async with control._counted():
            left.append(weakref.ref(Old()))
        while left[0]() is not None:
            await asyncio.sleep(0)

    left: list[weakref.ref[Old]] = []
    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(run(), 10))
    finally:
        gc.enable()


def test_a_thread_for_databases_that_cannot_be_had_now_is_asked_for_again(mocker: MockerFixture) -> None:
    start = mocker.patch.object(threading.Thread, "start", side_effect=RuntimeError)
    parts = SimpleNamespace(geoip=object(), _watches_geoip=False, _refresh_geoip=None)
    daemon = cast(Daemon, SimpleNamespace(pipeline=parts, **vars(parts)))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            Daemon.watch_geoip(daemon)
    start.side_effect = None
    for _ in range(2):
        Daemon.watch_geoip(daemon)

    assert start.call_count == 3
