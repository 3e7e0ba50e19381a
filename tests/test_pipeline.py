"""The loop's decisions; what it does with events is in live/."""

import pytest

from conntrackd.pipeline import can_gather

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
