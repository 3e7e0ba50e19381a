"""Outbox, spool, sink and server together: what arrives in the end, and how often."""

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState
from conntrackd.delivery.spool import Spool
from conntrackd.flow import EventType, Flow, Location
from conntrackd.sinks.loki import Loki
from conntrackd.stats import SinkStats
from tests.delivery.fakes import Clock, compute_imbalance, make_lost, run_until_idle, sum_dropped
from tests.sinks import loki_server
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.loki_client import hand_on, make_settings
from tests.sinks.loki_server import NANO, Fault, Handler, Limits, Server, Store, run_server, say


def make_outbox(loki: Loki, clock: Clock, spool: Spool | None, queue: int = 5000) -> Outbox:
    backoff = Backoff(0.5, 30.0)
    return Outbox(loki, queue=queue, stats=SinkStats(), spool=spool, backoff=backoff, clock=clock)


def deliver(server: Server, *batches: Sequence[Flow], seconds: float = 5.0) -> SinkStats:
    """Each batch after the one before has had its time. What the outbox has counted in the end."""
    clock = Clock()
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    for batch in batches:
        hand_on(outbox, batch)
        run_until_idle(outbox, clock, seconds=seconds)
    outbox.stop(clock.now)
    return outbox.snapshot()


def list_stored(store: Store) -> list[int]:
    """Numbers of the events that are stored, in the order of their time."""
    return [
        int(dict(entry.metadata)["flow"]) for entry in store.query() if "lost" not in dict(entry.metadata)
    ]


def test_ten_minutes_of_events_while_loki_is_away_are_all_there_exactly_once(tmp_path: Path) -> None:
    """50 events a second; nobody there for ten minutes, then 500, 502 and 503 for ten; the test's clock."""
    store, clock = Store(), Clock()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loki = Loki(make_settings(port, batch_wait=1.0))
    outbox = make_outbox(loki, clock, Spool(tmp_path, "loki", 64 << 20))
    events = 0
    for _ in range(600):
        hand_on(outbox, make_flows(50, events))
        events += 50
        run_until_idle(outbox, clock, seconds=1.0)
    with run_server(store, port=port):
        store.faults.extend(say(status, "empty ring") for _ in range(1000) for status in (500, 502, 503))
        for _ in range(600):
            hand_on(outbox, make_flows(50, events))
            events += 50
            run_until_idle(outbox, clock, seconds=1.0)
        away = outbox.snapshot()
        attempts = {request.body for request in store.pushes}
        store.faults.clear()
        store.faults.append(loki_server.store_and_reset)  # stored, and the acknowledgement lost
        store.faults.append(loki_server.store_and_say(502))
        run_until_idle(outbox, clock, seconds=120.0)
        hand_on(outbox, make_flows(1, events))
        run_until_idle(outbox, clock, seconds=5.0)
        outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert away.sink_events_spooled + away.sink_events_queued == 60_000
    assert len(attempts) == 1  # the same bytes each time
    assert away.sink_retries_total > 20
    assert list_stored(store) == list(range(60_001))
    assert store.duplicates > 0
    assert (stats.sink_events_delivered_total, compute_imbalance(stats)) == (60_001, 0)


@pytest.mark.parametrize("status", [400, 422])
def test_what_is_refused_is_counted_and_the_next_batch_goes(
    server: Server, store: Store, status: int
) -> None:
    store.faults.append(say(status))
    stats = deliver(server, make_flows(10), make_flows(10, 10))

    assert list_stored(store) == list(range(10, 20))
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (10, 10)


class Guarded(Store):
    """Lets in who has the token, and says `status` to all others."""

    token = "first"
    status = 401


@pytest.fixture
def guarded() -> Iterator[tuple[Server, Guarded]]:
    store = Guarded()

    def check(handler: Handler) -> bool:
        store.faults.append(check)
        if handler.headers["Authorization"] == f"Bearer {store.token}":
            return False
        return handler.reply(store.status, "invalid token")

    store.faults.append(check)
    with run_server(store) as server:
        yield server, store


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_renewed_in_an_hour_costs_no_event(
    guarded: tuple[Server, Guarded], tmp_path: Path, status: int
) -> None:
    """Its time is over before there is a new one: all waits on disk, and the state says what for."""
    (server, store), clock, secret = guarded, Clock(), tmp_path / "token"
    secret.write_text("first")
    store.status = status
    outbox = make_outbox(
        Loki(make_settings(server.port, token_file=secret)),
        clock,
        Spool(tmp_path / "spool", "loki", 1 << 20),
        50,
    )
    hand_on(outbox, make_flows(10))
    run_until_idle(outbox, clock, seconds=5.0)
    store.token = "second"
    for first in range(10, 1000, 10):
        hand_on(outbox, make_flows(10, first))
        run_until_idle(outbox, clock, seconds=36.0)
    away, state, reason = outbox.snapshot(), outbox.state, outbox.error
    secret.write_text("second")
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert (away.sink_events_spooled, state) == (990, SinkState.RETRYING)
    assert reason.endswith(
        f": the server replied {status}: invalid token; the secret is read again before each attempt"
    )
    assert list_stored(store) == list(range(1000))
    assert (stats.sink_events_delivered_total, sum_dropped(stats), compute_imbalance(stats)) == (1000, 0, 0)


@pytest.mark.parametrize("status", [403, 404, 406])
def test_an_event_that_is_denied_for_what_is_in_it_holds_up_no_other_for_ever(
    server: Server, store: Store, status: int
) -> None:
    """As a firewall for the web does: Loki's own answer to a push of nothing shows that it is not us."""

    def deny(handler: Handler) -> bool:
        store.faults.append(deny)
        if b'"flow":"7"' in gzip.decompress(store.requests[-1].body):
            return handler.reply(status, "<html>blocked</html>")
        return False

    store.faults.append(deny)
    stats = deliver(server, make_flows(10), make_flows(10, 10), seconds=900.0)

    assert list_stored(store) == [number for number in range(20) if number != 7]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (19, 1)


STREAM_LIMIT = (
    "Maximum active stream limit exceeded when trying to create stream {}, reduce the number of active "
    "streams (reduce labels or reduce label values), or contact your Loki administrator to see if the limit "
    "can be increased, user: 'fake'"
)


def refuse_stream(store: Store, wanted: str) -> Fault:
    """As Loki's limit of streams: this one is not opened, the others of the push are stored."""

    def fault(handler: Handler) -> bool:
        store.faults.append(fault)
        streams = json.loads(gzip.decompress(store.requests[-1].body))["streams"]
        refused = [stream["stream"] for stream in streams if stream["stream"]["type"] == wanted]
        if not refused:
            return False
        good = [stream for stream in streams if stream["stream"] not in refused]
        if good:
            with store.lock:
                store.push(json.dumps({"streams": good}).encode())
        labels = ", ".join(f'{name}="{value}"' for name, value in sorted(refused[-1].items()))
        return handler.reply(429, STREAM_LIMIT.format("{" + labels + "}"))

    return fault


@pytest.mark.parametrize("wanted", ["DESTROY", "NEW"])
def test_a_stream_that_loki_does_not_open_is_counted_after_a_time_and_the_others_go_on(
    server: Server, store: Store, wanted: str
) -> None:
    clock = Clock()
    store.faults.append(refuse_stream(store, wanted))
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    waited = []
    for first in range(0, 40, 4):
        hand_on(outbox, [*make_flows(3, first), make_flow(first + 3, EventType.DESTROY)])
        begin = clock.now
        while outbox.snapshot().sink_events_queued:
            clock.now += outbox.step() or 0.0
        waited.append(clock.now - begin)
    refused = outbox.snapshot().sink_events_dropped_refused_total
    store.faults.clear()
    hand_on(outbox, [*make_flows(3, 40), make_flow(43, EventType.DESTROY)])
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    missing = {number for number in range(40) if (number % 4 == 3) == (wanted == "DESTROY")}
    assert set(list_stored(store)) == set(range(44)) - missing
    assert refused == len(missing)
    assert (stats.sink_events_delivered_total, compute_imbalance(stats)) == (44 - len(missing), 0)
    # A minute or two for the first, in case that Loki changes its mind; nothing for those behind it.
    assert waited[0] > 5.0
    assert waited[1:] == pytest.approx([1.0] * 9)  # for others to join it
    reported = [dict(entry.metadata)["lost"] for entry in store.query(type="LOST")]
    assert sum(map(int, reported)) == len(missing)


def test_of_a_push_with_a_stream_that_is_wrong_as_a_whole_the_others_are_not_said_to_be_refused(
    server: Server, store: Store
) -> None:
    """Loki stores them, and says what is wrong in words that no other program has to know."""

    def fault(handler: Handler) -> bool:
        store.faults.append(fault)
        streams = json.loads(gzip.decompress(store.requests[-1].body))["streams"]
        good = [stream for stream in streams if stream["stream"]["type"] != "DESTROY"]
        if len(good) == len(streams):
            return False
        if good:
            with store.lock:
                store.push(json.dumps({"streams": good}).encode())
        return handler.reply(400, "stream '{type=\"DESTROY\"}' has a name that the owner does not like")

    store.faults.append(fault)
    stats = deliver(server, [*make_flows(3), make_flow(3, EventType.DESTROY)])

    assert list_stored(store) == [0, 1, 2]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (3, 1)


@pytest.mark.parametrize(
    "answer",
    [
        say(200, "<html>Please log in</html>"),
        say(202),
        say(200),
        say(302, "", {"Location": "http://login.example/"}),
        say(408),
        say(421),
        say(425),
        say(404, "default backend - 404"),
    ],
)
def test_what_was_not_stored_is_not_delivered_and_arrives_later(
    server: Server, store: Store, answer: Fault
) -> None:
    clock = Clock()
    store.faults.extend([answer] * 3)
    outbox = make_outbox(Loki(make_settings(server.port, batch_wait=0.0)), clock, None)
    hand_on(outbox, make_flows(10))
    outbox.step()
    outbox.step()
    first = (outbox.snapshot().sink_events_delivered_total, outbox.state)
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)

    assert first == (0, SinkState.RETRYING)
    assert list_stored(store) == list(range(10))
    assert (store.duplicates, outbox.snapshot().sink_events_delivered_total) == (0, 10)


def test_a_body_that_is_too_large_arrives_in_parts(server: Server, store: Store) -> None:
    store.limits = Limits(max_body=1000)
    stats = deliver(server, make_flows(300))

    assert list_stored(store) == list(range(300))
    assert store.duplicates == 0
    assert stats.sink_events_delivered_total == 300


def test_an_event_that_is_too_large_alone_is_dropped_and_the_others_arrive(
    server: Server, store: Store
) -> None:
    store.faults.extend([say(413), say(413), say(413)])  # 4 events, 2, and then the first alone
    stats = deliver(server, make_flows(4))

    assert list_stored(store) == [1, 2, 3]
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (1, 3)


def test_late_events_arrive_in_streams_of_their_own(server: Server, store: Store) -> None:
    store.limits = Limits(max_behind=0)
    stats = deliver(server, make_flows(5, 100), make_flows(5))

    assert [dict(entry.metadata)["flow"] for entry in store.query(replay="1")] == ["0", "1", "2", "3", "4"]
    assert stats.sink_events_delivered_total == 10


@pytest.mark.parametrize("limits", [Limits(max_metadata_size=120), Limits(max_metadata_count=8)])
def test_an_event_with_too_much_in_it_is_refused_alone(server: Server, store: Store, limits: Limits) -> None:
    store.limits = limits
    flows = make_flows(9)
    for flow in flows[::4]:
        flow.dst_location = Location("Köln" * 20, "Germany", 50.9, 6.9)
    stats = deliver(server, flows)

    assert list_stored(store) == [1, 2, 3, 5, 6, 7]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (6, 3)


def test_a_stream_that_is_too_fast_loses_nothing_beside_a_larger_one(server: Server, store: Store) -> None:
    """Of a push Loki answers for the last stream alone: what it refuses of another one is gone with a 204."""
    clock = Clock()
    store.limits = Limits(stream_burst=2000)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(1000))
    run_until_idle(outbox, clock, seconds=5.0)
    hand_on(outbox, [*make_flows(1500, 1000), *(make_flow(n, EventType.DESTROY) for n in range(2500, 4100))])
    run_until_idle(outbox, clock, seconds=2.0)
    waiting = outbox.snapshot().sink_events_delivered_total
    store.streamed.clear()
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert waiting < 4100
    assert sorted(list_stored(store)) == list(range(4100))
    assert (stats.sink_events_delivered_total, compute_imbalance(stats)) == (4100, 0)
    assert stats.sink_retries_total > 0


@pytest.mark.parametrize("is_late", [lambda number: number < 4, lambda number: number >= 6])
def test_late_events_among_others_are_replayed_and_the_others_are_there_once(
    server: Server, store: Store, is_late: Callable[[int], bool]
) -> None:
    hour = 3600 * NANO
    store.limits = Limits(max_behind=hour)
    flows = [make_flow(n, time=BASE + n - (3 * hour if is_late(n) else 0)) for n in range(10)]
    stats = deliver(server, make_flows(2, 100), flows)
    replayed = {int(dict(entry.metadata)["flow"]) for entry in store.query(replay="1")}

    assert sorted(list_stored(store)) == [*range(10), 100, 101]
    assert replayed == set(filter(is_late, range(10)))
    assert stats.sink_events_delivered_total == 12


def test_late_events_are_noticed_though_another_stream_of_their_push_is_taken(
    server: Server, store: Store
) -> None:
    """Loki says 204 where the last stream of a push is good, and drops the others without a word."""
    store.limits = Limits(max_behind=0)
    stats = deliver(server, make_flows(5, 100), [*make_flows(5), make_flow(5, EventType.DESTROY)])

    assert set(list_stored(store)) == {*range(6), *range(100, 105)}
    assert stats.sink_events_delivered_total == 11


def test_what_is_too_old_even_for_a_replay_is_dropped_and_the_rest_is_there_once(
    server: Server, store: Store
) -> None:
    store.limits = Limits(reject_before=BASE + 5_000_000_000)
    flows = [make_flow(number, time=BASE + number * 1_000_000_000) for number in range(10)]
    stats = deliver(server, flows)

    assert sorted(set(list_stored(store))) == [5, 6, 7, 8, 9]
    assert stats.sink_events_delivered_total + stats.sink_events_dropped_refused_total == 10
    assert compute_imbalance(stats) == 0


def test_a_server_that_is_killed_and_comes_back_has_everything_once(tmp_path: Path) -> None:
    """With the outbox's own thread, on a real clock."""
    store = Store()
    with run_server(store) as server:
        port = server.port
        loki = Loki(make_settings(port, batch_wait=0.01, timeout=2.0))
        outbox = Outbox(
            loki,
            queue=10_000,
            stats=SinkStats(),
            spool=Spool(tmp_path, "loki", 64 << 20),
            backoff=Backoff(0.01, 0.05),
        )
        outbox.start()
        for first in range(0, 1000, 10):
            hand_on(outbox, make_flows(10, first))
        assert outbox.flush(30.0)
    for first in range(1000, 3000, 10):
        hand_on(outbox, make_flows(10, first))
    with run_server(store, port=port):
        flushed = outbox.flush(30.0)
        hand_on(outbox, make_flows(1, 3000))
        outbox.stop(time.monotonic() + 30.0)

    assert flushed
    assert list_stored(store) == list(range(3001))
    assert compute_imbalance(outbox.snapshot()) == 0


def test_of_a_batch_with_bad_entries_the_good_ones_are_delivered_and_no_other_is_said_to_be(
    server: Server, store: Store
) -> None:
    """A gateway's clock was a day ahead, and is set right in mid-batch; then a batch is all wrong."""
    store.limits = Limits(reject_after=time.time_ns() + 600 * NANO)
    wrong = [make_flow(number, time=time.time_ns() + 86_400 * NANO) for number in range(10, 13)]
    stats = deliver(server, [*make_flows(10), *wrong], wrong, make_flows(5, 20))

    assert list_stored(store) == [*range(10), *range(20, 25)]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (15, 6)
    reported = [dict(entry.metadata)["lost"] for entry in store.query(type="LOST")]
    assert sum(map(int, reported)) == 6


def test_a_push_that_is_larger_than_the_burst_arrives_in_parts(server: Server, store: Store) -> None:
    """Tried again as it is, it would be refused for ever, and everything behind it would wait."""
    store.limits = Limits(burst=100)
    stats = deliver(server, make_flows(300), seconds=300.0)

    assert list_stored(store) == list(range(300))
    assert (stats.sink_events_delivered_total, store.duplicates) == (300, 0)
    # 300, then 150, then 75: a few tries for each size, and not one for each event.
    assert 10 < len(store.pushes) < 40


def test_what_follows_a_push_larger_than_the_burst_is_no_larger_again(server: Server, store: Store) -> None:
    """Each batch was halved anew, and each half: that is so slow that a spool fills up."""
    clock = Clock()
    store.limits = Limits(burst=100)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(300))
    run_until_idle(outbox, clock, seconds=60.0)
    before = len(store.pushes)
    hand_on(outbox, make_flows(2000, 300))
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)

    assert list_stored(store) == list(range(2300))
    assert 20 <= len(store.pushes) - before < 80


def test_pushes_grow_again_where_each_stream_has_its_own(server: Server, store: Store) -> None:
    clock, sink = Clock(), Loki(make_settings(server.port))
    store.limits = Limits(burst=100)
    outbox = make_outbox(sink, clock, None)
    hand_on(outbox, make_flows(300))
    run_until_idle(outbox, clock, seconds=60.0)
    least = sink.batch_events
    store.limits = Limits()
    hand_on(outbox, [make_flow(n, EventType.DESTROY if n % 2 else EventType.NEW) for n in range(300, 600)])
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)

    assert sorted(list_stored(store)) == list(range(600))
    assert sink.batch_events > least


def answer(_: loki_server.Handler) -> bool:
    """No fault."""
    return False


@pytest.mark.parametrize("faults", [(say(422), say(422)), (answer, loki_server.refuse_one)])
def test_a_loss_that_is_refused_is_reported_when_something_is_accepted(
    server: Server, store: Store, tmp_path: Path, faults: tuple[Fault, Fault]
) -> None:
    """It was on disk, too. The events before it are refused with it, or are not."""
    clock = Clock()
    outbox = make_outbox(Loki(make_settings(server.port)), clock, Spool(tmp_path, "loki", 1 << 20))
    store.faults.extend([say(503), say(503), *faults])
    hand_on(outbox, make_flows(5))
    outbox.report(make_lost(700))
    run_until_idle(outbox, clock, seconds=60.0)
    hand_on(outbox, make_flows(5, 5))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    reported = {
        dict(entry.metadata)["where"]: int(dict(entry.metadata)["lost"]) for entry in store.query(type="LOST")
    }
    refused = stats.sink_events_dropped_refused_total
    assert reported == ({"kernel": 700, "loki": 5} if refused else {"kernel": 700})
    assert (len(list_stored(store)), refused) == (10 - refused, 0 if answer in faults else 5)


def test_what_loki_blocks_is_not_said_to_be_delivered(server: Server, store: Store) -> None:
    """Its status is none of an error."""
    clock = Clock()
    store.limits = Limits(blocked=True)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(5))
    run_until_idle(outbox, clock, seconds=5.0)
    blocked = outbox.snapshot()
    store.limits = Limits()
    hand_on(outbox, make_flows(5, 5))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert (blocked.sink_events_delivered_total, blocked.sink_events_dropped_refused_total) == (0, 5)
    assert outbox.error.endswith(f": the server replied 260: {loki_server.BLOCKED}")
    assert list_stored(store) == [5, 6, 7, 8, 9]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (5, 5)
