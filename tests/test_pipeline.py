"""The loop's decisions; what it does with events is in live/."""

from collections.abc import Sequence

import pytest

from conntrackd.delivery.outbox import Outbox
from conntrackd.filter.pycode import compile_selector
from conntrackd.flow import Flow, Piece
from conntrackd.netlink.decode import Decoder
from conntrackd.netlink.socket import Datagrams
from conntrackd.pipeline import Pipeline, can_gather
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import Form
from conntrackd.sinks.journal import JournalSink
from conntrackd.sinks.stream import StreamSink
from conntrackd.stats import SinkStats, Stats
from conntrackd.tails import Tails
from tests.delivery.fakes import FakeSink
from tests.messages import build_message
from tests.sinks.flows import BASE, make_flow

ROOMY = 1 << 21


@pytest.mark.parametrize(
    ("received", "slots", "buffer", "gathers"),
    [
        pytest.param(1, 128, ROOMY, True, id="one event"),
        pytest.param(127, 128, ROOMY, True, id="all that had come"),
        pytest.param(128, 128, ROOMY, False, id="more has come"),
        pytest.param(0, 128, ROOMY, False, id="nothing came in time"),
        pytest.param(1, 128, ROOMY - 1, False, id="a buffer that could overflow"),
        pytest.param(1, 1, ROOMY, False, id="one datagram a call"),
    ],
)
def test_the_reader_sleeps_only_when_nothing_can_be_lost_by_it(
    received: int, slots: int, buffer: int, gathers: bool
) -> None:
    assert can_gather(received, slots, buffer) == gathers


class Broken(Composer):
    """Stumbles over every batch."""

    def compose(self, forms: tuple[Form, ...], flows: Sequence[Flow]) -> list[Piece]:
        raise ZeroDivisionError


def test_sinks_get_an_event_in_their_forms_and_a_mistake_in_those_ends_no_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stats = Stats()
    outboxes = [
        Outbox(sink, queue=10, stats=SinkStats()) for sink in (JournalSink(), StreamSink(None), FakeSink())
    ]
    message = build_message(make_flow(7))
    batch = Datagrams(memoryview(bytearray(message + bytes(8))), [0], [len(message)], 0, BASE)
    seen: list[list[object]] = []
    for outbox in outboxes:
        monkeypatch.setattr(
            outbox, "put", lambda flows, piece: seen.append([flows[0].id, type(piece).__name__])
        )
        monkeypatch.setattr(outbox, "flush", lambda _: True)
    pipeline = Pipeline(Decoder(stats), compile_selector([]), None, outboxes, Tails(), stats)
    pipeline.replay([batch])
    pipeline._composer = Broken()
    pipeline.replay([batch])

    assert seen == [[7, "Piece"], [7, "Piece"], [7, "NoneType"], *[[7, "NoneType"]] * 3]
    assert stats.events_accepted_total == 2
