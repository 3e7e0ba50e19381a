"""progress.py: what the state of a sink does not show."""

from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkRefused
from conntrackd.progress import RECENT_SECONDS, Progress
from conntrackd.stats import SinkStats
from tests.delivery.fakes import Clock, FakeSink, feed, put, run_until_idle
from tests.sinks.flows import make_flows


def make(sink: FakeSink, clock: Clock) -> tuple[Outbox, Progress]:
    outbox = Outbox(sink, queue=4, stats=SinkStats(), clock=clock)
    progress = Progress(clock)
    progress.look("fake", outbox)
    return outbox, progress


def test_a_full_queue_is_a_trouble_until_nothing_is_dropped_any_more() -> None:
    clock = Clock()
    outbox, progress = make(FakeSink(), clock)
    put(outbox, make_flows(9))
    progress.look("fake", outbox)
    during = progress.describe_trouble("fake", outbox)
    run_until_idle(outbox, clock)
    clock.now += RECENT_SECONDS
    progress.look("fake", outbox)

    assert during == "drops events: its queue is full"
    assert progress.describe_trouble("fake", outbox) == ""


def test_a_part_that_is_refused_is_a_trouble_too() -> None:
    clock, sink = Clock(), FakeSink()
    outbox, progress = make(sink, clock)
    sink.faults.append(SinkRefused("one is too old", 1))
    feed(outbox, clock, make_flows(3))
    progress.look("fake", outbox)

    assert outbox.state.value == "ok"
    assert progress.describe_trouble("fake", outbox) == "drops events: refused"


def test_what_waits_while_nothing_leaves_is_a_trouble() -> None:
    """As before a pipe that nobody reads: the thread hangs in its write, and the state is the last one."""
    clock = Clock()
    outbox, progress = make(FakeSink(batch_wait=2.0), clock)
    put(outbox, make_flows(2))
    reported = []
    for _ in range(3):
        progress.look("fake", outbox)
        reported.append(progress.describe_trouble("fake", outbox))
        clock.now += RECENT_SECONDS
    run_until_idle(outbox, clock)
    progress.look("fake", outbox)

    assert reported == ["", "", "has stalled: events wait and none is delivered"]
    assert progress.describe_trouble("fake", outbox) == ""


def test_what_a_person_has_switched_off_is_no_trouble() -> None:
    clock = Clock()
    outbox, progress = make(FakeSink(), clock)
    outbox.disable()
    put(outbox, make_flows(2))
    outbox.step()
    progress.look("fake", outbox)

    assert outbox.snapshot().sink_events_dropped_disabled_total == 2
    assert progress.describe_trouble("fake", outbox) == ""
