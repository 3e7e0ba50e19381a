"""The outbox with its thread: draining, stopping, and living through what nobody thought of."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.loan import Loan, Passed, Way, Written
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import Sink, SinkRefused, SinkRevised, SinkState, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.stream import StreamSink
from conntrackd.stats import SinkStats
from tests.delivery.fakes import (
    AWAY,
    FakeDirectSink,
    FakeSink,
    FakeWriter,
    compute_imbalance,
    make_events,
    make_lost,
    put,
    render,
    split,
)
from tests.delivery.test_outbox_law import MemoryStore
from tests.sinks.flows import make_flows
from tests.sinks.syslog_servers import wait_until


def make_running(
    sink: Sink, queue: int = 1000, spool: Spool | None = None, writer: FakeWriter | None = None
) -> Outbox:
    backoff = Backoff(0.001, 0.01)
    outbox = Outbox(sink, queue=queue, stats=SinkStats(), spool=spool, backoff=backoff, writer=writer)
    outbox.start()
    return outbox


def test_flush_returns_when_everything_has_left_and_skips_all_waiting() -> None:
    sink = FakeSink(batch_events=1000, batch_wait=3600.0)
    outbox = make_running(sink)
    put(outbox, make_flows(5))
    flushed = outbox.flush(30.0)
    received = list(sink.numbers)
    outbox.stop(time.monotonic())

    assert flushed
    assert received == [0, 1, 2, 3, 4]


def test_flush_gives_up_when_the_sink_stays_away() -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_running(sink)
    put(outbox, make_flows(5))
    flushed = outbox.flush(0.05)
    outbox.stop(time.monotonic())

    assert not flushed


def test_stop_drains_what_waits() -> None:
    sink = FakeSink(batch_events=7, batch_wait=3600.0)
    sink.faults.extend([AWAY] * 3)
    outbox = make_running(sink)
    put(outbox, make_flows(100))
    outbox.stop(time.monotonic() + 30.0)

    assert sink.numbers == list(range(100))
    assert compute_imbalance(outbox.snapshot()) == 0


def test_stop_counts_and_logs_what_the_time_did_not_suffice_for(caplog: pytest.LogCaptureFixture) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_running(sink)
    put(outbox, make_flows(100))
    outbox.stop(time.monotonic() + 0.05)
    stats = outbox.snapshot()

    assert stats.sink_events_dropped_shutdown_total == 100
    assert (stats.sink_events_queued, compute_imbalance(stats)) == (0, 0)
    reported = "sink fake: the time to stop is over, dropping 100 events"
    assert caplog.records[-1].getMessage() == reported


class HangingSink(FakeSink):
    """Its write returns when the test says so; what is closed hangs on, as a lost NFS server would."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = threading.Event()
        self.let_go = threading.Event()

    def write(self, parts: Sequence[Rendered]) -> int:
        self.hangs.set()
        assert self.let_go.wait(60.0)
        return super().write(parts)


def test_a_sink_that_hangs_neither_holds_up_put_nor_stop_and_its_events_are_on_disk(tmp_path: Path) -> None:
    sink = HangingSink()
    outbox = make_running(sink, queue=100, spool=Spool(tmp_path, "fake", 1 << 20))
    put(outbox, make_flows(10))
    assert sink.hangs.wait(30.0)
    for first in range(10, 200, 10):
        put(outbox, make_flows(10, first))
    outbox.stop(time.monotonic() + 0.05)
    stats = outbox.snapshot()
    sink.let_go.set()
    spool = Spool(tmp_path, "fake", 1 << 20)
    events = spool.events
    spool.close()

    assert sink.closed
    assert (stats.sink_events_spooled, stats.sink_events_dropped_queue_total) == (100, 100)
    assert compute_imbalance(stats) == 0
    assert events == 100


def test_a_sink_that_hangs_without_a_spool_loses_by_name() -> None:
    sink = HangingSink()
    outbox = make_running(sink, queue=100)
    put(outbox, make_flows(10))
    assert sink.hangs.wait(30.0)
    put(outbox, make_flows(10, 10))
    outbox.stop(time.monotonic() + 0.05)
    stats = outbox.snapshot()
    sink.let_go.set()

    assert (stats.sink_events_dropped_shutdown_total, compute_imbalance(stats)) == (20, 0)


def test_what_a_sink_kept_open_while_it_hung_is_closed_when_it_returns(tmp_path: Path) -> None:
    """Else each reload that takes such a sink away would leave a file open."""
    sink, hangs, let_go = StreamSink(tmp_path / "events"), threading.Event(), threading.Event()
    writer = FakeWriter()

    def hang() -> None:
        hangs.set()
        assert let_go.wait(60.0)

    writer.script = hang
    outbox = make_running(sink, writer=writer)
    assert hangs.wait(30.0)
    outbox.stop(time.monotonic() + 0.05)
    was_open = sink.can_run_writer()
    let_go.set()
    outbox._thread.join()

    assert (was_open, sink.can_run_writer()) == (True, False)


def test_a_writer_that_hangs_loses_what_was_left_for_it_by_name() -> None:
    """And what comes after it, which nobody can write before."""
    writer, hangs, let_go = FakeWriter(), threading.Event(), threading.Event()
    flows = make_flows(10)

    def hang() -> None:
        writer.offer(render(flows[:4]))
        writer.offer(render(flows[4:8]))
        writer.write(3)
        hangs.set()
        assert let_go.wait(60.0)

    writer.script = hang
    outbox = make_running(FakeDirectSink(), writer=writer)
    assert hangs.wait(30.0)
    outbox.end_loan(Passed(left=8))
    before, oldest = outbox.snapshot(), outbox.find_oldest()
    assert writer.offer(render(flows[8:9]))
    outbox.end_loan(Passed(left=1))
    put(outbox, flows[9:])
    writer.write(1)
    outbox.stop(time.monotonic() + 0.05)
    stats, still = outbox.snapshot(), writer.take_rest()
    let_go.set()
    outbox._thread.join()

    assert (before.sink_events_delivered_total, before.sink_events_queued) == (3, 5)
    assert before.sink_oldest_event_ns == oldest == flows[0].time
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_shutdown_total) == (4, 6)
    assert compute_imbalance(stats) == 0
    assert len(still) == 1  # the write that hangs, after which nothing more is touched
    assert (outbox.snapshot(), outbox.find_oldest()) == (stats, None)


def test_the_sum_holds_at_every_moment_that_another_thread_can_see() -> None:
    sink = FakeSink(batch_events=5)
    for _ in range(50):
        sink.faults.extend([None, AWAY, SinkRefused("no"), lambda events: SinkRevised("", split(events))])
    outbox = make_running(sink, queue=40)
    imbalances = set()
    for first in range(0, 3000, 3):
        put(outbox, make_flows(3, first))
        imbalances.add(compute_imbalance(outbox.snapshot()))
    outbox.stop(time.monotonic() + 30.0)
    stats = outbox.snapshot()

    assert imbalances == {0}
    assert sink.numbers == sorted(set(sink.numbers))
    assert (stats.sink_events_taken_total, compute_imbalance(stats)) == (3000, 0)
    assert stats.sink_events_delivered_total == len(sink.numbers)


class Mistaken(MemoryStore):
    """Raises what no spool may raise, until it is mended."""

    is_mended = False

    @property
    def rows(self) -> int:
        if not self.is_mended:
            raise TypeError("not a packed")
        return super().rows


def test_a_mistake_in_a_spool_costs_the_sink_and_not_its_thread() -> None:
    store, sink, failed = Mistaken(), FakeSink(), threading.Event()
    store.is_mended = True
    reasons: list[str] = []
    sink.away = SinkUnavailable("away")

    def note(reason: str) -> None:
        reasons.append(reason)
        failed.set()

    outbox = Outbox(sink, queue=100, stats=SinkStats(), spool=store, on_failed=note)
    store.is_mended = False
    outbox.start()
    put(outbox, make_flows(10))

    assert failed.wait(10)
    assert (outbox.state, reasons[0]) == (SinkState.FAILED, "unexpected TypeError: not a packed")
    put(outbox, make_flows(10))
    assert compute_imbalance(outbox.snapshot()) == 0

    store.is_mended, sink.away = True, None
    outbox.enable()
    put(outbox, make_flows(10))
    assert outbox.flush(10)
    assert len(sink.numbers) >= 10
    outbox.stop(0)


class NarrowSink(FakeDirectSink):
    """Takes some at once, and now and then nothing, as a pipe with a reader does."""

    def try_write(self, rendered: Rendered) -> tuple[int, int]:
        self.room = (7 * len(self.direct)) % 5
        return super().try_write(rendered)


def test_two_threads_write_to_one_sink_and_each_event_arrives_once_and_in_its_place() -> None:
    sink = NarrowSink()
    sink.faults.extend([AWAY, None, None] * 50)
    outbox = make_running(sink, queue=5000)
    imbalances = set()
    for first in range(0, 3000, 3):
        put(outbox, make_flows(3, first))
        if first % 30 == 0:
            assert outbox.flush(30.0)
        imbalances.add(compute_imbalance(outbox.snapshot()))
    outbox.stop(time.monotonic() + 30.0)
    stats = outbox.snapshot()

    assert imbalances == {0}
    assert sink.numbers == list(range(3000))
    assert stats.sink_events_delivered_total == 3000
    assert sum(sink.direct) > 100


def test_the_thread_leaves_a_sink_alone_that_the_reader_has() -> None:
    sink = FakeDirectSink()
    outbox = make_running(sink)
    put(outbox, make_flows(2))
    assert outbox.flush(10)
    sink.loan = Loan(Way.DISCARD)
    wait_until(outbox.lend, "the thread to come to rest")  # what was flushed is delivered before
    outbox.report(make_lost(3))
    outbox.disable()
    time.sleep(0.05)
    during = (sink.closed, sink.losses)
    outbox.end_loan(Passed([Written(7, 8, 4, 40)]))
    outbox.stop(time.monotonic() + 10)
    stats = outbox.snapshot()

    assert (during, sink.closed > 0) == ((0, []), True)
    assert (stats.sink_events_taken_total, stats.sink_events_delivered_total) == (6, 6)
    assert (stats.sink_batches_delivered_total, compute_imbalance(stats)) == (2, 0)


def test_what_a_reader_could_not_write_waits_for_the_thread_and_begins_where_it_ended() -> None:
    sink = FakeDirectSink()
    outbox = make_running(sink)
    sink.loan = Loan(Way.DISCARD)
    wait_until(outbox.lend, "the thread to come to rest")
    outbox.end_loan(Passed(rest=make_events(3), torn=2))
    assert outbox.flush(10)
    outbox.stop(time.monotonic() + 10)

    assert (sink.begun, sink.numbers) == (b"01", [0, 1, 2])
