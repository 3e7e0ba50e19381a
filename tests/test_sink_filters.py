"""A filter for each sink: who gets which events, in both engines; and the sums hold."""

import asyncio
import json as parser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from conntrackd.active_filter import CoreFilter, Filter, compile_sink_filters, list_sink_tables, read_filter
from conntrackd.config.read import read_config
from conntrackd.control import DaemonControl
from conntrackd.daemon import Daemon, Sources
from conntrackd.delivery.outbox import Outbox
from conntrackd.engine import INDEX_BYTES, Engine
from conntrackd.errors import ManyErrors
from conntrackd.filter.ast import Rule
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.sets import NO_SETS
from conntrackd.flow import EventType, Flow, Location, Lost
from conntrackd.pipeline import Pipeline
from conntrackd.records import Records
from conntrackd.render import json
from conntrackd.render.rendered import Rendered
from conntrackd.sink_filters import list_warnings
from conntrackd.source.resync import Resync
from conntrackd.tails import Tails
from tests.engine.feed import ENGINES, RECEIVED_NS, set_records
from tests.engine.rendering import Databases
from tests.filter import strategies
from tests.filter.rows import parse
from tests.messages import build_message
from tests.sinks.flows import make_flow, make_flows
from tests.test_pipeline import make_pipeline

SINKS = ("stream", "syslog", "loki")


class Gathering:
    """In the place of a sink's outbox: notes the ids of the flows that it is given, as far as it has room."""

    template = json.TEMPLATE
    batch_wait = 0.0

    def __init__(self, name: str, room: int = 1000) -> None:
        self.name = name
        self.room = room
        self.flows: list[int] = []
        self.types: list[str] = []
        self.rates: list[int] = []
        self.dropped: list[tuple[int, int, int]] = []
        self.left_out = 0
        self.losses: list[Lost] = []

    def get_room(self) -> int:
        return self.room

    def put(self, rendered: Rendered, **_: object) -> None:
        records = [parser.loads(line) for line in rendered.text.splitlines()]
        self.flows += [record["flow"] for record in records]
        self.types += [record["type"] for record in records]
        self.rates += [record.get("sample_rate", 0) for record in records]

    def drop(self, count: int, since: int, until: int) -> None:
        self.dropped.append((count, since, until))

    def leave_out(self, count: int) -> None:
        self.left_out += count

    def report(self, lost: Lost) -> None:
        self.losses.append(lost)


def process(pipeline: Pipeline, flows: Sequence[Flow]) -> None:
    """As one batch."""
    reader = pipeline.readers[0]
    messages = b"".join(map(build_message, flows))
    _, count, malformed = reader.batch.load(messages, 0, RECEIVED_NS)
    reader.process(reader.batch, count, 0, malformed)


def get_rate(rules: Sequence[Rule], flow: Flow) -> int:
    """The N of the sample that the flow is in by these rules, 0 for none."""
    number = evaluate(rules, flow).rule_number
    return rules[number - 1].sample if number else 0


addresses = st.sampled_from([*strategies.ADDRESSES[4], *strategies.ADDRESSES[6]])
known_places = st.dictionaries(addresses, strategies.locations, max_size=12)
batches = st.lists(strategies.flows(located=False), min_size=1, max_size=8)
rooms = st.sampled_from((0, 1, 3, 1000))


@settings(max_examples=70)
@given(
    strategies.rules,
    st.fixed_dictionaries(dict.fromkeys(SINKS, strategies.rules)),
    st.fixed_dictionaries(dict.fromkeys(SINKS, rooms)),
    batches,
    known_places,
)
def test_each_sink_gets_what_the_global_rules_and_its_own_keep(
    engine: Engine,
    rules: list[Rule],
    own: dict[str, list[Rule]],
    room: dict[str, int],
    batch: list[Flow],
    known: dict[bytes, Location],
) -> None:
    flows = [replace(flow, id=number) for number, flow in enumerate(batch)]
    located = [
        replace(flow, src_location=known.get(flow.src), dst_location=known.get(flow.dst)) for flow in flows
    ]
    kept = [flow for flow in located if evaluate(rules, flow).keep]
    outboxes = [Gathering(name, room[name]) for name in SINKS]
    pipeline = make_pipeline(engine, outboxes, rules, own, geoip=Databases(known))

    process(pipeline, flows)

    assert pipeline.stats.events_accepted_total == len(kept)
    for outbox in outboxes:
        decisions = [evaluate(own[outbox.name], flow) for flow in kept]
        wanted = [flow.id for flow, decision in zip(kept, decisions, strict=True) if decision.keep]
        assert outbox.flows == wanted[: outbox.room]
        assert (
            outbox.rates
            == [
                max(get_rate(rules, flow), get_rate(own[outbox.name], flow))
                for flow in kept
                if flow.id in wanted
            ][: outbox.room]
        )
        assert outbox.left_out == len(kept) - len(wanted)
        assert sum(count for count, *_ in outbox.dropped) == len(wanted) - len(outbox.flows)
        if own[outbox.name]:
            counts = [0] * (len(own[outbox.name]) + 1)
            for decision in decisions:
                counts[decision.rule_number] += 1
            assert pipeline.tables[0].sinks[outbox.name].counts == counts


def test_what_has_no_room_is_reported_with_the_times_of_what_the_sink_would_have_got(engine: Engine) -> None:
    flows = [replace(flow, id=number) for number, flow in enumerate(make_flows(6))]
    outbox = Gathering("loki", room=1)
    own = {"loki": parse("drop source address 10.0.0.0,10.0.0.2,10.0.0.5")}

    process(make_pipeline(engine, [outbox], own=own), flows)

    assert (outbox.flows, outbox.left_out) == ([1], 3)
    assert outbox.dropped == [(2, flows[3].time, flows[4].time)]


def test_a_sink_without_rules_is_given_the_very_selection_of_all(engine: Engine) -> None:
    """It costs nothing more: no table, no decision."""
    outboxes = [Gathering("loki"), Gathering("journal")]
    pipeline = make_pipeline(engine, outboxes, own={"loki": parse("drop any"), "journal": []})
    reader = pipeline.readers[0]
    reader.batch.load(build_message(make_flow(1)), 0, RECEIVED_NS)
    tables = reader._take_tables()
    kept = engine.decide(reader.batch, tables.filter, None, None)

    filtered, whole = reader._divide(reader.batch, tables, kept)

    assert list(pipeline.tables[0].sinks) == ["loki"]
    assert (filtered[1], whole[1] is kept) == (b"", True)


def test_a_loss_is_reported_to_every_sink_whatever_its_filter(engine: Engine) -> None:
    outboxes = [Gathering(name) for name in SINKS]
    pipeline = make_pipeline(engine, outboxes, own={name: parse("drop any") for name in SINKS})
    lost = Lost(3, 1, 2, "kernel", "")

    pipeline.report_lost(lost)

    assert [outbox.losses for outbox in outboxes] == [[lost]] * 3


def test_tails_see_what_the_global_filter_keeps(engine: Engine) -> None:
    pipeline = make_pipeline(engine, [Gathering("loki")], own={"loki": parse("drop any")})
    seen: list[int] = []
    wanting = SimpleNamespace(rules=[engine.compile_table(parse("log any"))])
    pipeline.tails = cast(
        Tails,
        SimpleNamespace(
            wanting=(wanting,), template=json.TEMPLATE, put=lambda _, part: seen.append(part.events)
        ),
    )

    process(pipeline, make_flows(4))

    assert seen == [4]


def test_flows_of_the_table_are_for_a_sink_that_takes_new_ones(engine: Engine) -> None:
    outboxes = [Gathering("stream"), Gathering("loki")]
    own = {"stream": parse("log type NEW", "drop any"), "loki": parse("drop type NEW")}
    pipeline = make_pipeline(engine, outboxes, own=own)
    batch = engine.open_batch()
    batch.load(b"".join(map(build_message, make_flows(3))), 0, RECEIVED_NS)
    resync = SimpleNamespace(batch=batch, note_reported=lambda *_: None)
    every = engine.decide(batch, engine.compile_table(()), None, None)

    pipeline.readers[0]._report_flows(cast(Resync, resync), every)

    assert len(every) == 3 * INDEX_BYTES
    assert [outbox.types for outbox in outboxes] == [["SNAPSHOT"] * 3, []]
    assert (pipeline.stats.events_snapshot_total, outboxes[1].left_out) == (3, 3)


def test_flows_of_the_table_are_located_by_databases_that_came_when_no_event_did(engine: Engine) -> None:
    outbox, flow = Gathering("stream"), make_flow(0)
    pipeline = make_pipeline(engine, [outbox], parse("log source country DE", "drop any"))
    pipeline.set_geoip(cast(Any, Databases({flow.src: Location(country_code="DE")})))
    batch = engine.open_batch()
    batch.load(build_message(flow), 0, RECEIVED_NS)
    resync = SimpleNamespace(batch=batch, note_reported=lambda *_: None)

    pipeline.readers[0]._report_flows(cast(Resync, resync), batch.of_types(None, EventType.NEW))

    assert outbox.types == ["SNAPSHOT"]


def test_flows_of_the_table_are_for_a_tail_that_wants_new_ones(engine: Engine) -> None:
    pipeline = make_pipeline(engine, [Gathering("stream")])
    shown: list[str] = []
    wanting = tuple(
        SimpleNamespace(rules=[engine.compile_table(parse(*rules))])
        for rules in (["log type NEW", "drop any"], ["drop type NEW"])
    )
    pipeline.tails = cast(
        Tails,
        SimpleNamespace(
            wanting=wanting,
            template=json.TEMPLATE,
            put=lambda tail, part: shown.append(f"{wanting.index(tail)} {part.text.decode()}"),
        ),
    )
    batch = engine.open_batch()
    batch.load(build_message(make_flow(0)), 0, RECEIVED_NS)
    resync = SimpleNamespace(batch=batch, note_reported=lambda *_: None)

    pipeline.readers[0]._report_flows(cast(Resync, resync), batch.of_types(None, EventType.NEW))

    assert [(line[0], '"type":"SNAPSHOT"' in line) for line in shown] == [("0", True)]


@pytest.mark.parametrize("of_events", [False, True])
def test_a_flow_is_for_a_sink_that_takes_its_end(engine: Engine, of_events: bool) -> None:
    outboxes = [Gathering("stream"), Gathering("loki")]
    own = {"stream": parse("log type DESTROY", "drop any"), "loki": parse("drop type DESTROY")}
    pipeline = make_pipeline(engine, outboxes, own=own)
    set_records(pipeline, Records(of_events=of_events, of_flows=True))

    process(pipeline, [replace(flow, type=int(EventType.DESTROY)) for flow in make_flows(2)])

    ends = ["DESTROY"] * 2 if of_events else []
    assert [outbox.types for outbox in outboxes] == [[*ends, "FLOW", "FLOW"], []]
    assert outboxes[1].left_out == (4 if of_events else 2)


def test_a_change_in_the_middle_of_a_batch_is_for_the_next_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The global rules drop what the sink's new rules keep: with some of each there would be events in it."""
    outbox = Gathering("loki")
    pipeline = make_pipeline(engine, [outbox], own={"loki": parse("drop any")})
    decide = engine.decide
    changed: list[bool] = []

    def change_and_decide(*arguments: Any, **named: Any) -> bytes:
        if not changed:
            changed.append(True)
            closed = [engine.compile_table(parse("drop any"))]
            pipeline.set_tables(closed, {"loki": [engine.compile_table(parse("log any"))]})
        return decide(*arguments, **named)

    monkeypatch.setattr(engine, "decide", change_and_decide)
    process(pipeline, make_flows(4))
    process(pipeline, make_flows(4))

    assert (changed, outbox.flows, outbox.left_out) == ([True], [], 4)
    assert pipeline.stats.events_filtered_total == 4


def test_a_sink_that_comes_in_the_middle_of_a_batch_gets_nothing_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules are in force before it is there, but not for a batch that has begun."""
    outbox = Gathering("loki")
    pipeline = make_pipeline(engine, [])
    decide = engine.decide

    def come_and_decide(*arguments: Any, **named: Any) -> bytes:
        if not pipeline.outboxes:
            everything = [engine.compile_table(parse("log any"))]
            pipeline.set_tables(everything, {"loki": [engine.compile_table(parse("drop any"))]})
            pipeline.outboxes = cast(tuple[Outbox, ...], (outbox,))
        return decide(*arguments, **named)

    monkeypatch.setattr(engine, "decide", come_and_decide)
    process(pipeline, make_flows(4))
    process(pipeline, make_flows(4))

    assert (outbox.flows, outbox.left_out) == ([], 4)


# -- from the settings


def test_the_rules_of_each_enabled_sink_are_compiled_for_each_reader() -> None:
    environ = {
        "CONNTRACKD_SINK_LOKI_ENABLE": "yes",
        "CONNTRACKD_SINK_LOKI_FILTER": "LOG type new\ndeny any",
        "CONNTRACKD_SINK_JOURNAL_ENABLE": "yes",
        "CONNTRACKD_SINK_SYSLOG_FILTER": "log nonsense",  # of a sink that is not enabled
    }
    config = read_config({}, environ)

    found = compile_sink_filters(config, config, ENGINES[0], 3, NO_SETS)

    assert {name: own.rules for name, own in found.items()} == {
        "journal": (),
        "loki": ("log type NEW", "drop any"),
    }
    assert {name: len(tables) for name, tables in list_sink_tables(found).items()} == {"loki": 3}


def test_all_mistakes_in_all_filters_are_reported_with_file_and_line() -> None:
    config = read_config(
        {"sink.stream.enable": ["yes"], "sink.stream.filter": ["log prot TCP"]},
        {"CONNTRACKD_SINK_LOKI_ENABLE": "yes", "CONNTRACKD_SINK_LOKI_FILTER": "log any\nlog protocol TPC"},
    )

    with pytest.raises(ManyErrors) as caught:
        compile_sink_filters(config, config, ENGINES[0], 1, NO_SETS)

    assert [error.origin for error in caught.value.errors] == [
        "--sink.stream.filter",
        "CONNTRACKD_SINK_LOKI_FILTER",
    ]


def test_a_rule_in_vain_is_a_warning_in_a_sinks_filter_too() -> None:
    config = read_config(
        {"sink.stream.enable": ["yes"], "sink.stream.filter": ["drop any", "log port 1"]}, {}
    )

    own = compile_sink_filters(config, config, ENGINES[0], 1, NO_SETS)
    warning, nothing = list_warnings(read_filter(config, ENGINES[0], NO_SETS), own, None)

    assert "log port 1" in warning
    assert nothing.startswith("sink stream: the filter logs no event\nhint: put a rule that logs before")


def test_the_names_of_countries_in_every_filter_are_compared_with_the_databases(
    mocker: MockerFixture,
) -> None:
    settings = {"filter": "log country Gremany", "sink.stream.filter": "log country Frence"}
    given = {key: [text] for key, text in {**settings, "sink.stream.enable": "yes"}.items()}
    config = read_config({**given, "geoip.database": ["a.mmdb"]}, {})
    own = compile_sink_filters(config, config, ENGINES[0], 1, NO_SETS)
    geoip = mocker.Mock(countries={"Germany", "France"})

    found = list_warnings(read_filter(config, ENGINES[0], NO_SETS), own, geoip)

    assert [warning.splitlines()[0] for warning in found] == [
        "--filter: no database has a country 'gremany'",
        "sink stream: --sink.stream.filter: no database has a country 'frence'",
    ]


def test_a_sink_that_a_reload_removes_keeps_its_filter_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would get everything, in the moment between the change of the filters and that of the sinks."""
    stream = "sink.stream: {enable: true, writer: discard}\n"
    path = tmp_path / "conntrackd.yaml"
    path.write_text(f"{stream}sink.journal: {{enable: true, filter: [drop any]}}\n")
    daemon = Daemon(Sources(environ={"CONNTRACKD_BUS_ENABLE": "no"}, etc=tmp_path))
    change, seen = daemon.set_filter, list[tuple[list[str], list[str]]]()

    def change_and_look(new: Filter, sinks: Mapping[str, CoreFilter], sets: object) -> None:
        change(new, sinks, sets)
        names = [outbox.name for outbox in daemon.pipeline.outboxes]
        seen.append((names, list(daemon.pipeline.tables[0].sinks)))

    monkeypatch.setattr(daemon, "set_filter", change_and_look)
    for outbox in daemon.outboxes.values():
        outbox.start()
    path.write_text(stream)
    asyncio.run(DaemonControl(daemon).reload())
    for outbox in daemon.outboxes.values():
        outbox.stop(0.0)

    assert seen == [(["stream", "journal"], ["journal"])]
    assert daemon.pipeline.tables[0].sinks == {}  # which would keep events from being relayed
    assert (
        [outbox.name for outbox in daemon.pipeline.outboxes]
        == list(daemon.sink_filters.in_force)
        == ["stream"]
    )
