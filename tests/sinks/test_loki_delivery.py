"""Outbox, spool, sink and server together: what arrives in the end, and how often."""

import socket
import time
from pathlib import Path

import pytest

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.spool import Spool
from conntrackd.flow import EventType
from conntrackd.sinks.loki import Loki
from conntrackd.stats import SinkStats
from tests.delivery.fakes import Clock, find_imbalance, make_lost, run_until_idle
from tests.sinks import loki_server
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.loki_client import hand_on, make_settings
from tests.sinks.loki_server import NANO, Fault, Limits, Server, Store, run_server, say


def make_outbox(loki: Loki, clock: Clock, spool: Spool | None, queue: int = 5000) -> Outbox:
    backoff = Backoff(0.5, 30.0)
    return Outbox(loki, queue=queue, stats=SinkStats(), spool=spool, backoff=backoff, clock=clock)


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
    assert (stats.sink_events_delivered_total, find_imbalance(stats)) == (60_001, 0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_refused_is_counted_and_the_next_batch_goes(
    server: Server, store: Store, status: int
) -> None:
    clock = Clock()
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    store.faults.append(say(status))
    hand_on(outbox, make_flows(10))
    run_until_idle(outbox, clock, seconds=5.0)
    hand_on(outbox, make_flows(10, 10))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert list_stored(store) == list(range(10, 20))
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (10, 10)


def test_a_body_that_is_too_large_arrives_in_parts(server: Server, store: Store) -> None:
    clock = Clock()
    store.limits = Limits(max_body=1000)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(300))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)

    assert list_stored(store) == list(range(300))
    assert store.duplicates == 0
    assert outbox.snapshot().sink_events_delivered_total == 300


def test_an_event_that_is_too_large_alone_is_dropped_and_the_others_arrive(
    server: Server, store: Store
) -> None:
    clock = Clock()
    store.faults.extend([say(413), say(413), say(413)])  # 4 events, 2, and then the first alone
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(4))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert list_stored(store) == [1, 2, 3]
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (1, 3)


def test_late_events_arrive_in_streams_of_their_own(server: Server, store: Store) -> None:
    clock = Clock()
    store.limits = Limits(max_behind=0)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(5, 100))
    run_until_idle(outbox, clock, seconds=5.0)
    hand_on(outbox, make_flows(5))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)

    assert [dict(entry.metadata)["flow"] for entry in store.query(replay="1")] == ["0", "1", "2", "3", "4"]
    assert outbox.snapshot().sink_events_delivered_total == 10


def test_late_events_are_noticed_though_another_stream_of_their_push_is_taken(
    server: Server, store: Store
) -> None:
    """Loki says 204 where the last stream of a push is good, and drops the others without a word."""
    clock = Clock()
    store.limits = Limits(max_behind=0)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(5, 100))
    run_until_idle(outbox, clock, seconds=5.0)
    hand_on(outbox, [*make_flows(5), make_flow(5, EventType.DESTROY)])
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)

    assert set(list_stored(store)) == {*range(6), *range(100, 105)}
    assert outbox.snapshot().sink_events_delivered_total == 11


def test_what_is_too_old_even_for_a_replay_is_dropped_and_the_rest_is_there_once(
    server: Server, store: Store
) -> None:
    clock = Clock()
    store.limits = Limits(reject_before=BASE + 5_000_000_000)
    flows = [make_flow(number, time=BASE + number * 1_000_000_000) for number in range(10)]
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, flows)
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert sorted(set(list_stored(store))) == [5, 6, 7, 8, 9]
    assert stats.sink_events_delivered_total + stats.sink_events_dropped_refused_total == 10
    assert find_imbalance(stats) == 0


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
    assert find_imbalance(outbox.snapshot()) == 0


def test_of_a_batch_with_bad_entries_the_good_ones_are_delivered_and_no_other_is_said_to_be(
    server: Server, store: Store
) -> None:
    """A gateway's clock was a day ahead, and is set right in mid-batch; then a batch is all wrong."""
    clock = Clock()
    store.limits = Limits(reject_after=time.time_ns() + 600 * NANO)
    wrong = [make_flow(number, time=time.time_ns() + 86_400 * NANO) for number in range(10, 13)]
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    for batch in ([*make_flows(10), *wrong], wrong, make_flows(5, 20)):
        hand_on(outbox, batch)
        run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert list_stored(store) == [*range(10), *range(20, 25)]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (15, 6)
    told = [dict(entry.metadata)["lost"] for entry in store.query(type="LOST")]
    assert sum(map(int, told)) == 6


def test_a_push_that_is_larger_than_the_burst_arrives_in_parts(server: Server, store: Store) -> None:
    """Tried again as it is, it would be refused for ever, and everything behind it would wait."""
    clock = Clock()
    store.limits = Limits(burst=100)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    hand_on(outbox, make_flows(300))
    run_until_idle(outbox, clock, seconds=300.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert list_stored(store) == list(range(300))
    assert (stats.sink_events_delivered_total, store.duplicates) == (300, 0)
    # 300, then 150, then 75: a few tries for each size, and not one for each event.
    assert 10 < len(store.pushes) < 40


def answer(_: loki_server.Handler) -> bool:
    """No fault."""
    return False


@pytest.mark.parametrize("faults", [(say(403), say(403)), (answer, loki_server.refuse_one)])
def test_a_loss_that_is_refused_is_told_when_something_is_accepted(
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

    told = {
        dict(entry.metadata)["where"]: int(dict(entry.metadata)["lost"]) for entry in store.query(type="LOST")
    }
    refused = stats.sink_events_dropped_refused_total
    assert told == ({"kernel": 700, "loki": 5} if refused else {"kernel": 700})
    assert (len(list_stored(store)), refused) == (
        10 - refused,
        0 if answer in faults else 5,
    )


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
    assert outbox.error == f"the server replied 260: {loki_server.BLOCKED}"
    assert list_stored(store) == [5, 6, 7, 8, 9]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (5, 5)
