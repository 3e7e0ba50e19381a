"""How late events are when their sink has them: counted once, and only where the kernel gives their time."""

import pytest

from conntrackd.delivery.delays import BOUNDS, DelayCounts, Delays
from conntrackd.delivery.sink import SinkRefused, SinkState
from conntrackd.flow import NANO
from tests.delivery.fakes import Clock, FakeDirectSink, FakeSink, make_events, make_outbox, run_until_idle

NOW_NS = 1_800_000_000 * NANO


def make_delays() -> Delays:
    delays = Delays(lambda: NOW_NS)
    delays.is_timed = True
    return delays


@pytest.mark.parametrize(
    ("delay_ns", "bucket"),
    [(0, 0), (5_000_000, 0), (5_000_001, 1), (3600 * NANO, len(BOUNDS) - 1), (3601 * NANO, len(BOUNDS))],
)
def test_events_are_in_the_bucket_of_their_delay(delay_ns: int, bucket: int) -> None:
    delays = make_delays()

    delays.add(NOW_NS - delay_ns, 3)

    found = delays.snapshot()
    assert [number for number, events in enumerate(found.events) if events] == [bucket]
    assert found.events[bucket] == 3
    assert found.seconds == pytest.approx(3 * delay_ns / NANO)


def test_a_clock_that_was_set_back_makes_no_negative_delay() -> None:
    delays = make_delays()

    delays.add(NOW_NS + NANO, 2)

    assert delays.snapshot() == DelayCounts((2, *[0] * len(BOUNDS)), 0.0)


def test_what_is_delivered_is_counted_once_and_what_is_refused_is_not(clock: Clock) -> None:
    sink = FakeSink(batch_events=5)
    sink.faults.extend([None, SinkRefused("too bad")])
    outbox = make_outbox(sink, clock)
    outbox.delays.is_timed = True
    for count in (5, 3):
        outbox.put(make_events(count))
        run_until_idle(outbox, clock)

    assert sum(outbox.count_delays().events) == outbox.snapshot().sink_events_delivered_total == 5


def test_what_is_written_at_once_is_counted_too(clock: Clock) -> None:
    sink = FakeDirectSink()
    outbox = make_outbox(sink, clock)
    outbox.delays.is_timed = True
    run_until_idle(outbox, clock)
    assert outbox.state is SinkState.OK
    sink.room = 4
    outbox.put(make_events(6))
    assert sum(outbox.count_delays().events) == 4
    run_until_idle(outbox, clock)

    assert sum(outbox.count_delays().events) == 6


def test_without_the_kernels_time_nothing_is_counted(clock: Clock) -> None:
    outbox = make_outbox(FakeSink(), clock)
    outbox.put(make_events(6))
    run_until_idle(outbox, clock)

    assert outbox.snapshot().sink_events_delivered_total == 6
    assert outbox.count_delays() == DelayCounts()
