"""The outbox, driven step by step with a clock of the test's own."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.loan import Passed
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkFailed, SinkRefused, SinkRevised, SinkState, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.flow import ABSENT, Lost
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats
from tests.delivery.fakes import (
    AWAY,
    FAKE,
    Clock,
    FakeDirectSink,
    FakeSink,
    FakeTemplate,
    FakeWriter,
    compute_imbalance,
    feed,
    make_events,
    make_lost,
    make_outbox,
    put,
    render,
    run_until_idle,
    split,
    sum_dropped,
)
from tests.sinks.flows import BASE, make_flows


def test_events_arrive_in_order_and_small_batches_are_joined(clock: Clock) -> None:
    sink = FakeSink(batch_events=6)
    outbox = make_outbox(sink, clock)
    for first in range(0, 12, 3):
        put(outbox, make_flows(3, first))
    run_until_idle(outbox, clock)

    assert sink.numbers == list(range(12))
    assert len(sink.attempts) == 2
    assert outbox.state is SinkState.OK


def test_batches_are_joined_again_when_what_was_flushed_is_dropped(clock: Clock) -> None:
    sink = FakeSink(batch_events=10, batch_wait=1.0)
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    put(outbox, make_flows(5))
    is_empty = outbox.flush(0.0)
    outbox.disable()
    run_until_idle(outbox, clock)
    outbox.enable()
    run_until_idle(outbox, clock)
    put(outbox, make_flows(3, 5))
    waits = [outbox.step()]
    run_until_idle(outbox, clock, seconds=1.0)

    assert (is_empty, waits) == (False, [1.0])
    assert sink.numbers == [5, 6, 7]


def test_a_batch_waits_for_others_to_join_until_its_time_is_over(clock: Clock) -> None:
    sink = FakeSink(batch_events=10, batch_wait=1.0)
    outbox = make_outbox(sink, clock)
    outbox.step()
    put(outbox, make_flows(3))
    waits = [outbox.step()]
    clock.now += 0.75
    put(outbox, make_flows(3, 3))
    waits.append(outbox.step())
    clock.now += 0.25
    run_until_idle(outbox, clock)

    assert waits == [1.0, 0.25]
    assert len(sink.attempts) == 1
    assert sink.numbers == list(range(6))


def test_a_full_batch_does_not_wait(clock: Clock) -> None:
    sink = FakeSink(batch_events=4, batch_wait=60.0)
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(3))
    put(outbox, make_flows(3, 3))
    run_until_idle(outbox, clock)

    assert sink.numbers == [0, 1, 2]  # two batches of three do not fit into one of four
    clock.now += 60.0
    run_until_idle(outbox, clock)
    assert sink.numbers == list(range(6))


def test_a_sink_that_is_down_at_the_start_connects_later(clock: Clock) -> None:
    sink = FakeSink()
    sink.open_faults.extend([AWAY] * 5)
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(3))
    first_state = outbox.state
    outbox.step()
    second_state = outbox.state
    run_until_idle(outbox, clock, seconds=60.0)

    assert (first_state, second_state, outbox.state) == (SinkState.STARTING, SinkState.RETRYING, SinkState.OK)
    assert sink.numbers == [0, 1, 2]
    assert sink.opened == 6
    assert outbox.error == "nobody there"


def test_an_empty_outbox_opens_its_sink_at_once_so_that_trouble_shows_early(clock: Clock) -> None:
    sink = FakeSink()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)

    assert (sink.opened, outbox.state) == (1, SinkState.OK)


def test_a_retry_writes_the_same_bytes_after_growing_delays(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.extend([AWAY] * 5)
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(3), seconds=60.0)
    stats = outbox.snapshot()

    assert len(sink.attempts) == 6
    assert len(set(sink.attempts)) == 1
    assert sink.numbers == [0, 1, 2]
    assert (stats.sink_retries_total, stats.sink_events_delivered_total) == (5, 3)


def test_delays_grow_and_retry_after_is_honoured(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.extend([AWAY, AWAY, SinkUnavailable("busy", 120.0), AWAY])
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(1))
    begin = clock.now
    moments = []
    while not sink.received:
        before = len(sink.attempts)
        wait = outbox.step()
        if len(sink.attempts) > before:
            moments.append(clock.now - begin)
        clock.now += wait or 0.0

    assert moments == [0.0, 1.0, 3.0, 127.0, 135.0]


def test_what_comes_during_an_outage_is_not_tried_before_its_time(clock: Clock) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(1))
    outbox.step()
    outbox.step()
    put(outbox, make_flows(1, 1))
    attempts = len(sink.attempts)
    run_until_idle(outbox, clock)

    assert len(sink.attempts) == attempts == 1


def test_a_full_outbox_drops_the_newest_and_says_so_at_the_place_of_the_gap(clock: Clock) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock, queue=5)
    feed(outbox, clock, make_flows(3))
    put(outbox, make_flows(4, 3))
    put(outbox, make_flows(4, 7))
    sink.away = None
    run_until_idle(outbox, clock, seconds=60.0)
    feed(outbox, clock, make_flows(2, 11))
    stats = outbox.snapshot()

    assert sink.received == [0, 1, 2, 3, 4, [6, "fake", "queue"], 11, 12]
    assert (stats.sink_events_dropped_queue_total, stats.sink_events_delivered_total) == (6, 7)


def test_the_reader_sees_how_much_there_is_room_for(clock: Clock) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock, queue=5)
    found = [outbox.get_room()]
    put(outbox, make_flows(3))
    found.append(outbox.get_room())
    outbox.disable()
    found.append(outbox.get_room())
    outbox.enable()
    put(outbox, make_flows(4, 3))
    found.append(outbox.get_room())
    sink.away = None
    run_until_idle(outbox, clock, seconds=60.0)
    found.append(outbox.get_room())

    assert found == [5, 2, 0, 0, 5]
    assert sink.received == [0, 1, 2, 3, 4, [2, "fake", "queue"]]
    assert outbox.snapshot().sink_events_dropped_queue_total == 2


@pytest.mark.parametrize("reason", ["queue", "disabled"])
def test_what_there_is_less_room_for_than_when_it_was_rendered_is_dropped_from_its_end(
    clock: Clock, reason: str
) -> None:
    sink = FakeSink()
    outbox = make_outbox(sink, clock, queue=5)
    events = make_events(5)
    if reason == "queue":
        outbox.replace(sink, 2)
    else:
        outbox.disable()
    outbox.put(events)
    outbox.enable()
    run_until_idle(outbox, clock)
    stats = outbox.snapshot()

    left = 3 if reason == "queue" else 5
    assert sink.received == [*range(5 - left), [left, "fake", reason]]
    assert (stats.sink_events_taken_total, stats.sink_events_delivered_total) == (5, 5 - left)
    assert compute_imbalance(stats) == 0


def test_events_are_rendered_for_the_sink_to_come(clock: Clock) -> None:
    other = FakeTemplate("", FAKE.syntax, {}, {})
    sink, next_sink = FakeSink(), FakeSink()
    next_sink.template = other
    outbox = make_outbox(sink, clock)
    before = outbox.template
    outbox.replace(next_sink, 10)
    meanwhile = outbox.template
    run_until_idle(outbox, clock)

    assert (before, meanwhile, outbox.template) == (FAKE, other, other)


def test_a_loss_carries_the_times_of_the_first_and_the_last_event(clock: Clock) -> None:
    seen: list[Lost] = []

    class Keeper(FakeTemplate):
        def render_loss(self, lost: Lost) -> Rendered:
            seen.append(lost)
            return super().render_loss(lost)

    sink = FakeSink()
    sink.template = Keeper("", FAKE.syntax, {}, {})
    outbox = make_outbox(sink, clock, queue=1)
    feed(outbox, clock, make_flows(3))

    assert seen == [Lost(2, BASE + 1_000_000, BASE + 2_000_000, "fake", "queue")]


def test_a_loss_of_the_kernel_reaches_the_sink_where_it_happened_and_counts_as_no_event(clock: Clock) -> None:
    sink = FakeSink()
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(2))
    outbox.report(make_lost(7))
    put(outbox, make_flows(2, 2))
    run_until_idle(outbox, clock)
    stats = outbox.snapshot()

    assert sink.received == [0, 1, [7, "kernel", ""], 2, 3]
    assert (stats.sink_events_taken_total, stats.sink_events_delivered_total) == (4, 4)


def test_a_sink_of_streams_apart_gets_the_losses_behind_what_is_written_at_once(clock: Clock) -> None:
    sink = FakeSink()
    sink.template = FakeTemplate(FAKE.text, FAKE.syntax, {}, {}, by_stream=True)
    outbox = make_outbox(sink, clock)
    for first in range(0, 6, 2):
        put(outbox, make_flows(2, first))
        outbox.report(make_lost(7))
    run_until_idle(outbox, clock)

    assert sink.received == [0, 1, 2, 3, 4, 5, [21, "kernel", ""]]
    assert (sink.opened, len(sink.attempts)) == (1, 2)


def test_a_loss_reaches_a_sink_that_has_nothing_else_to_write(clock: Clock) -> None:
    sink = FakeSink()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    outbox.report(make_lost(7))
    run_until_idle(outbox, clock)

    assert sink.received == [[7, "kernel", ""]]


def test_what_is_refused_is_dropped_counted_and_logged_once_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FakeSink(batch_events=1)
    sink.faults.extend(SinkRefused("no such tenant") for _ in range(5))
    outbox = make_outbox(sink, clock)
    for number in range(5):
        put(outbox, make_flows(1, number))
    run_until_idle(outbox, clock)
    clock.now += 60.0
    sink.faults.append(SinkRefused("no such tenant"))
    feed(outbox, clock, make_flows(2, 5))
    feed(outbox, clock, make_flows(1, 7))
    stats = outbox.snapshot()

    assert sink.numbers == [7]
    assert sink.losses == [[7, "fake", "refused"]]
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (7, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "sink fake: no such tenant, dropping 1 events",
        "sink fake: no such tenant, dropping 2 events (4 times more since the last message)",
    ]


def test_a_part_that_is_refused_does_not_count_the_rest(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.append(SinkRefused("one too long", events=1))
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(3))
    stats = outbox.snapshot()

    assert sink.losses == [[1, "fake", "refused"]]
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (1, 2)


def test_what_the_receiver_wants_in_parts_is_written_in_parts_and_in_order(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.extend([lambda payload: SinkRevised("too large", split(payload)), None, AWAY])
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(3))
    outbox.report(make_lost(7))
    put(outbox, make_flows(1, 3))
    run_until_idle(outbox, clock, seconds=10.0)

    assert sink.received == [0, 1, 2, [7, "kernel", ""], 3]
    assert outbox.snapshot().sink_events_delivered_total == 4


def test_events_that_are_in_no_part_were_refused_or_delivered_already(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.append(SinkRevised("too old", [make_events(1, 9)], written=2))
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(5))
    stats = outbox.snapshot()

    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (3, 2)


def test_only_the_rest_of_a_payload_is_repeated_when_the_first_part_was_accepted(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.append(SinkUnavailable("reset", written=2))
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(1))
    put(outbox, make_flows(2, 1))
    run_until_idle(outbox, clock)
    half = outbox.snapshot()
    run_until_idle(outbox, clock, seconds=10.0)

    assert (half.sink_events_delivered_total, half.sink_events_queued) == (2, 1)
    assert (half.sink_bytes_total, outbox.snapshot().sink_bytes_total) == (2, 3)
    assert half.sink_oldest_event_ns == make_flows(1, 1)[0].time
    assert sink.attempts[1:] == [b"[2]"]
    assert outbox.snapshot().sink_events_delivered_total == 3


def test_a_mistake_in_a_sink_costs_one_batch_and_not_the_thread(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.append(ZeroDivisionError("division by zero"))
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(3))
    feed(outbox, clock, make_flows(1, 3))

    assert sink.numbers == [3]
    assert outbox.error == "unexpected ZeroDivisionError: division by zero"
    assert outbox.snapshot().sink_events_dropped_refused_total == 3


def test_a_message_that_is_refused_alone_costs_neither_those_before_nor_those_behind_it(clock: Clock) -> None:
    sink = FakeSink()
    long = SinkRevised("too long", written=2, refused=1)
    sink.faults.extend([long, None, None, SinkRevised("too long", refused=1)])
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(5))
    feed(outbox, clock, make_flows(1, 5))
    feed(outbox, clock, make_flows(1, 6))
    stats = outbox.snapshot()

    assert sink.attempts[:2] == [b"[0, 1, 2, 3, 4]", b"[3, 4]"]
    assert sink.received == [3, 4, [1, "fake", "refused"], 6, [1, "fake", "refused"]]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (5, 2)


def test_a_loss_that_cannot_be_rendered_stops_nothing_and_is_reported_when_it_can_be(clock: Clock) -> None:
    class Picky(FakeTemplate):
        def render_loss(self, lost: Lost) -> Rendered:
            mistakes.append(lost)
            if len(mistakes) == 1:
                raise KeyError("city")
            return super().render_loss(lost)

    mistakes: list[Lost] = []
    sink = FakeSink(batch_events=2)
    sink.template = Picky("", FAKE.syntax, {}, {})
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(1))
    outbox.report(make_lost(7))
    put(outbox, make_flows(2, 1))
    run_until_idle(outbox, clock)

    assert sink.received == [0, 1, 2, [7, "kernel", ""]]
    assert outbox.error == "unexpected KeyError: 'city'"
    assert outbox.snapshot().sink_events_dropped_refused_total == 0


def test_a_loss_that_is_refused_is_reported_again_beside_what_was_refused(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.extend(
        [SinkRefused("no"), SinkRefused("no"), SinkRevised("no", refused=1), SinkRefused("no")]
    )
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(3))
    outbox.report(make_lost(7))
    outbox.report(make_lost(2, "daemon"))
    run_until_idle(outbox, clock)
    feed(outbox, clock, make_flows(1, 3))
    feed(outbox, clock, make_flows(1, 4))

    assert sink.received == [4, [4, "fake", "refused"], [7, "kernel", ""], [2, "daemon", ""]]


def test_an_error_of_the_system_is_an_outage(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.append(BrokenPipeError(32, "Broken pipe"))
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(1), seconds=10.0)

    assert outbox.error == "Broken pipe"
    assert sink.numbers == [0]


REFUSED = SinkRefused("the server replied 401")


def test_a_sink_is_well_while_its_last_write_was_not_refused_as_a_whole(clock: Clock) -> None:
    sink = FakeSink()
    outbox = make_outbox(sink, clock)
    states = []
    for fault in (None, REFUSED, REFUSED, None, SinkRefused("one is too old", 1), REFUSED):
        sink.faults.append(fault)
        feed(outbox, clock, make_flows(2))
        states.append(outbox.state.value)

    assert states == ["ok", "refused", "refused", "ok", "ok", "refused"]
    assert outbox.error == "the server replied 401"


def test_a_sink_that_refused_is_not_well_because_it_was_opened_again(clock: Clock) -> None:
    sink = FakeSink()
    sink.faults.append(REFUSED)
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(2))
    outbox.reopen()
    run_until_idle(outbox, clock)
    reopened = outbox.state
    feed(outbox, clock, make_flows(2, 2))

    assert (sink.opened, reopened, outbox.state) == (2, SinkState.REFUSED, SinkState.OK)


def test_a_mistake_in_a_sink_is_a_refusal(clock: Clock) -> None:
    class Mistaken(FakeSink):
        def write(self, parts: Sequence[Rendered]) -> int:
            raise TypeError("no such field")

    outbox = make_outbox(Mistaken(), clock)
    feed(outbox, clock, make_flows(2))

    assert (outbox.state, outbox.error) == (SinkState.REFUSED, "unexpected TypeError: no such field")


@pytest.mark.parametrize("fault", [AWAY, REFUSED], ids=["away", "refused"])
def test_that_a_sink_works_again_is_said_after_a_delivery_alone(
    clock: Clock, spool: Spool, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening it is none, and neither is a refusal; what waits on disk has to be delivered first."""
    caplog.set_level("INFO")
    sink = FakeSink()
    sink.faults.extend([AWAY, fault])
    outbox = make_outbox(sink, clock, spool=spool)
    put(outbox, make_flows(2))
    while sink.faults:
        clock.now += outbox.step() or 0.0
        assert "works again" not in caplog.text
        assert outbox.state is not SinkState.OK
    feed(outbox, clock, make_flows(2, 2), seconds=60)

    assert sink.numbers[-2:] == [2, 3]
    assert caplog.text.count("works again") == 1
    assert outbox.state is SinkState.OK


def test_no_delay_is_said_to_be_none(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sink = FakeSink()
    sink.faults.append(AWAY)
    backoff = Backoff(choose=lambda low, high: 0.01)
    put(outbox := Outbox(sink, queue=9, stats=SinkStats(), backoff=backoff, clock=clock), make_flows(1))
    run_until_idle(outbox, clock)

    assert "retrying in 0.1 s" in caplog.text


def test_a_failed_sink_stays_out_until_it_is_enabled(clock: Clock) -> None:
    reasons: list[str] = []
    sink = FakeSink()
    sink.faults.append(SinkFailed("the reader has gone"))
    outbox = Outbox(sink, queue=10, stats=SinkStats(), clock=clock, on_failed=reasons.append)
    feed(outbox, clock, make_flows(2))
    put(outbox, make_flows(3, 2))
    failed = outbox.state
    outbox.enable()
    feed(outbox, clock, make_flows(1, 5))

    assert reasons == ["the reader has gone"]
    assert (failed, outbox.state) == (SinkState.FAILED, SinkState.OK)
    assert sink.numbers == [5]
    assert outbox.snapshot().sink_events_dropped_failed_total == 5


def test_a_disabled_sink_drops_by_that_name_and_comes_back(clock: Clock) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(2))
    outbox.disable()
    run_until_idle(outbox, clock)
    feed(outbox, clock, make_flows(3, 2))
    disabled = outbox.state
    sink.away = None
    outbox.enable()
    feed(outbox, clock, make_flows(1, 5))

    assert (disabled, outbox.state) == (SinkState.DISABLED, SinkState.OK)
    assert sink.numbers == [5]
    assert outbox.snapshot().sink_events_dropped_disabled_total == 5


def test_what_a_disabled_sink_missed_is_reported_when_it_comes_back(clock: Clock) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock)
    put(outbox, make_flows(2))
    outbox.report(make_lost(7))
    outbox.disable()
    run_until_idle(outbox, clock)
    put(outbox, make_flows(3, 2))
    outbox.report(make_lost(1))
    run_until_idle(outbox, clock)
    sink.away = None
    outbox.enable()
    run_until_idle(outbox, clock)

    assert sink.received == [[8, "kernel", ""], [5, "fake", "disabled"]]
    assert outbox.state is SinkState.OK


def test_a_sink_that_is_enabled_while_it_is_being_switched_off_goes_on(clock: Clock) -> None:
    class Enabled(FakeSink):
        """Somebody enables it at the worst of moments."""

        def close(self) -> None:
            super().close()
            outbox.enable()
            put(outbox, make_flows(1, 5))

    sink = Enabled()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    outbox.disable()
    outbox.step()
    run_until_idle(outbox, clock)

    assert (outbox.state, sink.numbers) == (SinkState.OK, [5])


def test_reopening_closes_the_sink_before_the_next_write(clock: Clock) -> None:
    sink = FakeSink()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    outbox.reopen()
    run_until_idle(outbox, clock)

    assert (sink.opened, sink.closed) == (2, 1)


def test_what_can_be_written_at_once_wakes_nobody(clock: Clock) -> None:
    sink = FakeDirectSink()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    sink.room = 100
    woken = []
    for number in range(3):
        outbox._news = False
        put(outbox, make_flows(2, 2 * number))
        woken.append(outbox._news)
    stats = outbox.snapshot()

    assert woken == [False] * 3
    assert (sink.received, sink.attempts) == ([*range(6)], [])
    assert (stats.sink_events_delivered_total, stats.sink_batches_delivered_total) == (6, 3)
    assert (stats.sink_bytes_total, stats.sink_oldest_event_ns, compute_imbalance(stats)) == (6, 0, 0)


def test_what_cannot_be_written_at_once_goes_out_behind_by_the_thread(clock: Clock) -> None:
    sink = FakeDirectSink()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    sink.room = 2
    put(outbox, make_flows(3))
    sink.room = 10
    put(outbox, make_flows(3, 3))
    during = outbox.snapshot()
    run_until_idle(outbox, clock)

    assert (during.sink_events_delivered_total, during.sink_events_queued) == (2, 4)
    assert (sink.direct, sink.attempts) == ([2], [b"[2, 3, 4, 5]"])
    assert sink.numbers == [*range(6)]


@pytest.mark.parametrize(
    "case", ["not open", "a loss waits", "in flight", "disabled", "another sink", "spool"]
)
def test_no_write_overtakes_another_or_comes_between(clock: Clock, spool: Spool, case: str) -> None:
    sink = FakeDirectSink()
    outbox = make_outbox(sink, clock, spool=spool if case == "spool" else None)
    if case != "not open":
        run_until_idle(outbox, clock)
    sink.room = 100
    if case == "a loss waits":
        outbox.report(make_lost(7))
    elif case == "in flight":
        sink.faults.append(lambda _: outbox.put(make_events(1, 5)))  # while it writes
        outbox.report(make_lost(7))
        run_until_idle(outbox, clock)
        sink.room = 0
        assert sink.received == [[7, "kernel", ""], 5]
    elif case == "disabled":
        outbox.disable()
    elif case == "another sink":
        outbox.replace(FakeSink(), 10)
    outbox.put(make_events(2))

    assert sink.direct == ([0] if case == "in flight" else [])  # the last one, when all is done
    assert compute_imbalance(outbox.snapshot()) == 0


def test_what_comes_while_the_thread_finds_nothing_to_do_is_not_written_past_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader renders for the sink to come by then."""
    sink = FakeDirectSink()
    outbox = make_outbox(sink, clock)
    load = outbox._load

    def replace_and_load(now: float) -> bool:
        outbox.replace(FakeSink(), 10)
        return load(now)

    outbox.step()
    monkeypatch.setattr(outbox, "_load", replace_and_load)
    outbox.step()
    sink.room = 100
    outbox.put(make_events(2))

    assert sink.direct == []


def test_a_mistake_in_a_direct_write_ends_no_reader(clock: Clock) -> None:
    class Mistaken(FakeDirectSink):
        def try_write(self, rendered: Rendered) -> tuple[int, int]:
            raise KeyError("descriptor")

    sink = Mistaken()
    outbox = make_outbox(sink, clock)
    run_until_idle(outbox, clock)
    feed(outbox, clock, make_flows(3))

    assert (sink.numbers, outbox.state) == ([0, 1, 2], SinkState.OK)


def test_the_oldest_that_a_kill_would_take_is_an_event_or_a_loss_that_no_sink_has(clock: Clock) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock)
    found = [outbox.find_oldest()]
    put(outbox, make_flows(2))
    found.append(outbox.find_oldest())
    outbox.step()
    outbox.step()  # it is being written
    found.append(outbox.find_oldest())
    outbox.report(Lost(ABSENT, 7, 8, "daemon"))
    found.append(outbox.find_oldest())
    sink.away = None
    run_until_idle(outbox, clock, seconds=60.0)
    found.append(outbox.find_oldest())
    sink.away = SinkRefused("no")
    feed(outbox, clock, make_flows(1, 2))  # what was refused is reported when something else is taken
    found.append(outbox.find_oldest())
    outbox.disable()
    found.append(outbox.find_oldest())

    first, third = (make_flows(1, number)[0].time for number in (0, 2))
    assert found == [None, first, first, 7, None, third, None]


def test_text_is_left_for_a_file_alone_and_no_more_than_there_is_room_for(clock: Clock) -> None:
    writer = FakeWriter()
    outbox, other = (
        make_outbox(sink, clock, queue=10, writer=writer) for sink in (FakeDirectSink(), FakeSink())
    )

    assert (outbox.lend_writer(10), outbox.lend_writer(11), other.lend_writer(1)) == (writer, None, None)


def test_what_is_left_is_counted_when_the_reader_counts_it_too(clock: Clock) -> None:
    """The sums of stats.py hold at every moment: see Pipeline.lock."""
    writer, flows = FakeWriter(), make_flows(8)
    outbox = make_outbox(FakeDirectSink(), clock, writer=writer)
    run_until_idle(outbox, clock)
    writer.start()
    found = [show_sums(outbox)]
    writer.offer(render(flows[:5]))
    writer.offer(render(flows[5:]))
    found.append(show_sums(outbox))
    writer.write(4)
    found.append(show_sums(outbox))
    outbox.end_loan(Passed(left=3))  # of one reader, while another goes on
    found.append(show_sums(outbox))
    outbox.end_loan(Passed(left=5))

    assert found == [(0, 0, 0), (0, 0, 0), (0, 0, 0), (3, 3, 0)]
    assert show_sums(outbox) == (8, 4, 4)
    outbox.stop(clock.now)


def show_sums(outbox: Outbox) -> tuple[int, int, int]:
    stats = outbox.snapshot()
    return stats.sink_events_taken_total, stats.sink_events_delivered_total, stats.sink_events_queued


def test_what_a_sink_that_is_out_cannot_get_is_dropped_when_a_reader_counts_it(clock: Clock) -> None:
    """Until then nobody can see that it was taken."""
    writer, flows = FakeWriter(), make_flows(8)
    outbox = make_outbox(FakeDirectSink(), clock, writer=writer)
    run_until_idle(outbox, clock)

    def leave() -> None:
        assert writer.offer(render(flows))

    writer.script = leave
    outbox.run_writer()
    outbox.disable()
    waits = [outbox.step()]
    dropped = [sum_dropped(outbox.snapshot())]
    outbox.end_loan(Passed(left=8))
    waits.append(outbox.step())
    dropped.append(sum_dropped(outbox.snapshot()))

    assert (dropped, waits[0] is None, waits[1]) == ([0, 8], False, None)
    assert show_sums(outbox) == (8, 0, 0)


@pytest.mark.parametrize("trouble", ["news", "away", "spool"])
def test_the_thread_does_not_leave_itself_to_the_writer_while_it_has_something_to_do(
    clock: Clock, tmp_path: Path, trouble: str
) -> None:
    sink, writer, runs = FakeDirectSink(), FakeWriter(), []
    writer.script = lambda: runs.append(trouble)
    spool = Spool(tmp_path, "fake", 1 << 20) if trouble == "spool" else None
    outbox = make_outbox(sink, clock, spool=spool, writer=writer)
    if trouble == "away":
        sink.open_faults.append(AWAY)
    run_until_idle(outbox, clock, seconds=10.0)
    if trouble == "news":
        outbox.flush(0.0)

    assert (outbox.run_writer(), runs) == (False, [])
    outbox.stop(clock.now)


def test_what_a_writer_could_not_write_is_written_by_the_thread(clock: Clock) -> None:
    sink, writer, flows = FakeDirectSink(), FakeWriter(), make_flows(8)
    outbox = make_outbox(sink, clock, writer=writer)
    run_until_idle(outbox, clock)

    def leave() -> None:
        assert writer.offer(render(flows[:5]))
        assert writer.offer(render(flows[5:]))
        writer.write(3)

    writer.script = leave
    served = outbox.run_writer()
    outbox.end_loan(Passed(left=8))
    queued = outbox.snapshot().sink_events_queued
    run_until_idle(outbox, clock)

    assert (served, queued) == (True, 5)
    assert sink.numbers == [3, 4, 5, 6, 7]
    assert outbox.snapshot().sink_events_delivered_total == 8


def test_what_is_dropped_after_a_writer_is_no_older_than_it_is(clock: Clock) -> None:
    sink, writer, flows = FakeDirectSink(batch_wait=1.0), FakeWriter(), make_flows(3)
    outbox = make_outbox(sink, clock, writer=writer)
    run_until_idle(outbox, clock)

    def leave() -> None:
        assert writer.offer(render(flows[:1]))

    writer.script = leave
    outbox.run_writer()
    outbox.end_loan(Passed(left=1))
    outbox.step()
    put(outbox, flows[1:])
    outbox.disable()
    outbox.step()
    (lost,) = outbox._waiting.pop_losses()

    assert sink.numbers == [0]
    assert (lost.count, lost.since) == (2, flows[1].time)


@pytest.mark.parametrize("what", ["events", "a loss"])
def test_no_more_is_left_for_a_writer_once_something_waits_for_the_thread(clock: Clock, what: str) -> None:
    sink, writer, flows = FakeDirectSink(), FakeWriter(), make_flows(4)
    outbox = make_outbox(sink, clock, writer=writer)
    run_until_idle(outbox, clock)
    taken: list[bool] = []

    def leave() -> None:
        taken.append(writer.offer(render(flows[:2])))
        put(outbox, flows[2:3]) if what == "events" else outbox.report(make_lost(3))
        taken.append(writer.offer(render(flows[3:])))

    writer.script = leave
    outbox.run_writer()
    run_until_idle(outbox, clock)

    assert taken == [True, False]
    assert sink.numbers == ([0, 1, 2] if what == "events" else [0, 1])
