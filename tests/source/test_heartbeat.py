"""heartbeat.py: what each record of a flow adds, in any order of readings, events and restarts."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.config.read import read_config
from conntrackd.engine import Engine, EventBatch
from conntrackd.errors import UnavailableError
from conntrackd.flow import EventType, Flow
from conntrackd.render import json
from conntrackd.source import heartbeat as module
from conntrackd.source.heartbeat import Heartbeat
from conntrackd.source.kernel import KernelSource
from conntrackd.stats import Stats
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.messages import build_message
from tests.sinks.flows import make_flow

COUNTERS = ("orig_packets", "orig_bytes", "reply_packets", "reply_bytes")
CHUNK = 2
INTERVAL = 60.0
Counted = tuple[int, ...]
Record = tuple[str, int, Counted, Counted | None]
"""Type, number of the flow, counters, deltas."""


def make(number: int, kind: EventType, counters: Counted) -> Flow:
    flow = make_flow(number, kind)
    for name, value in zip(COUNTERS, counters, strict=True):
        setattr(flow, name, value)
    return flow


@dataclass
class Kernel:
    """A table whose chunks are filled one call ahead, and begin with the last flow of the one before."""

    flows: dict[int, Counted] = field(default_factory=dict)
    is_broken: bool = False
    begun: int = 0
    _last: int = 0
    _filled: list[Flow] = field(default_factory=list)

    def begin(self) -> None:
        self.begun += 1
        self._last = 0
        self._filled = self._fill()

    def read(self, batch: EventBatch) -> bool:
        if self.is_broken:
            raise UnavailableError("broken")
        batch.load(b"".join(map(build_message, self._filled)), 0, RECEIVED_NS)
        self._filled = self._fill()
        return len(batch) > 0

    def _fill(self) -> list[Flow]:
        further = sorted(number for number in self.flows if number > self._last)[:CHUNK]
        if not further:
            return []
        again = [self._last] if self._last in self.flows else []
        self._last = further[-1]
        return [make(number, EventType.UPDATE, self.flows[number]) for number in again + further]


class Bench:
    """A Heartbeat in the place of the first reader, with a clock of the test's own."""

    def __init__(self, engine: Engine, kernel: Kernel, limit: int = 1000) -> None:
        self.kernel, self.stats, self.now = kernel, Stats(), 100.0
        self.log: list[Record] = []
        self.text = b""
        self.without_room = 0
        self._queue: list[Flow] = []
        self._engine, self._limit = engine, limit
        self._batch = engine.open_batch()
        self._template = engine.compile_template(json.TEMPLATE)
        self.restart()

    def restart(self) -> None:
        """As after SIGKILL: nothing is remembered, and the queue of the socket is kept."""
        self.beat = Heartbeat(
            self.kernel,  # type: ignore[arg-type]  # has what is asked of it
            self._engine,
            self.stats,
            INTERVAL,
            self._limit,
            clock=lambda: self.now,
        )

    def end(self, number: int) -> None:
        self._queue.append(make(number, EventType.DESTROY, self.kernel.flows.pop(number)))

    def process(self) -> None:
        """All that is queued."""
        self._batch.load(b"".join(map(build_message, self._queue)), 0, RECEIVED_NS)
        self._queue.clear()
        self.beat.end(self._batch)
        self._write("DESTROY", self._batch, range(len(self._batch)))

    def step(self) -> None:
        """A turn of the reader that leaves no event waiting. The rules drop the ALIVE of every fifth flow."""
        self.now += self.beat.compute_patience()
        assert self.beat.is_due()
        self.process()
        batch, living = self.beat.batch, memoryview(self.beat.take()).cast("H")
        chosen = [index for index in living if batch.describe(index)["id"] % 5]
        kept = b"".join(index.to_bytes(2, "little") for index in chosen)
        self.without_room += self.beat.advance(kept) if kept else 0
        self._write("ALIVE", batch, chosen)
        self.beat.go_on()

    def read(self) -> None:
        """A whole reading."""
        before = self.stats.table_readings_total
        while self.stats.table_readings_total == before:
            self.step()

    def _write(self, kind: str, batch: EventBatch, indexes: "list[int] | range") -> None:
        selection = b"".join(index.to_bytes(2, "little") for index in indexes)
        if selection:
            batch.set_type(selection, EventType[kind])
            self.text += self._engine.render(batch, self._template, selection, None).text
        for index in indexes:
            found = batch.describe(index)
            deltas = [found[f"{name}_delta"] for name in COUNTERS]
            counters = tuple(found[name] for name in COUNTERS)
            self.log.append((kind, found["id"], counters, None if None in deltas else tuple(deltas)))

    def list_spans(self, number: int) -> list[tuple[int, int]]:
        """From where to where each record of a flow has counted its bytes."""
        found = [
            (counters[1], deltas[1]) for _, flow, counters, deltas in self.log if flow == number and deltas
        ]
        return [(counted - delta, counted) for counted, delta in found]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "send", "send", "step", "step", "read", "end", "process", "restart"]),
        st.integers(0, 1 << 16),
    ),
    min_size=15,
    max_size=80,
)


def play(engine: Engine, steps: list[tuple[str, int]], limit: int) -> tuple[Bench, dict[int, int]]:
    """All of it, and the end of each flow. Of a flow that began when a reading was done, 0, else -1."""
    kernel = Kernel({number: (number, 100 * number, 0, 0) for number in range(1, 4)})
    bench, known = Bench(engine, kernel, limit), dict.fromkeys(kernel.flows, -1)
    readings = 0
    for what, number in steps:
        living = sorted(kernel.flows)
        if what == "begin":
            known[len(known) + 1] = 0 if bench.stats.table_readings_total > readings else -1
            kernel.flows[len(known)] = (1, 60, 0, 0)
        elif what == "send" and living:
            chosen = living[number % len(living)]
            packets, octets, *_ = kernel.flows[chosen]
            kernel.flows[chosen] = (packets + 1, octets + number, packets, octets)
        elif what == "end" and living:
            bench.end(living[number % len(living)])
        elif what == "step":
            bench.step()
        elif what == "read":
            bench.read()
        elif what == "process":
            bench.process()
        elif what == "restart":
            bench.restart()
            readings, known = bench.stats.table_readings_total, dict.fromkeys(known, -1)
    for number in sorted(kernel.flows):
        bench.end(number)
    bench.step()
    return bench, known


@settings(max_examples=120)
@given(STEPS, st.sampled_from([0, 1, 3, 1000]))
def test_what_records_add_is_what_a_flow_comes_to_and_nothing_twice(
    steps: list[tuple[str, int]], limit: int
) -> None:
    bench, known = play(ENGINES[0], steps, limit)
    other, _ = play(ENGINES[1], steps, limit)

    assert (bench.log, bench.text) == (other.log, other.text)
    last = {number: counters for kind, number, counters, _ in bench.log if kind == "DESTROY"}
    assert last.keys() == known.keys()
    for number, counters in last.items():
        spans = bench.list_spans(number)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert spans == [] or 0 <= spans[0][0] <= spans[-1][1] <= counters[1]
        kinds = [kind for kind, flow, *_ in bench.log if flow == number]
        assert kinds.index("DESTROY") == len(kinds) - 1
        if known[number] == 0 and limit == 1000:
            sums: dict[int, int] = defaultdict(int)
            for _, flow, _, deltas in bench.log:
                for place, delta in enumerate(deltas or ()) if flow == number else ():
                    sums[place] += delta
            assert tuple(sums[place] for place in range(len(COUNTERS))) == counters


def test_what_there_was_before_the_start_is_counted_from_then_on(engine: Engine) -> None:
    bench = Bench(engine, Kernel({1: (10, 1000, 5, 500)}))
    bench.read()
    assert (bench.log, bench.now < 101) == ([], True)

    bench.kernel.flows[1] = (12, 1200, 6, 600)
    bench.read()
    bench.read()
    bench.end(1)
    bench.process()

    assert [record[3] for record in bench.log] == [(2, 200, 1, 100), (0, 0, 0, 0), (0, 0, 0, 0)]
    assert 2 * INTERVAL <= bench.now - 100 < 2 * INTERVAL + 1


def test_where_there_is_no_room_records_come_without_deltas_and_are_counted(engine: Engine) -> None:
    bench = Bench(engine, Kernel(), limit=2)
    bench.read()
    bench.kernel.flows = {number: (number, number, 0, 0) for number in (1, 2, 3, 4)}
    bench.read()

    assert [record[3] is None for record in bench.log] == [False, False, True, True]
    assert bench.without_room == 2

    bench.end(1)
    bench.read()  # the third has its place now, and all of it was still to be counted
    nothing = (0, 0, 0, 0)
    assert [record[3] for record in bench.log[4:]] == [nothing, nothing, (3, 3, 0, 0), None]


def test_a_flow_that_has_ended_after_its_chunk_was_filled_is_not_written_again(engine: Engine) -> None:
    bench = Bench(engine, Kernel())
    bench.read()
    bench.kernel.flows = {number: (number, number, 0, 0) for number in (1, 2, 3, 4)}
    bench.step()
    bench.step()  # the first chunk is read, and the second one filled
    bench.end(3)
    bench.read()

    assert [record[:2] for record in bench.log] == [
        ("DESTROY", 3),
        *(("ALIVE", number) for number in (1, 2, 4)),
    ]


def test_what_had_no_room_at_the_start_is_not_taken_for_new_after_it(engine: Engine) -> None:
    bench = Bench(engine, Kernel({1: (10, 1000, 5, 500), 2: (20, 2000, 10, 1000)}), limit=1)
    bench.read()
    bench.end(1)
    bench.end(2)
    bench.read()

    assert [(number, deltas) for _, number, _, deltas in bench.log] == [(1, (0, 0, 0, 0)), (2, None)]


def test_flows_whose_end_is_never_heard_do_not_take_room_for_good(engine: Engine) -> None:
    bench = Bench(engine, Kernel(), limit=1)
    bench.read()
    bench.kernel.flows = {1: (1, 1, 0, 0)}
    bench.read()
    bench.kernel.flows = {2: (2, 2, 0, 0)}
    for _ in range(4):
        bench.read()

    assert [record[3] for record in bench.log if record[1] == 2] == [
        *(None, None),
        *((2, 2, 0, 0), (0, 0, 0, 0)),
    ]


def test_counters_that_somebody_has_set_to_0_are_counted_from_there(engine: Engine) -> None:
    bench = Bench(engine, Kernel())
    bench.read()
    bench.kernel.flows = {1: (10, 1000, 5, 500)}
    bench.read()
    bench.kernel.flows = {1: (3, 2000, 6, 600)}
    bench.read()

    assert [record[3] for record in bench.log] == [(10, 1000, 5, 500), (3, 2000, 6, 600)]


def list_problems(beat: Heartbeat) -> list[str]:
    """What `status` says."""
    config, pipeline = read_config({}, {}), SimpleNamespace(heartbeat=beat)
    source = KernelSource(config, None, None, pipeline, Stats())  # type: ignore[arg-type]  # not asked
    return source.list_problems()


def test_where_the_kernel_counts_nothing_records_have_no_counters_and_status_says_why(engine: Engine) -> None:
    bench = Bench(engine, Kernel({1: (-1, -1, -1, -1)}))
    assert list_problems(bench.beat) == []
    bench.read()
    (problem,) = list_problems(bench.beat)
    bench.read()

    ((kind, number, counters, deltas),) = bench.log
    assert (kind, number, any(counters), deltas) == ("ALIVE", 1, False, None)
    assert problem.startswith("ALIVE records come without counters: ")
    assert "net.netfilter.nf_conntrack_acct=1" in problem
    bench.kernel.flows = {}
    bench.read()
    assert list_problems(bench.beat) == []


def test_a_table_that_cannot_be_read_is_read_again_and_what_was_known_stays_known(engine: Engine) -> None:
    bench = Bench(engine, Kernel())
    bench.read()
    bench.kernel.flows = {number: (number, number, 0, 0) for number in (1, 2, 3, 4)}
    bench.read()
    while bench.kernel.begun < 3:
        bench.step()
    bench.kernel.is_broken = True  # with the first of two chunks read
    while bench.stats.table_errors_total < 4:
        bench.step()
    bench.kernel.is_broken = False
    bench.read()

    found = [(number, deltas) for _, number, _, deltas in bench.log]
    assert found == [
        *((number, (number, number, 0, 0)) for number in (1, 2, 3, 4)),
        *((number, (0, 0, 0, 0)) for number in (1, 2, 3, 4)),
    ]


def test_with_more_ends_than_are_noted_chunks_are_left_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 3)
    bench = Bench(engine, Kernel())
    bench.read()
    bench.kernel.flows = {number: (number, number, 0, 0) for number in range(2, 25)}
    bench.step()
    bench.step()  # the first chunk is read, and the second one filled
    for number in (2, 3, 4, 5):
        bench.end(number)
    bench.read()
    alive = [number for kind, number, *_ in bench.log if kind == "ALIVE"]

    # The chunk of 6 and 7 is the third; the next one begins with 7 again.
    assert alive == [number for number in range(7, 25) if number % 5]
    assert len(bench.list_spans(2)) == 1


def test_a_large_table_takes_half_of_the_interval_and_no_step_is_delayed_by_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_FLOWS", CHUNK)
    bench = Bench(engine, Kernel(dict.fromkeys(range(1, 2001), (1, 1, 0, 0))))
    bench.read()
    assert bench.now - 100 < INTERVAL / 10  # the first one is of no record
    bench.read()
    # A third of what it has read came twice.
    assert bench.now - 100 - INTERVAL == pytest.approx(INTERVAL / 2 * 2 / 3, rel=0.01)
    bench.beat.postpone()

    assert bench.beat.compute_patience() == pytest.approx(module.MAX_PACE)
