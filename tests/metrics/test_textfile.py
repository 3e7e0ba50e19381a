"""metrics/textfile.py: the page as a file, whole at every moment."""

import os
import threading
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from conntrackd.metrics import textfile
from conntrackd.metrics.textfile import TextFile


def test_it_is_replaced_whole_and_read_by_everyone(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.prom"
    file = TextFile(path)

    file.write(b"one\n")
    with path.open("rb") as old:
        file.write(b"another\n")
        assert old.read() == b"one\n"

    assert path.read_bytes() == b"another\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".conntrackd.prom.new").symlink_to(precious)

    TextFile(tmp_path / "conntrackd.prom").write(b"page\n")

    assert precious.read_text() == "kept"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, mocker: MockerFixture) -> None:
    path = tmp_path / "conntrackd.prom"
    path.write_text("old")
    mocker.patch.object(os, "fchmod", side_effect=OSError(28, "No space left on device"))

    with pytest.raises(OSError, match="No space"):
        TextFile(path).write(b"page\n")

    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with pytest.raises(FileNotFoundError):
        TextFile(tmp_path / "missing" / "x.prom").write(b"page\n")


def test_it_does_not_come_back_after_its_end(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.prom"
    file = TextFile(path)
    file.write(b"page\n")

    file.remove()
    file.write(b"of a thread that was late\n")

    assert list(tmp_path.iterdir()) == []


def test_the_end_does_not_wait_for_a_write_that_hangs(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(textfile, "REMOVE_SECONDS", 0.05)
    hangs, goes_on, write = threading.Event(), threading.Event(), textfile._replace

    def hang(path: Path, page: bytes) -> None:
        hangs.set()
        assert goes_on.wait(10)
        write(path, page)

    mocker.patch.object(textfile, "_replace", hang)
    file = TextFile(tmp_path / "conntrackd.prom")
    thread = threading.Thread(target=file.write, args=(b"page\n",))
    thread.start()
    assert hangs.wait(10)

    file.remove()

    assert thread.is_alive()
    goes_on.set()
    thread.join(10)

    assert list(tmp_path.iterdir()) == []
    file.write(b"of a thread that was late\n")
    assert list(tmp_path.iterdir()) == []
