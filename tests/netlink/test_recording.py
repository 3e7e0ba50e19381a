"""netlink/recording.py: what is written is read again, and damage is reported."""

import io
import struct
from pathlib import Path

import pytest

from conntrackd.engine import SLOT_BYTES, SLOTS, Engine, EventBatch
from conntrackd.errors import DataError
from conntrackd.netlink.recording import TIME, read_batches, write_batch
from tests.engine.feed import ENGINES, MESSAGES, receive
from tests.messages import attribute

RECEIVED_NS = 5


def write(path: Path, engine: Engine, *groups: list[bytes]) -> list[int]:
    """A batch for each group of messages; the times of receipt."""
    times, batch = [], engine.open_batch()
    with path.open("wb") as file:
        for messages in groups:
            receive(batch, *messages)
            assert write_batch(file, batch, 100) == len(messages)
            times.append(batch.received_ns)
    return times


def read(path: Path, engine: Engine) -> list[tuple[int, int, list[object]]]:
    """Time of receipt, messages and ids of events of each batch."""
    batch: EventBatch = engine.open_batch()
    return [
        (batch.received_ns, messages, [batch.describe(index)["id"] for index in range(len(batch))])
        for messages, _ in read_batches(path, RECEIVED_NS, batch)
    ]


def list_ids(engine: Engine, *messages: bytes) -> list[object]:
    batch = engine.open_batch()
    batch.load(b"".join(messages), 0, RECEIVED_NS)
    return [batch.describe(index)["id"] for index in range(len(batch))]


def test_batches_are_read_as_they_were_written_with_their_times(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "events.nl"
    times = write(path, engine, MESSAGES[:3], MESSAGES[3:5])

    assert read(path, engine) == [
        (times[0], 3, list_ids(engine, *MESSAGES[:3])),
        (times[1], 2, list_ids(engine, *MESSAGES[3:5])),
    ]


def test_a_recording_of_another_program_has_no_times(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "events.nl"
    path.write_bytes(b"".join(MESSAGES * 6))

    batches = read(path, engine)
    assert [found for _, _, ids in batches for found in ids] == list_ids(engine, *MESSAGES) * 6
    assert {received for received, _, _ in batches} == {RECEIVED_NS}
    assert max(messages for _, messages, _ in batches) == SLOTS


def test_no_more_is_written_than_asked_for(engine: Engine) -> None:
    file, batch = io.BytesIO(), engine.open_batch()
    receive(batch, *MESSAGES[:5])

    assert write_batch(file, batch, 2) == 2
    assert file.getvalue()[TIME.size :] == b"".join(MESSAGES[:2])


def test_what_was_too_long_for_its_slot_is_left_out(engine: Engine) -> None:
    file, batch = io.BytesIO(), engine.open_batch()
    long = MESSAGES[1] + attribute(999, bytes(SLOT_BYTES))
    receive(batch, MESSAGES[0], struct.pack("=I", len(long)) + long[4:], MESSAGES[2])

    assert write_batch(file, batch, 10) == 2
    assert file.getvalue()[TIME.size :] == MESSAGES[0] + MESSAGES[2]


def test_a_control_message_of_netlinks_in_a_recording_is_malformed(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "events.nl"
    done = struct.pack("=IHHIII", 20, 3, 0, 0, 0, 0)
    path.write_bytes(MESSAGES[0] + done + MESSAGES[1])
    batch = engine.open_batch()

    assert list(read_batches(path, RECEIVED_NS, batch)) == [(1, 0), (1, 1), (1, 0)]


@pytest.mark.parametrize("content", [b"root:x:0:0:root:/root:/bin/bash\n", b"\0" * 16, b"\x03", b"\xff" * 64])
def test_another_file_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)

    with pytest.raises(DataError, match="is not a recording"):
        read(path, ENGINES[0])


def test_what_stands_before_the_damage_is_read(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "events.nl"
    path.write_bytes(MESSAGES[0] + MESSAGES[1][:-1])
    batches = read_batches(path, RECEIVED_NS, engine.open_batch())

    assert next(batches) == (1, 0)
    with pytest.raises(DataError, match=f"is damaged or truncated at byte {len(MESSAGES[0])}"):
        next(batches)


def test_a_recording_longer_than_what_is_read_at_a_time_is_read_whole(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.nl"
    times = write(path, engine, *[[message] for message in MESSAGES])
    monkeypatch.setattr("conntrackd.netlink.recording.CHUNK_BYTES", 100)

    assert [received for received, _, _ in read(path, engine)] == times
