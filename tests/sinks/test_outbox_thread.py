"""The thread of an outbox lives through what nobody thought of."""

import threading

from conntrackd.sinks.outbox import Outbox
from conntrackd.sinks.sink import SinkState, SinkUnavailable
from conntrackd.stats import SinkStats
from tests.sinks.fakes import FakeSink, find_imbalance
from tests.sinks.flows import make_flows
from tests.sinks.test_outbox_law import MemoryStore


class Mistaken(MemoryStore):
    """Raises what no spool may raise, until it is mended."""

    is_mended = False

    @property
    def rows(self) -> int:
        if not self.is_mended:
            raise TypeError("not a parcel")
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
    outbox.put(make_flows(10))

    assert failed.wait(10)
    assert (outbox.state, reasons[0]) == (SinkState.FAILED, "unexpected TypeError: not a parcel")
    outbox.put(make_flows(10))
    assert find_imbalance(outbox.snapshot()) == 0

    store.is_mended, sink.away = True, None
    outbox.enable()
    outbox.put(make_flows(10))
    assert outbox.flush(10)
    assert len(sink.numbers) >= 10
    outbox.stop(0)
