"""What the source notes for a next process. All that takes a kernel is in live/."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from conntrackd.config.read import read_config
from conntrackd.flow import NANO
from conntrackd.reader import ReportedDrops
from conntrackd.source.kernel import KernelSource
from conntrackd.source.state_directory import StateDirectory
from conntrackd.stats import Stats

Notes = list[tuple[Any, ...]]


class Noting:
    """In the place of a StateDirectory."""

    def __init__(self) -> None:
        self.notes: Notes = []

    def note_running(self, since_ns: int) -> None:
        self.notes.append(("running", since_ns > 0))

    def note_listening(self, until_ns: int, held: dict[str, int], *, at_once: bool = False) -> None:
        self.notes.append((until_ns, held, at_once))


def make_source(state: object, *, emptied: list[float], oldest: dict[str, int | None]) -> KernelSource:
    """With readers that emptied their sockets so many seconds ago, and sinks with records of such times."""
    now = time.monotonic()
    readers = [SimpleNamespace(emptied_at=now - ago, listen=lambda *_: None) for ago in emptied]
    outboxes = [
        SimpleNamespace(name=name, find_oldest=lambda found=found: found) for name, found in oldest.items()
    ]
    pipeline = SimpleNamespace(readers=readers, outboxes=outboxes)
    source = KernelSource(read_config({}, {}), state, None, pipeline, Stats())  # type: ignore[arg-type]
    source.events = SimpleNamespace(sockets=dict(enumerate(readers)))  # type: ignore[assignment]
    source._reported = [ReportedDrops()] * len(readers)
    return source


def test_what_is_noted_is_how_far_the_slowest_reader_is_and_what_in_sinks_is_older() -> None:
    state, now = Noting(), time.time_ns()
    oldest = {"a": now - 300 * NANO, "b": None, "c": now - 50 * NANO}
    make_source(state, emptied=[1.0, 100.0], oldest=oldest).note_listening()

    ((until, held, at_once),) = state.notes
    assert abs(until - (now - 100 * NANO)) < 50 * NANO
    assert (held, at_once) == ({"a": now - 300 * NANO}, False)


def test_nothing_is_noted_before_each_reader_has_emptied_its_socket() -> None:
    state = Noting()
    make_source(state, emptied=[1.0, math.inf], oldest={}).note_listening()

    assert state.notes == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_is_noted_when_each_reader_has_come_to_its_end(number: int) -> None:
    state = Noting()
    source = make_source(state, emptied=[1.0] * number, oldest={})
    for reader in range(number):
        source.note_stopped()
        source.listen(reader)
    before, state.notes = state.notes, []
    source.note_stopped()

    assert before == [("running", True)] * number
    assert [note[-1] for note in state.notes] == [True, False]
    assert state.notes[-1] == ("running", False)


def test_a_reader_that_fails_leaves_the_note_as_it_is() -> None:
    state = Noting()
    source = make_source(state, emptied=[1.0], oldest={})

    def fail(*_: object) -> None:
        raise OSError

    source._pipeline.readers[0].listen = fail  # type: ignore[assignment]
    with pytest.raises(OSError):  # noqa: PT011  # it is ours
        source.listen(0)
    source.note_stopped()

    assert state.notes == [("running", True)]


def test_without_a_state_directory_there_is_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(StateDirectory(None), emptied=[1.0], oldest={})
    source.listen(0)
    source.note_stopped()

    assert caplog.records == []
