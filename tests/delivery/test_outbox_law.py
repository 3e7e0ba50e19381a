"""The law of the outbox, under every fault in every order: no event is unaccounted for."""

from collections import deque
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.loan import Loan, Passed, Way, Written
from conntrackd.delivery.losses import Losses, is_alike, join_losses
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import (
    SinkFailed,
    SinkRefused,
    SinkRevised,
    SinkState,
    SinkTrouble,
    SinkUnavailable,
)
from conntrackd.delivery.store import PackedBatch, Row, SpoolError
from conntrackd.flow import Lost
from conntrackd.render.rendered import Rendered
from conntrackd.stats import SinkStats
from tests.delivery.fakes import (
    Clock,
    FakeDirectSink,
    FakeWriter,
    compute_imbalance,
    make_lost,
    put,
    render,
    run_until_idle,
    show,
    split,
    sum_dropped,
)
from tests.sinks.flows import make_flows

QUEUE = 20


class MemoryStore:
    """A spool of ten rows that has disks' troubles on demand."""

    def __init__(self) -> None:
        self.content: deque[Row] = deque()
        self.damage = ""
        self.missing = 0
        self.restored = 0
        self.losses: Losses = ()
        self.troubles: deque[SpoolError] = deque()
        self._next = 1

    @property
    def rows(self) -> int:
        return len(self.content)

    @property
    def events(self) -> int:
        return sum(row.packed.events for row in self.content)

    @property
    def oldest(self) -> int:
        return self.content[0].packed.oldest if self.content else 0

    def _have_trouble(self) -> None:
        if self.troubles:
            raise self.troubles.popleft()

    def append(
        self, batches: Sequence[PackedBatch], *, keep: int | None = None, is_report: bool = False
    ) -> list[Row]:
        self._have_trouble()
        reported = [lost for packed in batches for lost in packed.losses] if is_report else []
        self.losses = tuple(
            lost for lost in self.losses if not any(is_alike(lost, other) for other in reported)
        )
        for packed in batches:
            self.content.append(Row(self._next, packed))
            self._next += 1
        gone = []
        while len(self.content) > 10:
            position = 1 if self.content[0].number == keep else 0
            gone.append(self.content[position])
            del self.content[position]
        for row in gone:
            self._lose(row.packed, "spool")
        return gone

    def _lose(self, packed: PackedBatch, reason: str) -> None:
        lost = [Lost(packed.events, 1, 2, "fake", reason)] if packed.events else []
        self.losses = join_losses((*self.losses, *packed.losses, *lost))

    def note(self, losses: Sequence[Lost]) -> None:
        self.losses = join_losses((*self.losses, *losses))

    def first(self) -> Row | None:
        self._have_trouble()
        return self.content[0] if self.content else None

    def remove(self, row: Row) -> None:
        self.content.popleft()
        if not row.intact:
            self._lose(row.packed, "damaged")
        self._have_trouble()

    def set_aside(self) -> str:
        for row in self.content:
            self._lose(row.packed, "damaged")
        self.content.clear()
        return "fake.damaged"

    def close(self) -> None:
        pass


def split_or_refuse(events: Rendered) -> SinkTrouble:
    parts = split(events)
    return SinkRevised("too large", parts) if len(parts) > 1 else SinkRefused("too large")


def take_first(events: Rendered) -> SinkTrouble:
    """The first half is accepted, and then the connection ends."""
    return SinkUnavailable("reset", written=events.events // 2)


def refuse_one(events: Rendered) -> SinkTrouble:
    """The first is accepted, the second never will be."""
    if events.events < 2:
        return SinkRefused("too long")
    return SinkRevised("too long", written=1, refused=1)


def keep_some(events: Rendered) -> SinkTrouble:
    """The last is accepted, the first is wanted in another form, the others are refused."""
    if events.events < 2:
        return SinkUnavailable("away")
    return SinkRevised("too old", [events.split(1)[0]], written=1)


FAULTS = (
    lambda events: SinkUnavailable("away"),
    lambda events: SinkUnavailable("busy", 20.0),
    lambda events: SinkRefused("no"),
    lambda events: SinkFailed("gone"),
    lambda events: OSError(5, "Input/output error"),
    lambda events: ZeroDivisionError(),
    split_or_refuse,
    take_first,
    refuse_one,
    keep_some,
)


class Law(RuleBasedStateMachine):
    """An outbox with a fake sink and a fake disk, driven step by step."""

    with_store = True

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sink = FakeDirectSink(batch_events=4, batch_wait=1.0)
        self.store = MemoryStore() if self.with_store else None
        self.writer = FakeWriter()
        self.stats = SinkStats()
        backoff = Backoff(1.0, 8.0, choose=lambda low, high: high)
        self.outbox = Outbox(
            self.sink,
            queue=QUEUE,
            stats=self.stats,
            spool=self.store,
            backoff=backoff,
            clock=self.clock,
            writer=self.writer,
        )
        self.sent = 0
        self.uncounted = 0  # of these, left for the writer by relays that are under way
        self.shown = SinkStats()

    @rule(count=st.integers(1, 8))
    def put(self, count: int) -> None:
        put(self.outbox, make_flows(count, self.sent))
        self.sent += count

    @rule(events=st.integers(0, 10))
    def let_write_directly(self, events: int) -> None:
        self.sink.room = events

    @rule(count=st.integers(0, 5), rest=st.integers(0, 3), reports=st.booleans(), disables=st.booleans())
    def lend(self, count: int, rest: int, *, reports: bool, disables: bool) -> None:
        """To a reader that writes some events, and has a rest."""
        self.sink.loan = Loan(Way.DISCARD)
        if self.outbox.lend() is None:
            return
        if reports:
            self.lose()
        if disables:
            self.disable()
        written, left = make_flows(count, self.sent), make_flows(rest, self.sent + count)
        self.sink.received += [flow.id for flow in written]
        sizes = [Written(flow.time, flow.time, 1, 1) for flow in written]
        self.outbox.end_loan(Passed(sizes, render(left)) if left else Passed(sizes))
        self.sent += count + rest

    @rule(
        counts=st.lists(st.integers(1, 4), max_size=3),
        written=st.integers(0, 12),
        between=st.sampled_from(["", "a loss", "events", "disabled"]),
    )
    def run_writer(self, counts: list[int], written: int, between: str) -> None:
        """A writer for which two readers leave events, of which it writes some; and something else comes."""
        relayed = [0, 0]
        if self.outbox.step() is not None or self.outbox.lend_writer(sum(counts)) is None:
            return

        def relay() -> None:
            left = written
            for number, count in enumerate(counts):
                if self.writer.offer(render(make_flows(count, self.sent))):
                    self.sent += count
                    relayed[number % 2] += count
                    self.uncounted += count
                self.check()
                match between:
                    case "a loss":
                        self.lose()
                    case "events":
                        self.put(1)
                    case "disabled":
                        self.disable()
                if part := min(left, self.writer.waiting):
                    left -= part
                    self.sink.received += show([self.writer.write(part)])
                self.check()

        self.writer.script = relay
        self.outbox.run_writer()
        self.check()
        for count in relayed:
            self.outbox.end_loan(Passed(left=count))
            self.uncounted -= count
            self.check()

    def check(self) -> None:
        self.every_event_is_accounted_for()
        self.what_is_shown_is_what_readers_have_counted_and_never_falls()

    @rule()
    def lose(self) -> None:
        self.outbox.report(make_lost(3))

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.outbox.step()
            assert compute_imbalance(self.outbox.snapshot()) == 0

    @rule(seconds=st.floats(0.1, 15.0))
    def pass_time(self, seconds: float) -> None:
        run_until_idle(self.outbox, self.clock, seconds=seconds)

    @rule(fault=st.sampled_from(FAULTS), times=st.integers(1, 4))
    def break_sink(self, fault: object, times: int) -> None:
        self.sink.faults.extend([fault] * times)  # type: ignore[list-item]

    @rule()
    def break_opening(self) -> None:
        self.sink.open_faults.append(SinkUnavailable("nobody there"))

    @precondition(lambda self: self.store is not None)
    @rule(times=st.sampled_from([1, 2, 3, 40]))
    def break_disk(self, times: int) -> None:
        assert self.store is not None
        self.store.troubles.extend([SpoolError("full")] * times)

    @precondition(lambda self: self.store is not None)
    @rule(position=st.integers(1, 9), intact=st.booleans())
    def damage_row(self, position: int, intact: bool) -> None:
        """Not the first: that one may be in flight, and has been read. An intact one holds no batch."""
        assert self.store is not None
        if position < self.store.rows:
            row = self.store.content[position]
            self.store.content[position] = Row(row.number, PackedBatch(b"", row.packed.events), intact)

    @rule()
    def disable(self) -> None:
        self.outbox.disable()

    @rule()
    def enable(self) -> None:
        self.outbox.enable()

    @rule()
    def reopen(self) -> None:
        self.outbox.reopen()

    @invariant()
    def every_event_is_accounted_for(self) -> None:
        self.outbox.count_delays()  # looks at what was left in a relay under way, too
        stats = self.stats
        assert compute_imbalance(stats) == 0
        assert stats.sink_events_taken_total == self.sent
        assert 0 <= stats.sink_events_queued <= QUEUE
        assert min(getattr(stats, name) for name in stats.__slots__) >= 0

    @invariant()
    def what_is_shown_is_what_readers_have_counted_and_never_falls(self) -> None:
        before, shown = self.shown, self.outbox.snapshot()
        totals = [name for name in shown.__slots__ if name.endswith("_total")]
        assert compute_imbalance(shown) == 0
        assert shown.sink_events_taken_total == self.sent - self.uncounted
        assert shown.sink_events_queued >= 0
        assert all(getattr(before, name) <= getattr(shown, name) for name in totals)
        self.shown = shown

    @invariant()
    def events_never_change_places_and_none_comes_twice(self) -> None:
        numbers = self.sink.numbers
        assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        """The faults end: what is left arrives, and a fresh event does too."""
        self.sink.faults.clear()
        self.sink.open_faults.clear()
        if self.store is not None:
            self.store.troubles.clear()
        self.outbox.enable()
        run_until_idle(self.outbox, self.clock, seconds=100.0)
        self.put(1)
        run_until_idle(self.outbox, self.clock, seconds=5.0)
        stats = self.outbox.snapshot()
        self.outbox.stop(self.clock.now)
        assert self.outbox.state is SinkState.OK
        assert self.sink.numbers[-1] == self.sent - 1
        assert (stats.sink_events_queued, stats.sink_events_spooled) == (0, 0)
        # What a fault says was accepted is not in what the fake received.
        assert len(self.sink.numbers) <= stats.sink_events_delivered_total
        assert stats.sink_events_delivered_total + sum_dropped(stats) == self.sent
        if self.store is not None:
            # What the disk took away is reported: here, or by the next process.
            gone = stats.sink_events_dropped_spool_total + stats.sink_events_dropped_damaged_total
            here = [loss[0] for loss in self.sink.losses if loss[2] in ("spool", "damaged")]  # type: ignore[index]
            left = [lost.count for lost in self.store.losses if lost.reason in ("spool", "damaged")]
            assert sum(here) + sum(left) <= gone


class LawWithoutSpool(Law):
    """The same with nothing but memory."""

    with_store = False


THOROUGH = settings(max_examples=200, stateful_step_count=40, suppress_health_check=list(HealthCheck))


def test_no_event_is_unaccounted_for_whatever_happens_to_sink_and_disk() -> None:
    run_state_machine_as_test(Law, settings=THOROUGH)


def test_no_event_is_unaccounted_for_with_nothing_but_memory() -> None:
    run_state_machine_as_test(LawWithoutSpool, settings=THOROUGH)
