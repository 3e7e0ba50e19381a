"""netlink/recording.py: what is written is read again, and damage is told."""

import io
from pathlib import Path

import pytest

from conntrackd.errors import DataError
from conntrackd.netlink.recording import read_batches, write_batch
from conntrackd.netlink.socket import SLOTS, Datagrams
from tests.netlink.test_decode import MESSAGES

RECEIVED = 5


def make_batch(messages: list[bytes], received: int) -> Datagrams:
    positions, buffer = [], b""
    for message in messages:
        positions.append(len(buffer))
        buffer += message
    return Datagrams(memoryview(buffer), positions, [len(each) for each in messages], 0, received)


def read(path: Path) -> list[tuple[int, list[bytes]]]:
    return [
        (
            batch.received_ns,
            [
                bytes(batch.buffer[position : position + length])
                for position, length in zip(batch.positions, batch.lengths, strict=True)
            ],
        )
        for batch in read_batches(path, RECEIVED)
    ]


def test_batches_are_read_as_they_were_written_with_their_times(tmp_path: Path) -> None:
    path = tmp_path / "events.nl"
    with path.open("wb") as file:
        write_batch(file, make_batch(MESSAGES[:3], 1000), 100)
        write_batch(file, make_batch(MESSAGES[3:5], 2000), 100)

    assert read(path) == [(1000, MESSAGES[:3]), (2000, MESSAGES[3:5])]


def test_a_recording_of_another_program_has_no_times(tmp_path: Path) -> None:
    path = tmp_path / "events.nl"
    path.write_bytes(b"".join(MESSAGES * 3))

    batches = read(path)
    assert [message for _, messages in batches for message in messages] == MESSAGES * 3
    assert {received for received, _ in batches} == {RECEIVED}
    assert max(len(messages) for _, messages in batches) == SLOTS


def test_no_more_is_written_than_asked_for() -> None:
    file = io.BytesIO()

    assert write_batch(file, make_batch(MESSAGES[:5], 1000), 2) == 2


def test_what_was_too_long_for_its_slot_is_left_out() -> None:
    whole = make_batch(MESSAGES[:1], 1000)
    cut = whole._replace(lengths=[0])

    assert write_batch(io.BytesIO(), cut, 10) == 0


@pytest.mark.parametrize("content", [b"root:x:0:0:root:/root:/bin/bash\n", b"\0" * 16, b"\x03", b"\xff" * 64])
def test_another_file_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)

    with pytest.raises(DataError, match="is no recording"):
        read(path)


def test_what_stands_before_the_damage_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.nl"
    path.write_bytes(MESSAGES[0] + MESSAGES[1][:-1])
    batches = read_batches(path, RECEIVED)

    assert len(next(batches).lengths) == 1
    with pytest.raises(DataError, match=f"is damaged or cut short at byte {len(MESSAGES[0])}"):
        next(batches)
