"""Row 15: no event needs another before it, and of a million flows nothing is kept."""

import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest

from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import Sink
from conntrackd.engine import SLOTS, Engine, EventBatch
from conntrackd.flow import EventType, Flow
from conntrackd.pipeline import Pipeline
from conntrackd.render.json import TEMPLATE
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.stream import StreamSink
from conntrackd.stats import SinkStats, Stats
from conntrackd.tails import Tails
from tests.delivery.fakes import FakeSink
from tests.engine.feed import ENGINES
from tests.faults.test_sinks import MIB, read_memory
from tests.messages import build_message
from tests.sinks.flows import make_flow

RECEIVED = 1_763_807_683_181_432_081
NEW, UPDATE, DESTROY = EventType.NEW, EventType.UPDATE, EventType.DESTROY
# The end of a flow that was never new, an update of one that is over, an id that another has had.
ORDER = (DESTROY, UPDATE, NEW)
FLOWS = 1_000_000


def load(messages: Iterator[bytes], batch: EventBatch) -> Iterator[tuple[int, int]]:
    """As a recording comes."""
    while some := b"".join(islice(messages, SLOTS)):
        yield batch.load(some, 0, RECEIVED)[1:]


def replay(engine: Engine, messages: Iterator[bytes], sink: Sink, stats: Stats) -> SinkStats:
    """Through everything that stands between the socket and a sink."""
    outbox = Outbox(sink, queue=4096, stats=SinkStats())
    pipeline = Pipeline(engine, (engine.compile_table(()),), None, (outbox,), Tails(), stats)
    outbox.start()
    pipeline.replay(load(messages, pipeline.readers[0].batch))
    outbox.stop(time.monotonic() + 30)
    return outbox.snapshot()


class LineSink(FakeSink):
    """Reads the numbers of events from their lines."""

    template = TEMPLATE

    def write(self, parts: Sequence[Rendered]) -> int:
        text = b"".join(part.text for part in parts)
        self.received += [json.loads(line)["flow"] for line in text.splitlines()]
        return len(text)


@pytest.mark.parametrize("kinds", [(DESTROY,), (UPDATE,), (NEW, NEW), ORDER])
def test_row_15_events_pass_in_any_order_with_any_id(kinds: Sequence[EventType], engine: Engine) -> None:
    flows = [make_flow(number % 3, kind) for number in range(9) for kind in kinds]
    sink, stats = LineSink(), Stats()

    replay(engine, iter([build_message(flow) for flow in flows]), sink, stats)

    assert sink.numbers == [flow.id for flow in flows]
    assert stats.events_malformed_total == 0


def patch(flow: Flow) -> Iterator[bytes]:
    """A million of its kind: each has an address of its own, and the id of the 65,536th before it."""
    message = bytearray(build_message(flow))
    id_at = message.index(struct.pack("!I", flow.id))
    # The source and, turned round, where replies go.
    first = message.index(flow.src)
    second = message.index(flow.src, first + 4)
    for number in range(FLOWS):
        struct.pack_into("!I", message, id_at, number & 0xFFFF)
        for place in (first, second):
            struct.pack_into("!I", message, place, number)
        yield bytes(message)


@pytest.mark.slow
def test_row_15_nothing_is_kept_of_a_million_flows() -> None:
    """The beginning fills what is bounded: the buffers of a batch and of its text."""
    held: list[int] = []

    def list_messages() -> Iterator[bytes]:
        for number, messages in enumerate(
            zip(*(patch(make_flow(0x10203, kind)) for kind in ORDER), strict=True)
        ):
            if number % (FLOWS // 10) == 0:
                held.append(read_memory(os.getpid()))
            yield from messages

    stats = Stats()
    sink = replay(ENGINES[0], list_messages(), StreamSink(None), stats)

    assert sink.sink_events_delivered_total == FLOWS * len(ORDER)
    assert stats.events_malformed_total == 0
    assert max(held[3:]) - held[2] < 2 * MIB
