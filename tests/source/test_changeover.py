"""What two sockets have both is reported once. The rest is in live/test_restart.py."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.flow import EventType
from conntrackd.source.changeover import leave_out
from tests.messages import build_message
from tests.sinks.flows import make_flow


def build(text: str) -> list[bytes]:
    """A letter is an event of the flow of that letter: a capital its NEW, a small one its end."""
    return [
        build_message(
            replace(
                make_flow(ord(letter.upper())), type=EventType.NEW if letter.isupper() else EventType.DESTROY
            )
        )
        for letter in text
    ]


@pytest.mark.parametrize(
    ("tail", "head", "fresh"),
    [
        pytest.param("ABC", "DE", "DE", id="nothing in both"),
        pytest.param("ABC", "BCD", "D", id="the last two"),
        pytest.param("ABC", "CBD", "D", id="of different flows in another order"),
        pytest.param("ABC", "", "", id="nothing there"),
        pytest.param("", "AB", "AB", id="nothing before"),
        pytest.param("Aa", "Aa", "", id="a whole flow"),
        pytest.param("Aa", "a", "", id="the end of a flow"),
        pytest.param("Aa", "A", "A", id="a flow that has come again"),
        pytest.param("AaA", "AaAa", "a", id="a flow that comes again and again"),
        pytest.param("ABC", "ADBC", "D", id="what only the new one had room for"),
    ],
)
def test_what_the_old_ends_with_is_left_out_of_what_the_new_begins_with(
    tail: str, head: str, fresh: str
) -> None:
    assert leave_out(build(head), build(tail)) == build(fresh)


@given(st.text("ABCDabcd", max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_of_flows_that_do_not_come_again_each_event_is_reported_once(
    text: str, first: int, last: int
) -> None:
    """All that happens, in two overlapping windows."""
    events = list(dict.fromkeys(text))
    begin, end = sorted((min(first, len(events)), min(last, len(events))))
    tail, head = build("".join(events[:end])), build("".join(events[begin:]))

    assert tail + leave_out(head, tail) == build("".join(events))


def test_bytes_that_are_no_event_are_reported_as_they_are() -> None:
    assert leave_out([b"", b"short"], [b"other"]) == [b"", b"short"]
