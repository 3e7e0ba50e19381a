"""When events go past Python, and what is counted of them then."""

import json as parser
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import Sink, SinkState
from conntrackd.engine import SLOTS, Engine, Relayed
from conntrackd.flow import ALL_EVENTS, EventType, Location
from conntrackd.netlink.socket import EventSocket, Fill
from conntrackd.pipeline import Pipeline
from conntrackd.reader import GATHER_BYTES
from conntrackd.records import Records
from conntrackd.relay import can_relay
from conntrackd.render import journal, json, loki
from conntrackd.render.anonymize import Anonymizer
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template
from conntrackd.sinks.journal import JournalSink
from conntrackd.sinks.stream import StreamSink
from conntrackd.stats import SinkStats, Stats
from conntrackd.tails import Tails
from tests.delivery.fakes import compute_imbalance, make_lost
from tests.disk import file_limit
from tests.engine.feed import ENGINES, QUEUE, pair, set_records
from tests.engine.rendering import Databases
from tests.filter.rows import parse
from tests.messages import build_message
from tests.rendering import render
from tests.sinks.flows import make_flows
from tests.sinks.syslog_servers import wait_until
from tests.sinks.test_syslog import make as make_syslog

CORE = ENGINES[0]
SECONDS = 20.0
STEP = 50


def make_pipeline(*outboxes: object, rules: Sequence[str] = ("log any",), readers: int = 1) -> Pipeline:
    tables = [CORE.compile_table(parse(*rules)) for _ in range(readers)]
    return Pipeline(CORE, tables, None, cast(list[Outbox], outboxes), Tails(), Stats())


def make_outbox(template: Template = json.TEMPLATE) -> Any:
    return SimpleNamespace(name="stream", template=template)


def may(pipeline: Pipeline) -> bool:
    return can_relay(pipeline, pipeline.tables[0], pipeline.outboxes)


@pytest.mark.parametrize("forms", [(json.TEMPLATE,), (json.TEMPLATE, journal.TEMPLATE, loki.TEMPLATE)])
def test_events_that_ask_for_nothing_else_are_relayed(forms: Sequence[Template]) -> None:
    assert may(make_pipeline(*map(make_outbox, forms)))


def test_records_of_flows_alone_are_relayed() -> None:
    pipeline = make_pipeline(make_outbox())
    set_records(pipeline, Records(of_events=False, of_flows=True))

    assert may(pipeline)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: setattr(p, "guard", object()), id="the guard of a full table"),
        pytest.param(lambda p: setattr(p, "heartbeat", object()), id="heartbeats"),
        pytest.param(lambda p: setattr(p, "resync", object()), id="the table after a loss"),
        pytest.param(lambda p: setattr(p, "flow_metrics", [object()]), id="counted connections"),
        pytest.param(lambda p: setattr(p.tails, "wanting", (object(),)), id="a tail"),
        pytest.param(lambda p: setattr(p, "outboxes", ()), id="no sink"),
        pytest.param(lambda p: setattr(p, "outboxes", 9 * p.outboxes), id="more sinks than the core takes"),
        pytest.param(lambda p: set_records(p, Records(of_flows=True)), id="both events and flows"),
        pytest.param(
            lambda p: p.set_tables([p.tables[0].filter], {"stream": [p.tables[0].filter]}),
            id="a sink's own filter",
        ),
        pytest.param(
            lambda p: setattr(p.outboxes[0], "template", json.TEMPLATE.anonymize(Anonymizer(ipv4_bits=8))),
            id="other addresses",
        ),
    ],
)
def test_whatever_else_events_ask_for_is_asked(change: Callable[[Pipeline], None]) -> None:
    pipeline = make_pipeline(make_outbox())
    change(pipeline)

    assert not may(pipeline)


def make_events(receiving: socket.socket) -> EventSocket:
    events = SimpleNamespace(
        fileno=receiving.fileno, measure=lambda: Fill(0, GATHER_BYTES, 0), leave=lambda _: None
    )
    return cast(EventSocket, events)


class Rig:
    """A pipeline with sinks that reads from a socket, or several, each in a thread of its own."""

    def __init__(
        self,
        one: socket.socket,
        other: socket.socket,
        sink: Sink,
        rules: Sequence[str],
        *others: Sink,
        more: Sequence[tuple[socket.socket, socket.socket]] = (),
    ) -> None:
        pairs = ((one, other), *more)
        self.sending = [sending for _, sending in pairs]
        self.outboxes = [
            Outbox(
                sink, queue=10_000, stats=SinkStats(), backoff=Backoff(0.01, 0.01), writer=CORE.open_writer()
            )
            for sink in (sink, *others)
        ]
        self.outbox = self.outboxes[0]
        self.pipeline = make_pipeline(*self.outboxes, rules=rules, readers=len(pairs))
        self.threads = [
            threading.Thread(target=reader.listen, args=(make_events(receiving),))
            for reader, (receiving, _) in zip(self.pipeline.readers, pairs, strict=True)
        ]
        for outbox in self.outboxes:
            outbox.start()
        wait_until(lambda: all(outbox.state is SinkState.OK for outbox in self.outboxes), "the sinks to open")
        for thread in self.threads:
            thread.start()

    def send(self, count: int, first: int = 0) -> None:
        for flow in make_flows(count, first):
            self.sending[flow.id % len(self.sending)].send(build_message(flow))

    def send_slowly(self, count: int, step: int = STEP, before: int = 0) -> None:
        """Never so many that the slots are full, or what is written to is. `before`: events sent already."""
        for first in range(0, count, step):
            self.send(step, first)
            self.wait_for(before + first + step)

    def wait_for(self, events: int) -> None:
        wait_until(lambda: self.is_read(events), "all events")

    def is_read(self, events: int) -> bool:
        return self.pipeline.stats.events_received_total == events

    def run(self, count: int, pipe: tuple[int, int], times: int = 1) -> bytes:
        """Send so many, perhaps again, and stop; what has come through the pipe."""
        text: list[bytes] = []
        reader = threading.Thread(target=lambda: text.extend(iter(lambda: os.read(pipe[0], 1 << 16), b"")))
        reader.start()
        for number in range(times):
            self.send_slowly(count, before=number * count)
        self.stop()
        os.close(pipe[1])
        reader.join()
        return b"".join(text)

    def stop(self) -> None:
        self.pipeline.stop()
        for thread in self.threads:
            thread.join()
        for outbox in self.outboxes:
            outbox.stop(time.monotonic() + SECONDS)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches each relay had."""
    counts: list[int] = []
    relay = type(CORE).relay

    def note(self: Engine, *arguments: Any) -> Any:
        relayed = relay(self, *arguments)
        counts.append(0 if relayed is None else relayed.batches)
        return relayed

    monkeypatch.setattr(type(CORE), "relay", note)
    return counts


def test_relayed_events_are_written_and_counted_as_all_others_are(
    pipe: tuple[int, int], relays: list[int]
) -> None:
    flows = make_flows(1000)
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(None, pipe[1]), ("drop source address 10.0.0.7", "log any"))
        text = rig.run(len(flows), pipe)
    stats, sink = rig.pipeline.stats, rig.outbox.snapshot()
    written = render(json.TEMPLATE, [flow for flow in flows if flow.id != 7]).text

    assert text == written
    assert sum(relays) > 0
    assert (stats.events_accepted_total, stats.events_filtered_total) == (999, 1)
    assert (stats.events_new_total, dict(rig.pipeline.protocols)) == (999, {6: 999})
    assert (sink.sink_events_taken_total, sink.sink_events_delivered_total) == (999, 999)
    assert (sink.sink_bytes_total, sink.sink_events_queued) == (len(written), 0)
    assert sum(rig.outbox.count_delays().events) == 999


def test_journald_gets_an_entry_for_each_event_without_a_thread_for_it(
    tmp_path: Path, relays: list[int]
) -> None:
    flows, path = make_flows(200), tmp_path / "socket"
    received: list[bytes] = []
    with pair() as (one, other), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(path))
        rig = Rig(one, other, JournalSink(path), ("log any",))
        reader = threading.Thread(
            target=lambda: received.extend(receiver.recv(4096) for _ in range(len(flows)))
        )
        reader.start()
        rig.send_slowly(len(flows), QUEUE // 2)
        reader.join()
        rig.stop()

    assert b"".join(received) == render(journal.TEMPLATE, flows).text
    assert sum(relays) > 0
    assert rig.outbox.snapshot().sink_events_delivered_total == len(flows)


def test_events_are_located_whether_their_addresses_are_new_or_not(
    pipe: tuple[int, int], relays: list[int]
) -> None:
    """Each address is looked up once, and each event decided once."""
    flows = make_flows(500)
    for flow in flows:
        flow.dst_location = Location("Nuremberg", country_code="DE")
    databases = Databases({flow.dst: flow.dst_location for flow in flows})
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(None, pipe[1]), ("drop source address 10.0.0.7", "log any"))
        rig.pipeline.set_geoip(cast(Any, databases))
        text = rig.run(len(flows), pipe, times=2)
    written = [flow for flow in 2 * flows if flow.id != 7]

    assert text == render(json.TEMPLATE, written).text
    assert sum(relays) > 0
    assert len(databases.asked) == len(set(databases.asked)) == len(flows)
    assert rig.pipeline.tables[0].filter.counts == [0, 2, len(written)]


def test_a_syslog_server_that_goes_and_comes_back_gets_each_message_once(relays: list[int]) -> None:
    """By the core, and what nobody was there for by the thread."""
    received: list[bytes] = []
    with pair() as (one, other), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
        first.bind(("127.0.0.1", 0))
        address = first.getsockname()
        rig = Rig(one, other, make_syslog(f"udp://127.0.0.1:{address[1]}"), ("log any",))
        wait_until(lambda: rig.outbox._rests, "the thread to come to rest")  # before it nothing is relayed
        rig.send_slowly(2 * STEP)
        received += [first.recv(4096) for _ in range(2 * STEP)]
        relayed = sum(relays)
        first.close()
        rig.send(STEP, 2 * STEP)
        wait_until(lambda: rig.outbox.snapshot().sink_events_queued == STEP, "all of them to wait")
        away = rig.outbox.snapshot()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
            second.bind(address)
            second.settimeout(SECONDS)
            received += [second.recv(4096) for _ in range(STEP)]
            rig.stop()
    numbers = [re.findall(rb'sequenceId="(\d+)".* flow="(\d+)"', message)[0] for message in received]

    assert relayed > 0
    assert (away.sink_events_delivered_total, away.sink_events_queued) == (2 * STEP, STEP)
    assert numbers == [(b"%d" % (number + 1), b"%d" % number) for number in range(3 * STEP)]
    assert rig.outbox.snapshot().sink_bytes_total == sum(map(len, received))


def test_a_pipe_and_a_file_get_all_events_without_python(
    pipe: tuple[int, int], relays: list[int], tmp_path: Path
) -> None:
    """The one at once, the other from its thread."""
    flows, path = make_flows(1000), tmp_path / "events.json"
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(None, pipe[1]), ("log any",), StreamSink(path))
        text = rig.run(len(flows), pipe)
    snapshots = [outbox.snapshot() for outbox in rig.outboxes]

    assert text == path.read_bytes() == render(json.TEMPLATE, flows).text
    assert sum(relays) > 0
    assert [stats.sink_events_delivered_total for stats in snapshots] == [len(flows)] * 2
    assert [stats.sink_events_queued for stats in snapshots] == [0, 0]


def test_a_file_is_written_without_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what follows silence."""
    flows, path = make_flows(1000), tmp_path / "events.json"
    written: list[int] = []
    write = StreamSink.write

    def note(sink: StreamSink, parts: Sequence[Rendered]) -> int:
        written.append(sum(part.events for part in parts))
        return write(sink, parts)

    monkeypatch.setattr(StreamSink, "write", note)
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(path), ("log any",))
        rig.send_slowly(len(flows))
        wait_until(lambda: rig.outbox.snapshot().sink_events_delivered_total == len(flows), "all of them")
        stats = rig.outbox.snapshot()
        rig.stop()

    assert path.read_bytes() == render(json.TEMPLATE, flows).text
    assert (stats.sink_events_taken_total, stats.sink_events_queued) == (len(flows), 0)
    assert stats.sink_bytes_total == path.stat().st_size
    assert sum(written) < len(flows)


def test_whatever_happens_to_a_file_its_lines_are_whole_and_come_once_in_order(tmp_path: Path) -> None:
    """It is full for a while, is moved and deleted, and losses are reported between its events."""
    path, flows = tmp_path / "events.json", make_flows(40 * STEP)
    texts: list[bytes] = []
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(path), ("log any",))
        for number in range(40):
            match number % 8:
                case 1:
                    rig.outbox.report(make_lost(number))
                case 3:
                    rig.outbox.flush(SECONDS)
                    texts.append(path.read_bytes())
                    path.unlink()
                case 5:
                    rig.outbox.flush(SECONDS)
                    texts.append(path.rename(tmp_path / "moved").read_bytes())
                    rig.outbox.reopen()
                case 7:
                    rig.outbox.flush(SECONDS)  # or the new file might not be there yet
            with file_limit(path.stat().st_size + 700) if number % 8 == 7 else nullcontext():
                rig.send(STEP, number * STEP)
                rig.wait_for((number + 1) * STEP)
        rig.stop()
    lines = [parser.loads(line) for line in b"".join([*texts, path.read_bytes()]).splitlines()]
    losses = [line["lost"] for line in lines if line["type"] == "LOST"]

    assert [line["flow"] for line in lines if line["type"] != "LOST"] == [flow.id for flow in flows]
    assert losses == list(range(1, 40, 8))
    assert rig.outbox.snapshot().sink_events_delivered_total == len(flows)


def test_several_readers_leave_their_events_for_one_file_and_the_sums_hold_meanwhile(
    tmp_path: Path, relays: list[int]
) -> None:
    flows, path = make_flows(2000), tmp_path / "events.json"
    with pair() as (one, other), pair() as second:
        rig = Rig(one, other, StreamSink(path), ("drop source address 10.0.0.7", "log any"), more=[second])
        for first in range(0, len(flows), STEP):
            rig.send(STEP, first)
            end = time.monotonic() + SECONDS
            while not rig.is_read(first + STEP):
                assert time.monotonic() < end
                with rig.pipeline.lock:
                    stats, sink = rig.pipeline.stats, rig.outbox.snapshot()
                    assert sink.sink_events_taken_total == stats.events_accepted_total
                    assert compute_imbalance(sink) == 0
        rig.stop()
    sink = rig.outbox.snapshot()
    written = [parser.loads(line)["flow"] for line in path.read_bytes().splitlines()]

    assert sum(relays) > 0
    for number in range(2):
        assert [flow for flow in written if flow % 2 == number] == [
            flow.id for flow in flows if flow.id % 2 == number and flow.id != 7
        ]
    assert (sink.sink_events_taken_total, sink.sink_events_delivered_total) == (1999, 1999)
    assert sink.sink_bytes_total == path.stat().st_size


def test_what_one_reader_alone_could_write_to_is_not_lent_to_several(
    pipe: tuple[int, int], relays: list[int]
) -> None:
    flows = make_flows(4 * STEP)
    with pair() as (one, other), pair() as second:
        rig = Rig(one, other, StreamSink(None, pipe[1]), ("log any",), more=[second])
        lines = rig.run(len(flows), pipe).splitlines()

    assert sum(relays) == 0
    assert sorted(parser.loads(line)["flow"] for line in lines) == [flow.id for flow in flows]


def test_a_loan_ends_where_another_sink_cannot_wait(pipe: tuple[int, int], tmp_path: Path) -> None:
    """As one that is disabled: events for it are decided one batch at a time."""
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(None, pipe[1]), ("log any",), StreamSink(tmp_path / "events.json"))
        rig.outboxes[1].disable()
        rig.send_slowly(2 * STEP)
        rig.stop()

    assert os.read(pipe[0], 1 << 20) == render(json.TEMPLATE, make_flows(2 * STEP)).text
    assert not rig.outbox._is_lent


def test_what_comes_after_a_change_of_the_rules_is_decided_by_the_new_ones(
    pipe: tuple[int, int], relays: list[int]
) -> None:
    """Though a relay is under way."""
    texts = ("log any", "drop any")
    with pair() as (one, other):
        rig = Rig(one, other, StreamSink(None, pipe[1]), texts[:1])
        rounds, count = 20, 10
        for number in range(rounds):
            rig.pipeline.set_tables([CORE.compile_table(parse(texts[number % 2]))], {})
            rig.send(count, number * count)
            sent = (number + 1) * count
            rig.wait_for(sent)
        rig.stop()
    flows = [flow for flow in make_flows(rounds * count) if flow.id // count % 2 == 0]

    assert os.read(pipe[0], 1 << 20) == render(json.TEMPLATE, flows).text
    assert relays


def test_where_a_relay_has_left_something_in_the_queue_not_all_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last batch that it relayed may have filled the slots."""
    reader = make_pipeline(make_outbox()).readers[0]
    left, found = iter((1280, 0)), []

    def relay(*_: object) -> Relayed:
        return Relayed((0, 0, 0, next(left), 4096, 0), None, 1, SLOTS, 0, 0, 0, 0, 0, 0, (), ())

    monkeypatch.setattr(reader, "_relay", relay)
    for _ in range(2):
        reader._turn(cast(EventSocket, None), 0, 0, relays=True)
        found.append(reader.emptied_at > -math.inf)

    assert found == [False, True]


def test_what_a_relay_has_decided_goes_on_by_the_rules_and_to_the_sinks_of_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is on its way, for who wants to stop one of these."""
    found: list[tuple[list[str], bool]] = []

    def put(rendered: Rendered, **_: object) -> None:
        types = [parser.loads(line)["type"] for line in rendered.text.splitlines()]
        found.append((types, reader.done < reader.begun))

    outbox = SimpleNamespace(name="stream", template=json.TEMPLATE, get_room=lambda: QUEUE, put=put)
    pipeline = make_pipeline(outbox)
    reader = pipeline.readers[0]
    messages = b"".join(build_message(replace(flow, type=EventType.DESTROY)) for flow in make_flows(2))

    def relay(*_: object) -> Relayed:
        reader.batch.load(messages, 0, 1)
        kept = reader.batch.of_types(None, ALL_EVENTS)
        pipeline.outboxes = ()
        set_records(pipeline, Records(of_events=False, of_flows=True))
        return Relayed((2, 0, 0, 0, 4096, 0), kept, 0, 0, 0, 0, 0, 0, 0, 0, (), ())

    monkeypatch.setattr("conntrackd.reader.relay", relay)
    reader._turn(cast(EventSocket, SimpleNamespace(fileno=lambda: -1)), 0, 0, relays=True)

    assert found == [(["DESTROY"] * 2, True)]
    assert reader.done == reader.begun


def test_whatever_changes_what_is_asked_of_events_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline(make_outbox())
    found: list[int] = []
    batch = SimpleNamespace(interrupt=lambda: found.append(pipeline.generation))
    monkeypatch.setattr(pipeline.readers[0], "batch", batch)
    pipeline.set_tables([pipeline.tables[0].filter], {})
    pipeline.set_sets({})
    pipeline.set_geoip(cast(Any, SimpleNamespace(cache=10, generation=0)))

    assert found == [0, 0, 1]
