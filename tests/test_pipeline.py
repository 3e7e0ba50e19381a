"""The loop's decisions; what it does with events is in live/."""

import math
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from json import loads
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import Sink
from conntrackd.engine import Engine
from conntrackd.filter.ast import Rule
from conntrackd.flow import ABSENT, ALL_EVENTS, EventType, Flow, Location, Lost
from conntrackd.geoip.databases import GeoIP
from conntrackd.netlink.socket import EventSocket, Fill
from conntrackd.pipeline import Pipeline
from conntrackd.reader import (
    GATHER_BYTES,
    GATHER_US,
    LAST_MS,
    LONG_GATHER_BYTES,
    LONG_GATHER_US,
    PATIENCE_MS,
    ReportedDrops,
)
from conntrackd.records import Records
from conntrackd.render import journal, json, loki
from conntrackd.render.anonymize import Anonymizer
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template
from conntrackd.sinks.journal import JournalSink
from conntrackd.sinks.stream import StreamSink
from conntrackd.source.resync import Resync
from conntrackd.stats import SinkStats, Stats
from conntrackd.tails import Tails
from tests.engine.feed import ENGINES, RECEIVED_NS, set_records
from tests.engine.rendering import Databases
from tests.filter.rows import parse
from tests.messages import build_message
from tests.rendering import render
from tests.sinks.flows import BASE, make_flow, make_flows

BERLIN = Location(city="Berlin", country="DE")


def make_pipeline(
    engine: Engine,
    outboxes: Sequence[object] = (),
    rules: Sequence[Rule] = (),
    own: Mapping[str, Sequence[Rule]] | None = None,
    *,
    geoip: object = None,
    stats: Stats | None = None,
    events: int = ALL_EVENTS,
) -> Pipeline:
    """`own`: the rules of sinks, by name."""
    return Pipeline(
        engine,
        [engine.compile_table(rules, None, events)],
        cast(GeoIP | None, geoip),
        cast(list[Outbox], outboxes),
        Tails(),
        stats or Stats(),
        {name: [engine.compile_table(some)] for name, some in (own or {}).items() if some},
    )


def replay(pipeline: Pipeline, flows: Sequence[Flow]) -> None:
    """As one batch."""
    batch = pipeline.readers[0].batch
    messages = b"".join(map(build_message, flows))

    def load() -> Iterator[tuple[int, int]]:
        yield batch.load(messages, 0, RECEIVED_NS)[1:]

    pipeline.replay(load())


class Gathering:
    """In the place of an outbox: keeps what it is given, as far as it has room."""

    def __init__(self, room: int = 1000, template: object = json.TEMPLATE) -> None:
        self.name = "stream"
        self.template = template
        self.room = room
        self.given: list[Rendered] = []
        self.dropped: list[tuple[int, int, int]] = []
        self.is_timed: bool | None = None

    def get_room(self) -> int:
        return self.room

    def has_room(self, _: int) -> bool:
        return True

    def put(self, rendered: Rendered, *, is_timed: bool = False) -> None:
        self.given.append(rendered)
        self.is_timed = is_timed

    def drop(self, count: int, since: int, until: int) -> None:
        self.dropped.append((count, since, until))

    def is_out(self) -> bool:
        return False

    def flush(self, _: float, *, at_once: bool = True) -> bool:
        return True


class Counting:
    """In the place of an engine: which compiled templates there are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.compiled: weakref.WeakSet[Any] = weakref.WeakSet()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def compile_template(self, template: Template, seed: int | None = None) -> Any:
        found = self._engine.compile_template(template, seed)
        if found.written is not None:
            self.compiled.add(found.written)
        return found


def test_what_a_sink_of_before_a_reload_wrote_in_place_of_addresses_is_forgotten() -> None:
    """It is up to 4 MB for each."""
    engine = Counting(ENGINES[0])
    outbox = Gathering()
    pipeline = make_pipeline(cast(Engine, engine), [outbox])
    for bits in range(1, 30):
        outbox.template = json.TEMPLATE.anonymize(Anonymizer(ipv4_bits=bits))
        replay(pipeline, make_flows(1))

    assert len(outbox.given) == 29
    assert len(engine.compiled) == 1


# -- when the reader waits


@pytest.mark.parametrize(
    ("size", "waits", "is_reading", "asked"),
    [
        pytest.param(
            GATHER_BYTES, [0.0], False, (PATIENCE_MS, GATHER_US), id="a buffer for all that may come"
        ),
        pytest.param(GATHER_BYTES - 1, [0.0], False, (PATIENCE_MS, 0), id="a buffer that could overflow"),
        pytest.param(GATHER_BYTES, [0.0], True, (LAST_MS, 0), id="the table is being read"),
        pytest.param(LONG_GATHER_BYTES, [1.0], True, (LAST_MS, 0), id="it is being read, for a patient sink"),
        pytest.param(LONG_GATHER_BYTES, [1.0, 0.1], False, (PATIENCE_MS, LONG_GATHER_US), id="patient sinks"),
        pytest.param(LONG_GATHER_BYTES, [1.0, 0.0], False, (PATIENCE_MS, GATHER_US), id="one that is not"),
        pytest.param(LONG_GATHER_BYTES - 1, [1.0], False, (PATIENCE_MS, GATHER_US), id="too little room"),
    ],
)
def test_the_reader_sleeps_only_when_nothing_can_be_lost_by_it_and_nobody_waits(
    size: int, waits: list[float], is_reading: bool, asked: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    pipeline = make_pipeline(ENGINES[0])
    pipeline.outboxes = tuple(
        cast(Outbox, SimpleNamespace(batch_wait=wait, state=None, has_room=lambda _: True)) for wait in waits
    )

    def receive(_: int, patience_ms: int, gather_us: int) -> tuple[int, ...]:
        seen.append((patience_ms, gather_us))
        pipeline.stop()
        return (0, 0, 0, 0, size, 0)

    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    events = SimpleNamespace(fileno=one.fileno, measure=lambda: Fill(0, size, 0), leave=lambda _: None)
    monkeypatch.setattr(pipeline.readers[0], "batch", SimpleNamespace(receive=receive))
    if is_reading:
        pipeline.resync = cast(
            Resync,
            SimpleNamespace(is_reading=True, is_over=False, is_settled=lambda _: True, step=lambda: b""),
        )
    with one, other:
        pipeline.readers[0].listen(cast(EventSocket, events))

    # The last one is after the groups were left: what had come is read, and nothing waited for.
    assert seen == [asked, (LAST_MS, 0)]


# -- what becomes of a batch


def test_sinks_get_an_event_in_their_forms(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sinks: tuple[Sink, ...] = (JournalSink(), StreamSink(None))
    outboxes: list[Any] = [Outbox(sink, queue=10, stats=SinkStats()) for sink in sinks]
    outboxes.append(Gathering(template=loki.TEMPLATE))
    seen: list[Rendered] = []
    for outbox in outboxes:
        monkeypatch.setattr(outbox, "put", lambda rendered, **_: seen.append(rendered))
        monkeypatch.setattr(outbox, "flush", lambda _, **__: True)
    flow, stats = make_flow(7), Stats()
    replay(make_pipeline(engine, outboxes, stats=stats), [flow])

    assert seen == [render(template, [flow]) for template in (journal.TEMPLATE, json.TEMPLATE, loki.TEMPLATE)]
    assert stats.events_accepted_total == 1


def test_what_an_outbox_has_no_room_for_is_dropped_there_and_nowhere_else(engine: Engine) -> None:
    flows = make_flows(5)
    outboxes = [Gathering(5), Gathering(2), Gathering(0)]
    replay(make_pipeline(engine, outboxes), flows)

    assert [outbox.given for outbox in outboxes] == [
        [render(json.TEMPLATE, flows)],
        [render(json.TEMPLATE, flows[:2])],
        [],
    ]
    last = flows[-1].time
    assert [outbox.dropped for outbox in outboxes] == [
        [],
        [(3, flows[2].time, last)],
        [(5, flows[0].time, last)],
    ]


def test_what_the_rules_drop_is_rendered_for_nobody_and_counted(engine: Engine) -> None:
    outbox, stats = Gathering(), Stats()
    pipeline = make_pipeline(engine, [outbox], parse("drop source address 10.0.0.1"), stats=stats)
    replay(pipeline, make_flows(3))
    replay(pipeline, [make_flow(1)])

    assert outbox.given == [render(json.TEMPLATE, [make_flow(0), make_flow(2)])]
    assert (stats.events_received_total, stats.events_accepted_total, stats.events_filtered_total) == (
        4,
        2,
        2,
    )
    assert pipeline.tables[0].filter.counts == [2, 2]


@pytest.mark.parametrize(
    ("rules", "asked"),
    [
        pytest.param([], {0, 1, 2}, id="all"),
        pytest.param(["drop source address 10.0.0.1"], {0, 2}, id="only of those that are kept"),
        pytest.param(["drop source address 10.0.0.1", "drop country FR"], {0, 1, 2}, id="rules ask for it"),
    ],
)
def test_an_address_is_looked_up_once_and_only_when_somebody_wants_it(
    engine: Engine, rules: list[str], asked: set[int]
) -> None:
    flows, outbox = make_flows(3), Gathering()
    databases = Databases({flows[0].dst: BERLIN})
    pipeline = make_pipeline(engine, [outbox], parse(*rules), geoip=databases)
    replay(pipeline, flows)
    replay(pipeline, flows)

    assert sorted(databases.asked) == sorted({flows[0].dst, *(flows[number].src for number in asked)})
    assert all(b'"city":"Berlin"' in given.text for given in outbox.given)


# -- several readers


def test_one_reader_that_stands_still_is_noticed_and_the_others_do_not_hide_it(engine: Engine) -> None:
    pipeline = Pipeline(engine, [engine.compile_table(()) for _ in range(3)], None, [], Tails(), Stats())
    seen = []
    for moving in ((0, 1, 2), (0, 2), (0, 2), (1,), (), (0, 1), (2,)):
        for number in moving:
            pipeline.readers[number].turns += 1
        seen.append(pipeline.has_moved())

    # Those that turn at different times are all alive: each has since the last sign of life.
    assert seen == [True, False, False, True, False, False, True]


def test_a_table_is_not_decided_before_each_reader_has_read_what_may_concern_its_flows(
    engine: Engine,
) -> None:
    pipeline = Pipeline(engine, [engine.compile_table(())] * 2, None, [], Tails(), Stats())
    steps: list[bool] = []

    def step() -> bytes:
        steps.append(pipeline.lock.locked())
        return b""

    resync = SimpleNamespace(
        is_reading=True, is_over=False, is_settled=lambda emptied_at: emptied_at >= 10.0, step=step
    )
    for emptied in ((9.0, 9.0), (11.0, 9.0), (9.0, 11.0), (10.0, 10.0)):
        for reader, moment in zip(pipeline.readers, emptied, strict=True):
            reader.emptied_at = moment
        pipeline.readers[0]._read_table(cast(Resync, resync))

    assert steps == [True]  # the last one, and nobody hands anything on meanwhile


def test_of_another_socket_than_its_own_a_reader_does_not_say_that_it_is_emptied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come to its own one meanwhile is still there."""
    reader = make_pipeline(engine).readers[0]
    batch = SimpleNamespace(receive=lambda *_: (0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(reader, "batch", batch)
    events = cast(EventSocket, SimpleNamespace(fileno=lambda: -1))
    drained = list(reader.drain(events, ReportedDrops()))
    before = reader.emptied_at
    reader._turn(events, 0, 0)

    assert (drained, before) == ([], -math.inf)
    assert reader.emptied_at > before


def test_a_loss_begins_earlier_for_the_sinks_of_which_that_is_known() -> None:
    found: list[tuple[str, int]] = []
    outboxes = [
        SimpleNamespace(name=name, report=lambda lost, name=name: found.append((name, lost.since)))
        for name in ("a", "b", "c")
    ]
    pipeline = make_pipeline(ENGINES[0], outboxes)
    pipeline.report_lost(Lost(ABSENT, 5, 9, "daemon"), {"b": 3, "c": 7, "gone": 1})

    assert found == [("a", 5), ("b", 3), ("c", 5)]


# -- records


TALK = [
    *(make_flow(number, EventType.NEW, time=BASE + number) for number in (1, 2, 3)),
    make_flow(1, EventType.UPDATE, time=BASE + 4),
    *(make_flow(number, EventType.DESTROY, time=BASE + number * 10**9) for number in (1, 2)),
]


def list_records(outbox: Gathering) -> list[tuple[str, int, int]]:
    """Type, flow, and in what nanosecond of a second it was seen first, 0 for none."""
    lines = b"".join(part.text for part in outbox.given).splitlines()
    records = [loads(line) for line in lines]
    fractions = [record.get("first_seen", f".{0:09}").partition(".")[2][:9] for record in records]
    return [
        (record["type"], record["flow"], int(fraction))
        for record, fraction in zip(records, fractions, strict=True)
    ]


@pytest.mark.parametrize("remembered", [0, 10])
def test_flows_are_written_when_they_end_and_nothing_else(engine: Engine, remembered: int) -> None:
    outbox, stats = Gathering(), Stats()
    pipeline = make_pipeline(engine, [outbox], stats=stats, events=EventType.DESTROY)
    set_records(pipeline, Records(of_events=False, of_flows=True, remembered=remembered))
    replay(pipeline, TALK)

    assert list_records(outbox) == [("FLOW", flow, flow if remembered else 0) for flow in (1, 2)]
    assert_sums_hold(stats, taken=2)
    assert (stats.events_filtered_total, stats.flows_total, stats.events_destroy_total) == (4, 2, 0)


def test_both_are_written_each_flow_behind_its_destroy(engine: Engine) -> None:
    outbox, stats = Gathering(), Stats()
    pipeline = make_pipeline(engine, [outbox], parse("drop source address 10.0.0.2"), stats=stats)
    set_records(pipeline, Records(of_flows=True, remembered=10))
    replay(pipeline, TALK)

    events = [("NEW", 1, 0), ("NEW", 3, 0), ("UPDATE", 1, 0), ("DESTROY", 1, 1)]
    assert list_records(outbox) == [*events, ("FLOW", 1, 1)]
    assert_sums_hold(stats, taken=5)
    assert (stats.events_accepted_total, stats.flows_total) == (4, 1)


@pytest.mark.parametrize(("time", "is_timed"), [(BASE, True), (RECEIVED_NS, False)])
def test_an_outbox_learns_whether_the_kernel_gives_the_time(
    engine: Engine, time: int, is_timed: bool
) -> None:
    outbox = Gathering()

    replay(make_pipeline(engine, [outbox]), [make_flow(1, EventType.NEW, time=time)])

    assert outbox.is_timed is is_timed


class Filling(Gathering):
    """Its room does not come back."""

    def put(self, rendered: Rendered, *, is_timed: bool = False) -> None:
        super().put(rendered, is_timed=is_timed)
        self.room -= rendered.events


def test_what_an_outbox_has_no_room_for_is_counted_of_both_kinds(engine: Engine) -> None:
    outbox, stats = Filling(5), Stats()
    pipeline = make_pipeline(engine, [outbox], stats=stats)
    set_records(pipeline, Records(of_flows=True))
    replay(pipeline, TALK)

    first, second = BASE + 10**9, BASE + 2 * 10**9
    assert outbox.dropped == [(1, second, second), (2, first, second)]
    assert_sums_hold(stats, taken=5 + 3)


def assert_sums_hold(stats: Stats, taken: int) -> None:
    """As stats.py says, for an outbox that has taken so many records, those among them that it dropped."""
    assert stats.events_received_total == (
        stats.events_malformed_total + stats.events_filtered_total + stats.events_accepted_total
    )
    events = stats.events_new_total + stats.events_update_total + stats.events_destroy_total
    assert taken == events + stats.events_snapshot_total + stats.flows_total


def test_flows_that_did_not_fit_are_counted_and_written_without_their_beginning(engine: Engine) -> None:
    outbox, stats = Gathering(), Stats()
    pipeline = make_pipeline(engine, [outbox], stats=stats, events=EventType.DESTROY)
    set_records(pipeline, Records(of_events=False, of_flows=True, remembered=1))
    replay(pipeline, TALK)

    assert list_records(outbox) == [("FLOW", 1, 0), ("FLOW", 2, 0)]
    assert stats.flows_forgotten_total == 2


def test_what_is_remembered_outlives_a_change_of_the_rules(engine: Engine) -> None:
    outbox = Gathering()
    pipeline = make_pipeline(engine, [outbox], parse("drop type NEW,UPDATE"))
    set_records(pipeline, Records(of_events=False, of_flows=True, remembered=10))
    replay(pipeline, TALK[:4])
    changed = [engine.compile_table(parse("drop source address 10.0.0.2"))]
    pipeline.set_tables(changed, {}, Records(of_events=False, of_flows=True, remembered=10))
    replay(pipeline, TALK[4:])

    assert list_records(outbox) == [("FLOW", 1, 1)]


def test_the_community_id_comes_and_goes_with_its_setting(engine: Engine) -> None:
    outbox = Gathering()
    pipeline = make_pipeline(engine, [outbox])
    own, other = {outbox.name: 1}, {"loki": 1}
    for seed, asked in ((None, {}), (0, {}), (1, {}), (None, {}), (None, own), (None, other)):
        pipeline.community_seeds = (seed, asked)
        replay(pipeline, make_flows(1))

    found = [part.text.partition(b'"community_id":"1:')[2] for part in outbox.given]
    assert [bool(text) for text in found] == [False, True, True, False, True, False]
    assert found[1] != found[2] == found[4]
