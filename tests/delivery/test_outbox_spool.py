"""The outbox with a spool behind it: what goes to disk in an outage, and how it comes back."""

import errno
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkRefused, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.flow import Lost
from conntrackd.render.anonymize import Anonymizer
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats
from tests.delivery.fakes import (
    AWAY,
    Clock,
    FakeSink,
    feed,
    make_lost,
    make_outbox,
    put,
    render_fat,
    run_until_idle,
)
from tests.sinks.flows import BASE, make_flows


def test_disabling_keeps_on_disk_what_waits(clock: Clock, spool: Spool) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock, spool=spool)
    feed(outbox, clock, make_flows(2))
    put(outbox, make_flows(2, 2))
    outbox.disable()
    run_until_idle(outbox, clock)
    on_disk = outbox.snapshot().sink_events_spooled
    sink.away = None
    outbox.enable()
    run_until_idle(outbox, clock)

    assert on_disk == 4
    assert sink.numbers == [0, 1, 2, 3]


def test_the_age_of_the_oldest_event_is_known_wherever_it_waits(clock: Clock, spool: Spool) -> None:
    sink = FakeSink(batch_wait=5.0, away=AWAY)
    outbox = make_outbox(sink, clock, spool=spool)
    run_until_idle(outbox, clock)
    ages = [outbox.snapshot().sink_oldest_event_ns]
    put(outbox, make_flows(2))
    ages.append(outbox.snapshot().sink_oldest_event_ns)
    run_until_idle(outbox, clock, seconds=6.0)
    put(outbox, make_flows(2, 2))
    ages.append(outbox.snapshot().sink_oldest_event_ns)
    sink.away = None
    run_until_idle(outbox, clock, seconds=60.0)
    ages.append(outbox.snapshot().sink_oldest_event_ns)

    assert ages == [0, BASE, BASE, 0]
    assert outbox.snapshot().sink_events_delivered_total == 4


def test_an_outage_goes_to_disk_and_everything_comes_back_in_order(clock: Clock, spool: Spool) -> None:
    sink = FakeSink(batch_events=10, away=AWAY)
    outbox = make_outbox(sink, clock, queue=50, spool=spool)
    for first in range(0, 1000, 10):
        feed(outbox, clock, make_flows(10, first), seconds=1.0)
    away = outbox.snapshot()
    sink.away = None
    feed(outbox, clock, make_flows(10, 1000), seconds=60.0)
    back = outbox.snapshot()

    assert (away.sink_events_spooled, away.sink_events_queued, away.sink_batches_delivered_total) == (
        1000,
        0,
        0,
    )
    assert sink.numbers == list(range(1010))
    assert (back.sink_events_delivered_total, back.sink_events_spooled, spool.rows) == (1010, 0, 0)


def test_what_was_being_written_is_the_first_on_disk_and_the_same_bytes(clock: Clock, spool: Spool) -> None:
    sink = FakeSink()
    sink.faults.append(AWAY)
    outbox = make_outbox(sink, clock, spool=spool)
    feed(outbox, clock, make_flows(3), seconds=10.0)

    assert sink.attempts == [b"[0, 1, 2]"] * 2


def test_what_comes_while_the_spool_is_emptied_is_on_disk_behind_it(clock: Clock, spool: Spool) -> None:
    sink = FakeSink(batch_events=2, away=AWAY)
    outbox = make_outbox(sink, clock, spool=spool)
    for first in range(0, 6, 2):
        feed(outbox, clock, make_flows(2, first))
    sink.away = None
    clock.now += 60.0
    outbox.step()
    put(outbox, make_flows(2, 6))
    outbox.step()
    outbox.step()
    during = outbox.snapshot()
    run_until_idle(outbox, clock)

    assert (during.sink_events_delivered_total, during.sink_events_queued) == (4, 0)
    assert during.sink_events_spooled == 4
    assert sink.numbers == list(range(8))


def test_the_text_of_a_rule_is_not_on_disk_for_a_sink_without_addresses(
    clock: Clock, spool: Spool, tmp_path: Path
) -> None:
    sink = FakeSink()
    sink.template, sink.away = sink.template.anonymize(Anonymizer()), AWAY
    outbox = make_outbox(sink, clock, spool=spool)
    outbox.report(Lost(5, BASE, BASE, "filter", "log source address 10.0.0.77 limit 1/second", 3))
    run_until_idle(outbox, clock)
    on_disk = [path.read_bytes() for path in tmp_path.iterdir()]

    assert any(b'"filter", "", 3]' in data for data in on_disk)
    assert not any(b"10.0.0.77" in data for data in on_disk)


def test_a_loss_reported_during_an_outage_is_on_disk_too(clock: Clock, spool: Spool) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock, spool=spool)
    feed(outbox, clock, make_flows(1))
    outbox.report(make_lost(9))
    run_until_idle(outbox, clock)
    rows = spool.rows
    sink.away = None
    run_until_idle(outbox, clock, seconds=10.0)

    assert rows == 2
    assert sink.received == [0, [9, "kernel", ""]]


def test_a_full_spool_drops_the_oldest_and_reports_how_many(clock: Clock, tmp_path: Path) -> None:
    sink = FakeSink(batch_events=1, away=AWAY)
    outbox = make_outbox(sink, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    for number in range(100):
        put(outbox, make_flows(1, number), render_fat)
        run_until_idle(outbox, clock)
    sink.away = None
    run_until_idle(outbox, clock, seconds=60.0)
    stats = outbox.snapshot()
    outbox.stop(clock.now)

    dropped = stats.sink_events_dropped_spool_total
    assert 70 < dropped < 90
    # The one that was tried first is not dropped: the receiver may have it already.
    assert sorted({*sink.numbers, *range(100 - len(sink.numbers), 100)}) == sorted(sink.numbers)
    assert len(sink.numbers) == 100 - dropped
    assert sum(loss[0] for loss in sink.losses) == dropped  # type: ignore[index]
    assert {loss[2] for loss in sink.losses} == {"spool"}  # type: ignore[index]


def test_events_of_an_earlier_run_are_restored_and_delivered_first(clock: Clock, tmp_path: Path) -> None:
    sink = FakeSink(away=AWAY)
    outbox = make_outbox(sink, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    feed(outbox, clock, make_flows(3))
    outbox.stop(clock.now)
    second = FakeSink()
    outbox = make_outbox(second, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    feed(outbox, clock, make_flows(2, 3))
    stats = outbox.snapshot()
    outbox.stop(clock.now)

    assert second.numbers == [0, 1, 2, 3, 4]
    assert (stats.sink_events_restored_total, stats.sink_events_taken_total) == (3, 2)


# ---- the end


def test_a_loss_that_was_not_yet_reported_is_reported_by_the_next_process(
    clock: Clock, tmp_path: Path
) -> None:
    """What was refused is told when something is accepted, and nothing was any more."""
    sink = FakeSink()
    sink.faults.append(SinkRefused("no"))
    outbox = make_outbox(sink, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    feed(outbox, clock, make_flows(3))
    outbox.stop(clock.now)
    second = FakeSink()
    outbox = make_outbox(second, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    run_until_idle(outbox, clock)
    outbox.stop(clock.now)

    assert (sink.received, second.received) == ([], [[3, "fake", "refused"]])


def test_without_a_spool_the_log_has_what_the_sink_did_not_get(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FakeSink()
    sink.faults.append(SinkRefused("no"))
    outbox = make_outbox(sink, clock)
    feed(outbox, clock, make_flows(3))
    outbox.stop(clock.now)

    assert "sink fake: ended before the loss could be reported (refused: 3)" in caplog.text


def test_what_the_disk_does_not_take_at_the_end_is_a_number_there(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk has room for that."""
    sink = FakeSink(away=AWAY)
    spool = Spool(tmp_path, "fake", 1 << 20)
    outbox = make_outbox(sink, clock, spool=spool)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "_write", refuse)
    put(outbox, make_flows(3))
    outbox.report(make_lost(9))
    run_until_idle(outbox, clock)
    outbox.stop(clock.now)
    stats = outbox.snapshot()
    monkeypatch.undo()
    second = FakeSink()
    outbox = make_outbox(second, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    run_until_idle(outbox, clock)
    outbox.stop(clock.now)

    assert stats.sink_events_dropped_shutdown_total == 3
    assert sorted(second.received, key=str) == [[3, "fake", "shutdown"], [9, "kernel", ""]]


def test_a_loss_in_what_falls_over_the_bound_is_reported_all_the_same(clock: Clock, tmp_path: Path) -> None:
    sink = FakeSink(batch_events=1, away=AWAY)
    outbox = make_outbox(sink, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    sent, lost = 0, 0
    for number in range(100):
        put(outbox, make_flows(1, number), render_fat)
        outbox.report(make_lost(number))
        sent, lost = sent + 1, lost + number
        run_until_idle(outbox, clock)
    sink.away = None
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)

    announced: dict[object, int] = {}
    for loss in sink.losses:
        count, where, reason = cast(tuple[int, str, str], loss)
        announced[where, reason] = announced.get((where, reason), 0) + count
    assert announced["kernel", ""] == lost
    assert len(sink.numbers) + announced["fake", "spool"] == sent


def test_whoever_stops_twice_waits_for_no_sink_and_loses_nothing(clock: Clock, tmp_path: Path) -> None:
    writing, closed = threading.Event(), threading.Event()

    class Hung(FakeSink):
        def write(self, parts: Sequence[Rendered]) -> int:
            writing.set()
            assert closed.wait(20.0)
            raise SinkUnavailable("closed")

        def close(self) -> None:
            if writing.is_set():
                closed.set()

    outbox = Outbox(
        Hung(), queue=1000, stats=SinkStats(), spool=Spool(tmp_path, "fake", 1 << 20), clock=time.monotonic
    )
    outbox.start()
    put(outbox, make_flows(3))
    assert writing.wait(20.0)
    put(outbox, make_flows(2, 3))
    stopping = threading.Thread(target=outbox.stop, args=(time.monotonic() + 600.0,))
    stopping.start()
    outbox.begin_stop(time.monotonic())
    stopping.join(20.0)
    assert not stopping.is_alive()
    second = FakeSink()
    outbox = make_outbox(second, clock, spool=Spool(tmp_path, "fake", 1 << 20))
    run_until_idle(outbox, clock)
    outbox.stop(clock.now)

    assert second.received == [0, 1, 2, 3, 4]


def test_the_oldest_that_a_kill_would_take_is_known_on_its_way_to_the_disk_and_from_there_on_none(
    clock: Clock, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FakeSink(batch_wait=5.0, away=AWAY)
    outbox = make_outbox(sink, clock, spool=spool)
    put(outbox, make_flows(2))
    found = [outbox.find_oldest()]
    append = Spool.append

    def look_and_append(*arguments: Any, **named: Any) -> Any:
        found.append(outbox.find_oldest())
        return append(*arguments, **named)

    monkeypatch.setattr(Spool, "append", look_and_append)
    run_until_idle(outbox, clock, seconds=6.0)  # what was being written
    assert outbox.snapshot().sink_events_spooled == 2
    found.append(outbox.find_oldest())
    feed(outbox, clock, make_flows(2, 2), seconds=6.0)  # what waited
    assert outbox.snapshot().sink_events_spooled == 4
    found.append(outbox.find_oldest())

    first, third = (make_flows(1, number)[0].time for number in (0, 2))
    assert found == [first, first, None, third, None]
