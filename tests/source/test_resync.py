"""resync.py: what is remembered, what of the table is reported, in what order with the events."""

import pytest

from conntrackd.engine import SLOTS, Engine, EventBatch
from conntrackd.errors import UnavailableError
from conntrackd.flow import EventType, Flow
from conntrackd.source.resync import PAUSE_SECONDS, SETTLE_SECONDS, SLACK, Resync
from conntrackd.stats import Stats
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.messages import build_message
from tests.sinks.flows import make_flow


class Table:
    """Gives its chunks of flows one after the other, then nothing; an error where there is one."""

    def __init__(self) -> None:
        self.chunks: list[list[Flow]] = []
        self.begun = 0
        self.is_broken = False
        self._left: list[list[Flow]] = []

    def begin(self) -> None:
        self.begun += 1
        self._left = list(self.chunks)

    def read(self, batch: EventBatch) -> bool:
        if self.is_broken:
            raise UnavailableError("broken")
        batch.load(join(*self._left.pop(0)) if self._left else b"", 0, RECEIVED_NS)
        return len(batch) > 0


def join(*flows: Flow) -> bytes:
    return b"".join(map(build_message, flows))


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name, autouse=True)
def bench_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "engine", request.param)


class Bench:
    """A Resync with a clock of the test's own."""

    engine: Engine = ENGINES[0]

    def __init__(self, *, after_loss: bool = True) -> None:
        self.table, self.stats, self.now = Table(), Stats(), 100.0
        self.resync = Resync(
            self.table,  # type: ignore[arg-type]  # has what is asked of it
            self.engine,
            self.stats,
            after_loss=after_loss,
            clock=lambda: self.now,
        )
        self._batch = self.engine.open_batch()

    def note(self, *flows: Flow, kept: bool = True) -> None:
        self._batch.load(join(*flows), 0, RECEIVED_NS)
        everything = self._batch.of_types(None, -1)
        self.resync.note(self._batch, everything if kept else b"")

    def read(self) -> list[int]:
        """To the end of a reading, everything kept; the ids that are reported."""
        reported = []
        for _ in range(50):
            self.now += SETTLE_SECONDS
            fresh, batch = self.resync.step(), self.resync.batch
            reported += [batch.describe(index)["id"] for index in memoryview(fresh).cast("H")]
            self.resync.note_reported(batch, fresh)
        assert not self.resync.is_reading
        return reported


def flow(number: int, kind: EventType = EventType.UPDATE) -> Flow:
    return make_flow(number, kind)


def test_flows_that_nobody_reported_are_reported_once() -> None:
    bench = Bench()
    bench.table.chunks = [[flow(1), flow(2), flow(3), flow(1)], [flow(3), flow(4)]]
    bench.note(flow(2, EventType.NEW))
    bench.resync.request()

    assert bench.read() == [1, 3, 4]

    bench.resync.request()
    bench.now += PAUSE_SECONDS

    assert bench.read() == []
    assert bench.stats.table_readings_total == 2


def test_an_event_that_comes_while_the_table_is_read_goes_before_it() -> None:
    bench = Bench()
    bench.table.chunks = [[flow(1), flow(2), flow(3)]]
    bench.resync.request()
    bench.resync.step()

    assert bench.resync.step() == b""  # it has not settled yet

    bench.note(flow(1, EventType.NEW))
    bench.note(flow(2, EventType.DESTROY))

    assert bench.read() == [3]


def test_a_flow_that_has_ended_and_one_of_its_id_is_reported_again() -> None:
    bench = Bench()
    bench.table.chunks = [[flow(1)]]
    bench.note(flow(1, EventType.NEW), flow(1, EventType.DESTROY))
    bench.resync.request()

    assert bench.read() == [1]


def test_what_the_rules_left_out_is_not_remembered_as_reported() -> None:
    bench = Bench()
    bench.table.chunks = [[flow(1)]]
    bench.note(flow(1, EventType.NEW), kept=False)
    bench.resync.request()

    assert bench.read() == [1]


def test_nothing_is_read_unless_it_is_asked_for() -> None:
    bench, only_start = Bench(), Bench(after_loss=False)
    only_start.table.chunks = [[flow(7)]]
    only_start.resync.request(at_start=True)

    assert bench.read() == []
    assert bench.table.begun == 0
    assert not only_start.resync.is_over
    assert only_start.read() == [7]
    assert only_start.resync.is_over
    only_start.resync.request()
    assert only_start.resync.is_over
    assert not bench.resync.is_over


def test_losses_that_go_on_are_answered_now_and_then() -> None:
    bench = Bench()
    for _ in range(10):
        bench.resync.request()
        bench.read()

    assert bench.table.begun == 1

    bench.now += PAUSE_SECONDS
    bench.read()

    assert bench.table.begun == 2


def test_ids_whose_end_was_filtered_out_do_not_stay_for_ever() -> None:
    bench = Bench()
    bench.table.chunks = [[flow(1), flow(2)]]
    for begin in range(0, SLACK + 2, SLOTS):
        bench.note(*[flow(number, EventType.NEW) for number in range(begin, begin + SLOTS)])

    assert bench.read() == []  # nothing was lost: nothing is to be reported
    assert bench.table.begun == 1

    bench.table.chunks = [[flow(1), flow(2), flow(3)]]
    bench.now += PAUSE_SECONDS
    bench.resync.request()

    assert bench.read() == [3]  # which the reading before had not found any more


@pytest.mark.parametrize("chunks", [[], [[flow(1)]]])
def test_a_table_that_cannot_be_read_is_counted_and_tried_again(chunks: list[list[Flow]]) -> None:
    bench = Bench()
    bench.table.chunks = chunks
    bench.table.is_broken = True
    bench.resync.request()

    assert bench.read() == []
    assert (bench.stats.table_errors_total, bench.stats.table_readings_total) == (1, 0)

    bench.table.is_broken = False
    bench.now += PAUSE_SECONDS

    assert bench.read() == [flow.id for chunk in chunks for flow in chunk]
    assert bench.stats.table_readings_total == 1


def test_a_chunk_is_settled_for_a_reader_that_has_read_what_came_until_then() -> None:
    bench = Bench()
    bench.table.chunks = [[flow(1)], [flow(2)]]
    before = bench.resync.is_settled(0.0)
    bench.resync.request()
    bench.resync.step()
    moment = bench.now + SETTLE_SECONDS

    assert before  # nothing is read, and nothing has to be waited for
    assert [bench.resync.is_settled(moment + offset) for offset in (-0.001, 0.0, 0.001)] == [
        False,
        True,
        True,
    ]

    bench.now = moment
    bench.resync.step()
    assert bench.resync.is_settled(0.0)  # decided: the next chunk may be read
    bench.resync.step()
    assert not bench.resync.is_settled(moment)
