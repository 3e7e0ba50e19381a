"""What the core relays alone: the same text and numbers as batch by batch, and where it stops."""

import errno
import gc
import json as jsonlib
import os
import select
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from conntrackd.delivery.datagrams import MAX_SEQUENCE
from conntrackd.delivery.loan import Loan, Passed, Way
from conntrackd.engine import MOST_OUTLETS, SLOTS, Link, Outlet, Relayed, Stages
from conntrackd.engine.native import NativeEngine
from conntrackd.engine.plain import PlainEngine
from conntrackd.flow import EventType, Flow, Location
from conntrackd.render import journal, json, loki
from conntrackd.render.rendered import join
from tests.core.test_binding import call_until_refused
from tests.engine.feed import ALL, ENGINE, FORM, PATIENCE_MS, ROOM, SECONDS, Feed, pair
from tests.engine.rendering import Databases
from tests.filter.rows import parse
from tests.messages import build_message
from tests.rendering import render
from tests.sinks.flows import make_flow, make_flows

KEEP = Loan(Way.KEEP)
EVENT_TIME_BYTES = 12  # the last attribute
FEW_SLOTS = 4


@pytest.fixture
def feed() -> Iterator[Feed]:
    with pair() as (one, other):
        yield Feed(SLOTS, one, other)


@pytest.fixture
def narrow() -> Iterator[Feed]:
    with pair() as (one, other):
        yield Feed(FEW_SLOTS, one, other)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


def write_all(flows: Sequence[Flow]) -> bytes:
    return render(json.TEMPLATE, flows).text


@pytest.mark.parametrize("way", [Way.WRITE, Way.NOWAIT])
def test_what_comes_is_written_as_it_would_be_batch_by_batch(
    feed: Feed, pipe: tuple[int, int], way: Way
) -> None:
    flows = make_flows(200)
    table = ENGINE.compile_table(parse("drop source address 10.0.0.7", "log any"))
    sender = threading.Thread(target=feed.send, args=(flows,))
    sender.start()
    text = b""
    found: list[Relayed] = []
    while sum(relayed.datagrams for relayed in found) < len(flows):
        found.append(feed.relay(Loan(way, pipe[1]), table))
        with suppress(BlockingIOError):
            text += os.read(pipe[0], 1 << 20)
    sender.join()
    kept = [flow for flow in flows if flow.id != 7]
    written = [written for relayed in found for written in relayed.passed[0].written]

    assert text == write_all(kept)
    assert sum(relayed.filtered for relayed in found) == 1
    assert sum(relayed.tally[0][2] for relayed in found if relayed.tally) == len(kept)
    assert sum(one.events for one in written) == len(kept)
    assert sum(one.bytes for one in written) == len(text)
    assert table.counts == [0, 1, len(kept)]
    assert not any(relayed.passed[0].rest.events or relayed.passed[0].torn for relayed in found)


def test_each_write_has_the_time_of_its_first_event_and_its_own(feed: Feed, pipe: tuple[int, int]) -> None:
    feed.send(make_flows(3, 5))
    (written,) = feed.relay(Loan(Way.WRITE, pipe[1])).passed[0].written

    assert written.time == make_flow(5).time
    assert written.done == pytest.approx(feed.batch.received_ns, abs=60e9)


def test_what_the_kernel_gives_no_time_has_none(feed: Feed, pipe: tuple[int, int]) -> None:
    message = build_message(make_flow(5))[:-EVENT_TIME_BYTES]
    feed.other.send(struct.pack("=I", len(message)) + message[4:])
    (written,) = feed.relay(Loan(Way.WRITE, pipe[1])).passed[0].written

    assert written.time == 0


@pytest.mark.parametrize("loan", [KEEP, Loan(Way.DISCARD)])
def test_a_batch_that_comes_after_an_interruption_is_left_undecided_and_the_next_is_not(
    feed: Feed, loan: Loan
) -> None:
    table = ENGINE.compile_table(parse("log any"))
    feed.batch.interrupt()
    feed.send(make_flows(3))
    left = feed.relay(loan, table)
    ids, counts = feed.list_left(), table.counts
    feed.send(make_flows(3))
    done = feed.relay(loan, table)

    assert (ids, counts, left.received[0], left.batches) == ([0, 1, 2], [0, 0], 3, 0)
    assert (done.received[0], done.batches, table.counts) == (0, 1, [0, 3])


def test_a_batch_with_a_loss_is_left(feed: Feed) -> None:
    """Whose time is since the last look that found none."""
    feed.send(make_flows(3))
    left = feed.relay(KEEP, drops=7)

    assert (feed.list_left(), left.batches, left.looked_ns) == ([0, 1, 2], 0, 0)


def test_a_second_full_batch_is_left_to_who_has_another_thread_to_write_it(
    narrow: Feed, pipe: tuple[int, int]
) -> None:
    narrow.send(make_flows(2 * FEW_SLOTS))
    left = narrow.relay(Loan(Way.WRITE, pipe[1]))

    assert (narrow.list_left(), left.batches) == ([4, 5, 6, 7], 1)


def test_what_waits_in_the_queue_is_kept_as_one_text_and_no_more_than_there_is_room_for(
    narrow: Feed,
) -> None:
    flows = make_flows(10)
    narrow.send(flows)
    first = narrow.relay(KEEP, room=9)
    second = narrow.relay(KEEP, room=9)
    kept, then = first.passed[0], second.passed[0]

    assert (kept.rest.text, first.batches) == (write_all(flows[:8]), 2)
    assert (kept.rest.ends, kept.rest.events) == (render(json.TEMPLATE, flows[:8]).ends, 8)
    assert (kept.rest.time, kept.is_timed, kept.torn, kept.written) == (flows[0].time, True, 0, ())
    assert (then.rest.text, then.rest.time) == (write_all(flows[8:]), flows[8].time)


def test_a_text_is_kept_while_more_comes(narrow: Feed) -> None:
    count = 50
    sender = threading.Thread(target=narrow.send_singly, args=(make_flows(count),))
    sender.start()
    found: list[Relayed] = []
    while sum(relayed.datagrams for relayed in found) < count:
        found.append(narrow.relay(KEEP))
    sender.join()
    texts = [relayed.passed[0].rest.text for relayed in found if relayed.passed[0].rest.events]

    assert b"".join(texts) == write_all(make_flows(count))
    assert len(texts) < sum(relayed.batches for relayed in found)


def test_what_a_pipe_has_no_room_for_is_given_back_from_its_first_line_on(
    feed: Feed, pipe: tuple[int, int]
) -> None:
    with suppress(BlockingIOError):
        while True:
            os.write(pipe[1], bytes(select.PIPE_BUF))
    os.read(pipe[0], select.PIPE_BUF)
    found: list[Relayed] = []
    count = 9
    while not found or found[-1].passed[0].written:
        feed.send(make_flows(count, count * len(found)))
        found.append(feed.relay(Loan(Way.WRITE, pipe[1])))
    written = sum(one.events for relayed in found for one in relayed.passed[0].written)
    flows = make_flows(count * len(found))
    text = b"".join([os.read(pipe[0], 1 << 21)])

    assert text.lstrip(b"\0") == write_all(flows[:written])
    assert b"".join(relayed.passed[0].rest.text for relayed in found) == write_all(flows[written:])
    assert (found[-1].passed[0].rest.events, found[-1].passed[0].rest.time) == (count, flows[-count].time)
    assert not any(relayed.passed[0].torn for relayed in found)


def test_a_line_that_a_socket_took_half_of_is_given_back_with_what_was_taken(feed: Feed) -> None:
    flows, rounds = make_flows(15), 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that there is
        one.connect(server.getsockname())
        other, _ = server.accept()
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        other.setblocking(False)
        found = None
        while found is None or not found.passed[0].rest.events:
            feed.send(flows)
            rounds += 1
            found = feed.relay(Loan(Way.WRITE, other.fileno()))
        other.shutdown(socket.SHUT_WR)
        text = b"".join(iter(lambda: one.recv(1 << 20), b""))

    assert found.passed[0].torn > 0
    assert text + found.passed[0].rest.text[found.passed[0].torn :] == write_all(flows) * rounds
    assert text.count(b"\n") == rounds * len(flows) - found.passed[0].rest.events
    assert array("I", found.passed[0].rest.ends)[-1] == len(found.passed[0].rest.text)


def test_datagrams_are_one_for_each_record(feed: Feed) -> None:
    form = ENGINE.compile_template(journal.TEMPLATE)
    flows = make_flows(3)
    with pair() as (one, other):
        other.setblocking(False)
        feed.send(flows)
        found = feed.relay_to([Outlet(form, Loan(Way.SEND, other.fileno()), 0)])
        received = [one.recv(4096) for _ in flows]

    assert received == [render(journal.TEMPLATE, [flow]).text for flow in flows]
    assert [written.events for written in found.passed[0].written] == [3]


def test_several_sinks_get_the_same_events_each_in_its_own_form(narrow: Feed, pipe: tuple[int, int]) -> None:
    """Also two of one form, and one whose streams are kept apart: batch by batch."""
    flows = [make_flow(number, (EventType.NEW, EventType.UPDATE)[number % 2]) for number in range(6)]
    by_stream = ENGINE.compile_template(loki.TEMPLATE)
    outlets = [
        Outlet(FORM, KEEP, ROOM),
        Outlet(FORM, Loan(Way.DISCARD), 0),
        Outlet(by_stream, KEEP, ROOM),
        Outlet(FORM, Loan(Way.WRITE, pipe[1]), 0),
    ]
    passed: list[list[Passed]] = [[] for _ in outlets]
    for first in range(0, len(flows), 3):
        narrow.send(flows[first : first + 3])
        found = narrow.relay_to(outlets)
        for parts, part in zip(passed, found.passed, strict=True):
            parts.append(part)
    kept, discarded, streams, written = passed
    batches = [render(loki.TEMPLATE, flows[:3]), render(loki.TEMPLATE, flows[3:])]

    assert [part.rest for part in kept] == [
        render(json.TEMPLATE, flows[:3]),
        render(json.TEMPLATE, flows[3:]),
    ]
    assert [part.rest for part in streams] == batches
    assert len(batches[0].streams) == 2
    assert os.read(pipe[0], 1 << 20) == write_all(flows)
    assert [part.written[0].events for part in (*discarded, *written)] == [3] * 4
    assert not any(part.rest.events for part in (*discarded, *written))


def test_streams_of_several_batches_are_those_of_each_behind_the_other(narrow: Feed) -> None:
    flows = [make_flow(number, (EventType.NEW, EventType.UPDATE)[number % 2]) for number in range(10)]
    outlet = Outlet(ENGINE.compile_template(loki.TEMPLATE), KEEP, ROOM)
    narrow.send(flows)
    found = narrow.relay_to([outlet])
    batches = [flows[first : first + FEW_SLOTS] for first in range(0, len(flows), FEW_SLOTS)]

    assert found.batches == len(batches)
    assert found.passed[0].rest == join([render(loki.TEMPLATE, batch) for batch in batches])


def test_the_others_get_what_one_sink_has_no_room_for(feed: Feed, pipe: tuple[int, int]) -> None:
    flows = make_flows(3)
    feed.send(flows)
    outlets = [Outlet(FORM, Loan(Way.WRITE, -1), 0), Outlet(FORM, Loan(Way.WRITE, pipe[1]), 0)]
    found = feed.relay_to(outlets)

    assert (found.passed[0].written, found.passed[0].rest) == ((), render(json.TEMPLATE, flows))
    assert (found.passed[1].written[0].events, found.passed[1].rest.events) == (3, 0)
    assert os.read(pipe[0], 1 << 20) == write_all(flows)


def test_a_sink_that_takes_no_more_ends_the_relay_for_all(narrow: Feed) -> None:
    narrow.send(make_flows(2 * FEW_SLOTS))
    outlets = [Outlet(FORM, KEEP, FEW_SLOTS), Outlet(FORM, KEEP, ROOM)]
    found = narrow.relay_to(outlets)

    assert (found.batches, [passed.rest.events for passed in found.passed]) == (1, [FEW_SLOTS] * 2)


@pytest.mark.parametrize("loan", [Loan(Way.WRITE, -1), Loan(Way.SEND, -1)])
def test_where_nothing_can_be_written_all_of_it_is_given_back(feed: Feed, loan: Loan) -> None:
    feed.send(make_flows(3))
    found = feed.relay(loan)

    assert (found.passed[0].rest, found.passed[0].written) == (render(json.TEMPLATE, make_flows(3)), ())


def test_all_kinds_are_counted(feed: Feed) -> None:
    feed.send([make_flow(1), make_flow(2, EventType.DESTROY), make_flow(3)])
    feed.other.send(b"\0" * 20)
    found = feed.relay(Loan(Way.DISCARD))

    assert found.tally == ((EventType.NEW, 6, 2), (EventType.DESTROY, 6, 1))
    assert (found.datagrams, found.malformed, found.forged) == (4, 1, 0)


def test_nothing_in_time_is_nothing(feed: Feed) -> None:
    found = feed.relay(Loan(Way.DISCARD))

    assert (found.received[:3], found.batches, found.tally, found.passed[0].rest.events) == (
        (0, 0, 0),
        0,
        (),
        0,
    )


def test_a_turn_that_comes_too_late_has_measured_the_queue(feed: Feed) -> None:
    """Its counter of drops is compared with the last one: 0 where nobody looked would be billions lost."""
    feed.send(make_flows(1))
    received, _, counts, *_ = feed.call_relay((FORM.core, *KEEP, ROOM, None), milliseconds=0)
    _, _, _, _, size, _ = received

    assert size == feed.batch.receive(feed.one.fileno(), 0, 0)[4] > 0
    assert counts[:2] == (1, 1)


def test_a_socket_that_is_gone_is_an_error(feed: Feed) -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.close(descriptor)

    with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is what matters
        ENGINE.relay(feed.batch, Stages(ALL), Link(descriptor, 0, 0), [Outlet(FORM, KEEP, ROOM)], SECONDS)

    assert caught.value.errno == errno.EBADF


def test_what_cannot_be_is_refused(feed: Feed) -> None:
    by_stream = ENGINE.compile_template(loki.TEMPLATE)

    with pytest.raises(ValueError, match="by stream"):
        feed.relay_to([Outlet(by_stream, Loan(Way.DISCARD), ROOM)])
    for way, number, also_refused, room in (
        *((len(Way), 1, 0, 1), (-1, 1, 0, 1), (0, 0, 0, 1), (0, MAX_SEQUENCE + 1, 0, 1)),
        *((0, 1, -1, 1), (0, 1, 0, -1)),
    ):
        with pytest.raises(ValueError, match="no such way"):
            feed.call_relay((FORM.core, way, -1, number, also_refused, room, None))
    for count in (0, MOST_OUTLETS + 1):
        with pytest.raises(ValueError, match="no outlet, too many"):
            feed.relay_to([Outlet(FORM, KEEP, ROOM)] * count)


def test_nobody_else_comes_in_meanwhile(feed: Feed) -> None:
    """One relay may be over before this thread runs again; what it calls lets no other thread run."""
    is_refused = threading.Event()

    def relay_often() -> None:
        while not is_refused.is_set():
            feed.relay(KEEP)

    thread = threading.Thread(target=relay_often)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="in use by another thread"):
            call_until_refused(feed.batch.tally)
    finally:
        is_refused.set()
        thread.join()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the collector does not run in the middle of C")
def test_nobody_else_comes_in_before_there_is_a_result(feed: Feed) -> None:
    """Making it may start the collector, which runs Python, and so lets other threads run."""
    refused: list[str] = []

    def come(*_: object) -> None:
        try:
            feed.batch.load(b"", 0, 0)
        except RuntimeError as error:
            refused.append(str(error))

    feed.send(make_flows(3))
    thresholds = gc.get_threshold()
    gc.collect()  # and free what new tuples would be made of
    gc.callbacks.append(come)
    gc.set_threshold(1)
    try:
        feed.relay(KEEP)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(come)

    assert set(refused) == {"in use by another thread"}


def test_the_reference_relays_nothing() -> None:
    engine = PlainEngine(True)
    batch = engine.open_batch()
    with pair() as (one, other):
        other.send(build_message(make_flow(1)))
        link = Link(one.fileno(), 0, 0)
        engine.relay(batch, Stages(engine.compile_table([])), link, [Outlet(None, KEEP, ROOM)], SECONDS)

        assert batch.receive(one.fileno(), PATIENCE_MS, 0)[0] == 1


def test_a_batch_can_be_interrupted_in_any_engine(engine: NativeEngine | PlainEngine) -> None:
    engine.open_batch().interrupt()


def place(flows: Sequence[Flow]) -> Databases:
    """Where half of the sources are, and the destination, which the flows say, too."""
    known: dict[bytes, Location | None] = {}
    for flow in flows:
        flow.src_location = Location(city=f"City {flow.id}") if flow.id % 2 else None
        flow.dst_location = Location("Nuremberg", country_code="DE")
        known |= {flow.src: flow.src_location, flow.dst: flow.dst_location}
    return Databases(known)


def keep(feed: Feed, events: Sequence[Flow], table: object = ALL, **stages: Any) -> Relayed:
    """Send them, and relay what comes to a sink that lets it wait."""
    feed.send(events)
    return feed.relay_to([Outlet(FORM, KEEP, ROOM)], table, **stages)


def test_what_has_a_new_address_is_left_as_the_rules_keep_it_and_then_all_are_located(feed: Feed) -> None:
    flows = make_flows(9)
    locations: Any = ENGINE.open_locations(place(flows), 1000)
    table = ENGINE.compile_table(parse("drop source address 10.0.0.7", "log any"))
    left = keep(feed, flows, table, locations=locations)
    assert left.decided is not None
    kept = [feed.batch.describe(index)["id"] for index in array("H", left.decided)]
    counts = table.counts
    locations.locate(feed.batch, left.decided)
    found = keep(feed, [flow for flow in flows if flow.id != 7], table, locations=locations)

    assert (kept, left.received[0], left.batches, left.tally) == ([0, 1, 2, 3, 4, 5, 6, 8], 9, 0, ())
    assert (counts, table.counts) == ([0, 1, 8], [0, 1, 16])
    assert (found.decided, found.received[0], found.batches) == (None, 0, 1)
    assert found.passed[0].rest.text == write_all([flow for flow in flows if flow.id != 7])


def test_where_rules_ask_for_places_a_new_address_leaves_all_undecided(feed: Feed) -> None:
    flows = make_flows(4)
    locations: Any = ENGINE.open_locations(place(flows), 1000)
    table = ENGINE.compile_table(parse('drop source city "City 3"', "log any"))
    left = keep(feed, flows, table, locations=locations)
    counts = table.counts
    locations.locate(feed.batch, None)
    found = keep(feed, flows, table, locations=locations)

    assert (left.decided, left.received[0], counts) == (None, 4, [0, 0, 0])
    assert (found.received[0], table.counts) == (0, [0, 1, 3])
    assert found.passed[0].rest.text == write_all(flows[:3])


def test_nothing_is_relayed_where_databases_have_changed(feed: Feed) -> None:
    databases = place(make_flows(1))
    locations: Any = ENGINE.open_locations(databases, 1000)
    databases.generation += 1
    link = Link(feed.one.fileno(), 0, 0)

    assert ENGINE.relay(feed.batch, Stages(ALL, locations), link, [Outlet(FORM, KEEP, ROOM)], SECONDS) is None
    with pytest.raises(TypeError, match="located by Locations"):
        feed.call_relay((FORM.core, *KEEP, ROOM, None), locations=ALL.core)


def test_each_flow_is_written_at_its_end_with_its_begin(feed: Feed) -> None:
    """Counted as what it is written as. One that began before is incomplete."""
    began = [make_flow(number) for number in range(3)]
    ended = [make_flow(number, EventType.DESTROY) for number in range(4)]
    flows: Any = ENGINE.open_flows(10)
    table = ENGINE.compile_table(parse("log any"), events=EventType.DESTROY)
    first = keep(feed, began, table, flows=flows, writes_flows=True)
    remembered = len(flows)
    found = keep(feed, ended, table, flows=flows, writes_flows=True)
    lines = [jsonlib.loads(line) for line in found.passed[0].rest.text.splitlines()]

    assert (first.filtered, first.passed[0].rest.events, remembered, len(flows)) == (3, 0, 3, 0)
    assert found.tally == ((EventType.FLOW, 6, 4),)
    assert [line["type"] for line in lines] == ["FLOW"] * 4
    assert ["first_seen" in line for line in lines] == [True, True, True, False]


def test_flows_that_are_forgotten_for_want_of_room_are_counted(feed: Feed) -> None:
    flows: Any = ENGINE.open_flows(1)
    room = flows.note(feed.batch)  # nothing yet
    found = keep(feed, make_flows(9), flows=flows, writes_flows=True)

    assert (room, found.forgotten) == (0, 9 - len(flows))
    assert found.forgotten > 0
