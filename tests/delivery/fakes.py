"""A clock that tests move, a sink that does as it is told, and the sum that must always hold."""

import json
import random
from collections import deque
from collections.abc import Callable, Sequence

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.loan import Loan, Passed, Writer, Written
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkTrouble, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.flow import Flow, Lost
from conntrackd.render.json import TEMPLATE
from conntrackd.render.rendered import Rendered, join
from conntrackd.render.template import Template
from conntrackd.stats import SinkStats
from tests.rendering import list_texts, make_rendered
from tests.sinks.flows import make_flows

FaultMaker = Callable[[Rendered], SinkTrouble | OSError | None]


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeTemplate(Template):
    """Events are their numbers, losses are lists."""

    def render_loss(self, lost: Lost) -> Rendered:
        text = json.dumps([lost.count, lost.where, lost.reason]).encode()
        return Rendered(text, make_rendered([text], 0).ends, 0, lost.until)


FAKE = FakeTemplate(TEMPLATE.text, TEMPLATE.syntax, {}, {})


def render(flows: Sequence[Flow]) -> Rendered:
    """In the form of the fake."""
    return make_rendered([b"%d" % flow.id for flow in flows], flows[0].time)


def make_events(count: int, first: int = 0) -> Rendered:
    """Events with numbers one after the other."""
    return render(make_flows(count, first))


def put(
    outbox: Outbox, flows: Sequence[Flow], rendering: Callable[[Sequence[Flow]], Rendered] = render
) -> None:
    """As the reader does it: what there is room for is rendered, the rest is dropped."""
    room = outbox.get_room()
    if flows[:room]:
        outbox.put(rendering(flows[:room]))
    if flows[room:]:
        outbox.drop(len(flows) - room, flows[room].time, flows[-1].time)


def render_fat(flows: Sequence[Flow]) -> Rendered:
    """Each event with digits behind it that no compression makes less than 50,000 bytes."""
    texts = [b"%d %b" % (flow.id, random.Random(flow.id).randbytes(45_000).hex().encode()) for flow in flows]
    return make_rendered(texts, flows[0].time)


def show(parts: Sequence[Rendered]) -> list[object]:
    """Numbers of events, and LOST records as lists."""
    texts = [text for part in parts for text in list_texts(part)]
    return [json.loads(text if text.startswith(b"[") else text.split()[0]) for text in texts]


def split(events: Rendered) -> list[Rendered]:
    """Each event alone."""
    parts = []
    while events.events > 1:
        first, events = events.split(1)
        parts.append(first)
    return [*parts, events]


class FakeSink:
    """Keeps what is written, unless the next fault says otherwise. Faults are used up one a call."""

    name = "fake"
    template: Template = FAKE

    def __init__(
        self, batch_events: int = 10, batch_wait: float = 0.0, away: Exception | None = None
    ) -> None:
        self.batch_events = batch_events
        self.batch_wait = batch_wait
        self.opened = 0
        self.closed = 0
        self.attempts: list[bytes] = []
        self.received: list[object] = []
        self.open_faults: deque[Exception] = deque()
        self.faults: deque[Exception | FaultMaker | None] = deque()
        self.away = away

    def open(self) -> None:
        self.opened += 1
        if self.open_faults:
            raise self.open_faults.popleft()

    def write(self, parts: Sequence[Rendered]) -> int:
        shown = show(parts)
        self.attempts.append(json.dumps(shown).encode())
        if self.away is not None:
            raise self.away
        fault = self.faults.popleft() if self.faults else None
        if callable(fault):
            fault = fault(join(parts))
        if fault is not None:
            raise fault
        self.received += shown
        return sum(len(part.text) for part in parts)

    def close(self) -> None:
        self.closed += 1

    @property
    def numbers(self) -> list[int]:
        """The events among what was received."""
        return [record for record in self.received if isinstance(record, int)]

    @property
    def losses(self) -> list[object]:
        """The LOST records among what was received."""
        return [record for record in self.received if not isinstance(record, int)]


class FakeDirectSink(FakeSink):
    """Takes as much at once as it is told to, and runs a writer as a FileSink does."""

    def __init__(self, batch_events: int = 10, batch_wait: float = 0.0) -> None:
        super().__init__(batch_events, batch_wait)
        self.room = 0
        """Events that it takes without waiting."""
        self.direct: list[int] = []
        """How many it took each time."""
        self.loan: Loan | None = None
        self.begun = b""

    def try_write(self, rendered: Rendered) -> tuple[int, int]:
        count = min(self.room, rendered.events)
        self.room -= count
        self.direct.append(count)
        self.received += show([rendered.split(count)[0]])
        return count, rendered.get_end(count)

    def lend(self) -> Loan | None:
        return self.loan

    def end_loan(self, passed: Passed) -> None:
        self.begun = passed.rest.text[: passed.torn]

    def can_run_writer(self) -> bool:
        return True

    def run_writer(self, writer: Writer) -> None:
        writer.run(-1, True)


class FakeWriter:
    """Runs what a test makes of it: see Writer."""

    def __init__(self) -> None:
        self.is_started = False
        self.script: Callable[[], None] = lambda: None
        self._texts: list[Rendered] = []
        self._left = 0
        self._written: list[Written] = []

    def offer(self, rendered: Rendered) -> bool:
        """As a relay does."""
        if self.is_started:
            self._texts.append(rendered)
            self._left += rendered.events
        return self.is_started

    @property
    def waiting(self) -> int:
        """Events of the first text that is not written."""
        return self._texts[0].events if self._texts else 0

    def write(self, events: int) -> Rendered:
        """The first events of the text that is first."""
        text = self._texts.pop(0)
        first, rest = text.split(events)
        self._texts[:0] = [rest] if rest.events else []
        self._written.append(Written(text.time, text.time, events, len(first.text)))
        return first

    def start(self) -> None:
        self.is_started = True

    def stop(self) -> None:
        self.is_started = False

    def give_up(self) -> None:
        """All but the first text is not begun."""
        self.is_open = False
        del self._texts[1:]

    def run(self, _descriptor: int, _is_named: bool, /) -> tuple[int, int, int]:  # as the core's
        self.script()
        self.is_started = False
        return 0, 0, 0

    def take_counts(self) -> tuple[int, int, Sequence[tuple[int, int, int, int]]]:
        found = self._left, self._texts[0].time if self._texts else 0, self._written
        self._left, self._written = 0, []
        return found

    def take_rest(self) -> Sequence[tuple[tuple[bytes, bytes, int, int], bool]]:
        rest, self._texts = self._texts, []
        return [(text[:4], True) for text in rest]


def compute_imbalance(stats: SinkStats) -> int:
    """What came, less what became of it: 0 at every moment."""
    came = stats.sink_events_restored_total + stats.sink_events_taken_total
    return came - (
        stats.sink_events_delivered_total
        + stats.sink_events_queued
        + stats.sink_events_spooled
        + sum_dropped(stats)
    )


def sum_dropped(stats: SinkStats) -> int:
    """Dropped for whatever reason."""
    return (
        stats.sink_events_dropped_queue_total
        + stats.sink_events_dropped_refused_total
        + stats.sink_events_dropped_spool_total
        + stats.sink_events_dropped_shutdown_total
        + stats.sink_events_dropped_disabled_total
        + stats.sink_events_dropped_failed_total
        + stats.sink_events_dropped_damaged_total
    )


def run_until_idle(outbox: Outbox, clock: Clock, *, seconds: float = 0.0) -> None:
    """Does all that is due, and lets time pass from one due moment to the next, at most that long."""
    end = clock.now + seconds
    for _ in range(100_000):
        wait = outbox.step()
        assert compute_imbalance(outbox.snapshot()) == 0
        if wait == 0:
            continue
        if wait is None or clock.now + wait > end:
            clock.now = max(clock.now, end)
            return
        clock.now += wait
    raise AssertionError("the outbox never comes to rest")


def feed(outbox: Outbox, clock: Clock, flows: Sequence[Flow], *, seconds: float = 0.0) -> None:
    """put(), and run_until_idle()."""
    put(outbox, flows)
    run_until_idle(outbox, clock, seconds=seconds)


def make_lost(count: int, where: str = "kernel") -> Lost:
    """A loss between two moments."""
    return Lost(count, 100, 200, where)


AWAY = SinkUnavailable("nobody there")


def make_outbox(
    sink: FakeSink,
    clock: Clock,
    queue: int = 1000,
    spool: Spool | None = None,
    writer: FakeWriter | None = None,
) -> Outbox:
    backoff = Backoff(1.0, 8.0, choose=lambda low, high: high)
    stats = SinkStats()
    return Outbox(sink, queue=queue, stats=stats, spool=spool, backoff=backoff, clock=clock, writer=writer)
