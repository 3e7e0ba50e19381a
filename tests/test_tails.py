"""Tails: what a reader gets, and that no reader holds anybody up."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conntrackd import tails as module
from conntrackd.errors import UnavailableError
from conntrackd.flow import Flow, Lost
from conntrackd.tails import MAX_TAILS, Tails
from tests.rendering import render
from tests.sinks.flows import make_flows

SECONDS = 10.0


def put(tails: Tails, flows: list[Flow]) -> None:
    """As the reader does it: decides and renders for each."""
    for tail in tails.wanting:
        if kept := tail.rules[0](flows):  # nothing to the module
            tails.put(tail, render(tails.template, kept))


@pytest.fixture
def tails() -> Iterator[Tails]:
    made = Tails()
    yield made
    made.close()


@pytest.fixture
def opened(tails: Tails) -> Iterator[Callable[..., int]]:
    """Opens tails whose reading ends are closed after the test."""
    pipes: list[int] = []

    def open_one(rules: Callable[[list[Flow]], list[Flow]] = list, limit: int = 0) -> int:
        pipes.append(tails.open([rules], limit))
        return pipes[-1]

    yield open_one
    for pipe in pipes:
        os.close(pipe)


def read_all(pipe: int) -> list[dict[str, Any]]:
    """Records until the end of the tail."""
    with os.fdopen(os.dup(pipe), "rb") as file:
        return [json.loads(line) for line in file]


def count_lines(pipe: int) -> int:
    found = 0
    while data := os.read(pipe, 1 << 20):
        found += data.count(b"\n")
    return found


def read_some(pipe: int, count: int) -> list[dict[str, Any]]:
    with os.fdopen(os.dup(pipe), "rb", buffering=0) as file:
        return [json.loads(file.readline()) for _ in range(count)]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "did not happen in time"


def test_a_tail_gets_what_its_rules_keep_and_ends_at_its_limit(
    tails: Tails, opened: Callable[..., int]
) -> None:
    odd = opened(lambda flows: [flow for flow in flows if flow.id % 2], 3)

    put(tails, make_flows(4))
    put(tails, make_flows(6, first=4))

    assert [record["src"] for record in read_all(odd)] == ["10.0.0.1", "10.0.0.3", "10.0.0.5"]


def test_losses_are_reported_to_every_tail_whatever_its_rules(
    tails: Tails, opened: Callable[..., int]
) -> None:
    pipe = opened(lambda flows: [])

    tails.report(Lost(7, 1, 2, "kernel"))

    assert [(record["type"], record["lost"]) for record in read_some(pipe, 1)] == [("LOST", 7)]


def test_a_tail_whose_reader_goes_away_ends_and_with_the_last_the_thread(tails: Tails) -> None:
    os.close(tails.open([list], 0))

    wait_until(lambda: not any(thread.name == "tails" for thread in threading.enumerate()))

    assert len(tails) == 0
    assert tails.dropped_total == 0


def test_a_tail_that_is_never_read_is_dropped_and_counted_and_the_other_gets_all(
    tails: Tails, opened: Callable[..., int]
) -> None:
    opened()
    count = 50_000  # some 13 MB
    other = opened(limit=count)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.append(count_lines(other)))
    reader.start()

    for first in range(0, count, 100):
        wait_until(lambda: tails._events < 1000)
        put(tails, make_flows(100, first))
    reader.join(SECONDS)

    assert got == [count]
    assert tails.dropped_total == 1


def test_more_than_the_queue_holds_is_dropped_and_reported(
    tails: Tails, opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    held, entered = threading.Event(), threading.Event()
    write = Tails._write

    def hold(self: Tails, tail: module.Tail) -> None:
        if not held.is_set() and tail.unread:
            entered.set()
            held.wait(SECONDS)
        write(self, tail)

    monkeypatch.setattr(Tails, "_write", hold)
    pipe = opened()
    put(tails, make_flows(1))
    assert entered.wait(SECONDS)
    put(tails, make_flows(10, first=1))
    put(tails, make_flows(5, first=11))
    held.set()
    read_some(pipe, 11)
    put(tails, make_flows(1, first=16))

    lost, last = read_some(pipe, 2)
    assert (lost["lost"], lost["where"], lost["reason"]) == (5, "tail", "queue")
    assert last["src"] == "10.0.0.16"


def test_only_the_tail_that_missed_something_hears_of_it(
    tails: Tails, opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    slow, other = opened(), opened(lambda flows: flows[:1])
    put(tails, make_flows(6))
    put(tails, make_flows(1, first=6))

    assert [record.get("lost") for record in read_some(slow, 2)] == [6, None]
    assert [record["src"] for record in read_some(other, 2)] == ["10.0.0.0", "10.0.0.6"]


def test_no_more_tails_than_there_may_be(tails: Tails, opened: Callable[..., int]) -> None:
    for _ in range(MAX_TAILS):
        opened()

    with pytest.raises(UnavailableError, match="8 tails are open already"):
        tails.open([list], 0)


def test_a_tail_that_gets_no_thread_is_refused_and_leaves_nothing(
    tails: Tails, opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(UnavailableError, match="cannot start a thread"):
            tails.open([list], 0)
    assert (os.listdir("/proc/self/fd"), tails.wanting) == (before, ())

    again = opened(limit=1)
    put(tails, make_flows(1))
    assert len(read_all(again)) == 1


def test_thirty_two_tails_one_after_the_other_leave_nothing(tails: Tails) -> None:
    for _ in range(32):
        pipe = tails.open([list], 1)
        put(tails, make_flows(1))
        assert len(read_all(pipe)) == 1
        os.close(pipe)

    assert tails.opened_total == 32


def test_a_mistake_ends_the_tails_and_not_the_reader_of_events(
    tails: Tails,
    opened: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    pipe = opened()
    with monkeypatch.context() as patch:
        patch.setattr(Tails, "_write", fail)
        put(tails, make_flows(1))

        assert read_all(pipe) == []
    again = opened(limit=1)
    put(tails, make_flows(1))
    assert len(read_all(again)) == 1
    assert "ending all of them" in caplog.text


def test_a_tail_at_its_limit_wants_no_more_and_gets_all_of_it(
    tails: Tails, opened: Callable[..., int]
) -> None:
    pipe = opened(limit=3)
    (tail,) = tails.wanting
    put(tails, make_flows(2))
    tails.put(tail, render(tails.template, make_flows(5, first=2)))
    wanting = tails.wanting
    tails.put(tail, render(tails.template, make_flows(1, first=9)))

    assert wanting == ()
    assert [record["src"] for record in read_all(pipe)] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]


def test_events_without_a_tail_go_nowhere(tails: Tails) -> None:
    put(tails, make_flows(5))
    tails.report(Lost(1, 1, 2, "kernel"))

    assert not tails._waiting
