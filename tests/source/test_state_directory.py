"""What one process notes for the next, which a new StateDirectory on the same folder stands for."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntrackd.flow import ABSENT, NANO, Lost
from conntrackd.netlink.socket import NAME
from conntrackd.source.state_directory import NOTE_SECONDS, StateDirectory

BEGAN, NOTED, NOW = 1000 * NANO, 2000 * NANO, 3000 * NANO


class Processes:
    """One after the other: with the next one the last has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: StateDirectory | None = None

    def start(self) -> StateDirectory:
        self.end()
        self._last = StateDirectory(self._path)
        return self._last

    def end(self) -> None:
        if self._last is not None:
            assert self._last._lock is not None
            os.close(self._last._lock)
            self._last = None


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


def make_kill(since: int) -> Lost:
    return Lost(ABSENT, since, NOW, "daemon", "ended without a stop")


def test_a_process_that_was_not_stopped_is_found_until_one_is(processes: Processes) -> None:
    first = processes.start()
    before = first.find_kill(NOW)
    first.note_running(BEGAN)
    early = first.find_kill(NOW)
    first.note_listening(NOTED, {})
    second = processes.start()
    killed = second.find_kill(NOW)
    second.note_running(NOW)  # and is killed before anything is noted or reported
    third = processes.start()
    again = third.find_kill(NOW)
    third.note_running(NOW)
    third.note_running(0)
    stopped = processes.start().find_kill(NOW)

    assert (before, early) == (None, make_kill(BEGAN))
    assert killed == again == make_kill(NOTED)
    assert stopped is None


def test_who_is_killed_twice_before_anything_is_noted_keeps_the_older_time(processes: Processes) -> None:
    first = processes.start()
    first.note_running(BEGAN)
    second = processes.start()
    second.note_running(NOTED)

    assert processes.start().find_kill(NOW) == make_kill(BEGAN)


def test_a_time_that_is_still_to_come_does_not_make_a_loss_of_less_than_nothing(processes: Processes) -> None:
    state = processes.start()
    state.note_running(BEGAN)
    state.note_listening(NOW + 1, {})

    assert state.find_kill(NOW) == make_kill(NOW)


def test_what_sinks_have_in_memory_is_noted_with_the_time_or_the_time_is_not(
    processes: Processes, tmp_path: Path
) -> None:
    first = processes.start()
    first.note_listening(BEGAN, {"loki": 7})
    soon = BEGAN + NOTE_SECONDS * NANO - 1
    first.note_listening(soon, {"loki": 8})
    second = processes.start()
    begun = second.read_held()
    second.note_listening(NOTED, {})
    third = processes.start()
    noted = third.read_held()
    (tmp_path / "held.new").mkdir()  # where it would be written
    third.note_listening(NOW, {"loki": 9})
    fourth = processes.start()

    assert (begun, noted) == ({"loki": 7}, {})
    assert fourth.read_held() == {}
    assert int((tmp_path / "listened").read_text()) == NOTED


@pytest.mark.parametrize("text", ["", "[1]", '{"loki": null}', '{"loki": "x"}', "\0", "nul"])
def test_a_note_that_cannot_be_read_is_none(processes: Processes, tmp_path: Path, text: str) -> None:
    (tmp_path / "held").write_text(text)
    (tmp_path / "running").write_text(text)

    assert processes.start().read_held() == {}
    assert processes.start().find_kill(NOW) is None


def test_on_a_disk_that_takes_no_new_file_the_note_is_written_all_the_same(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = processes.start()
    state.note_running(BEGAN)
    state.note_running(0)
    is_made, really = os.O_CREAT | os.O_TRUNC, os.open

    def refuse(path: Path, flags: int, *more: int) -> int:
        if flags & is_made and (flags & os.O_TRUNC or not Path(path).exists()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    state.note_running(NOTED)
    assert state.find_kill(NOW) == make_kill(NOTED)
    assert state.unwritten.fault is None


def test_a_note_that_cannot_be_written_is_a_fault_until_it_is_written(
    processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "drops.new").mkdir()  # where it would be written
    state = processes.start()
    state.note_running(BEGAN)
    state.note_drops(NAME, 7)
    state.note_listening(NOTED, {"loki": 5})
    failed, noted = str(state.unwritten.fault), processes.start().read_held()
    (tmp_path / "running").rmdir()
    state.note_listening(NOW, {"loki": 5})
    partly = str(state.unwritten.fault)
    (tmp_path / "drops.new").rmdir()
    state.note_listening(NOW + NOTE_SECONDS * NANO, {"loki": 5})

    assert (
        failed
        == caplog.messages[0]
        == (
            f"state_directory: {tmp_path}/running cannot be written (Is a directory): "
            "the next start may report losses wrongly, or not at all\n"
            f"hint: let conntrackd write there; under systemd with ReadWritePaths={tmp_path}"
        )
    )
    assert noted == {"loki": 5}
    assert f"{tmp_path}/drops cannot be written" in partly
    assert state.unwritten.fault is None
    assert state.read_drops(NAME) == 7
    assert state.find_kill(NOW) == make_kill(NOW)


def test_a_begin_that_could_not_be_noted_is_not_noted_after_a_stop(
    processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "running").mkdir()
    state = processes.start()
    state.note_running(BEGAN)
    (tmp_path / "running").rmdir()
    state.note_running(0)
    state.note_drops(NAME, 7)

    assert processes.start().find_kill(NOW) is None


def test_what_sinks_have_in_memory_is_written_anew_after_it_could_not_be(
    processes: Processes, tmp_path: Path
) -> None:
    state = processes.start()
    state.note_listening(BEGAN, {})
    (tmp_path / "held.new").mkdir()
    state.note_listening(NOTED, {"loki": 5})
    (tmp_path / "held.new").rmdir()
    state.note_drops(NAME, 7)  # with which it is tried again
    late = state.read_held()
    state.note_listening(NOW, {})

    assert (late, state.read_held()) == ({"loki": 5}, {})


def test_without_a_directory_nothing_is_noted_or_found() -> None:
    state = StateDirectory(None)

    state.note_running(BEGAN)
    state.note_listening(NOTED, {"loki": 1})
    assert (state.find_kill(NOW), state.find_gap(NOW), state.read_held()) == (None, None, {})
