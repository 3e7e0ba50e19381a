"""Write and replay raw netlink messages.

A recording is the messages one after the other, as they came: each tells its own length. Before each batch
stands an NLMSG_NOOP, which netlink has for padding, with the time of receipt (u64, ns since the epoch), so
that a replay gives the events the times they had. Other programs skip it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from conntrackd.errors import DataError
from conntrackd.netlink.constants import NLMSG_HDRLEN, NLMSG_NOOP
from conntrackd.netlink.decode import HEADER
from conntrackd.netlink.socket import SLOTS, Datagrams

TIME: Final = struct.Struct(f"{HEADER.format}Q")
# The kernel's longest event is far below it; a longer one means that this is no recording.
MAX_MESSAGE: Final = 1 << 16


def write_batch(file: BinaryIO, batch: Datagrams, limit: int) -> int:
    """Append at most `limit` messages; returns how many."""
    file.write(TIME.pack(TIME.size, NLMSG_NOOP, 0, 0, 0, batch.received_ns))
    count = 0
    for position, length in zip(batch.positions, batch.lengths, strict=True):
        if count == limit:
            break
        message = bytes(batch.buffer[position : position + length])
        if length:  # else the slot was too short for it, and the rest is gone
            file.write(message + bytes(-length % 4))
            count += 1
    return count


def read_batches(path: Path, received_ns: int) -> Iterator[Datagrams]:
    """The messages of a recording, at most SLOTS in a batch; `received_ns` is for one that holds no times.

    Raises DataError where the file is not, or no longer, a recording; OSError.
    """
    damage = None
    with path.open("rb") as file:
        positions: list[int] = []
        lengths: list[int] = []
        content = bytearray()
        for message in _read_messages(file, path):
            if isinstance(message, DataError):
                damage = message  # what stands before it comes first
                break
            kind = HEADER.unpack_from(message)[1]
            is_time = kind == NLMSG_NOOP and len(message) == TIME.size
            if positions and (is_time or len(positions) == SLOTS):
                yield Datagrams(memoryview(bytes(content)), positions, lengths, 0, received_ns)
                positions, lengths, content = [], [], bytearray()
            if is_time:
                received_ns = TIME.unpack(message)[-1]
            else:
                positions.append(len(content))
                lengths.append(len(message))
                content += message
        if positions:
            yield Datagrams(memoryview(bytes(content)), positions, lengths, 0, received_ns)
    if damage is not None:
        raise damage


def _read_messages(file: BinaryIO, path: Path) -> Iterator[bytes | DataError]:
    """Each message without its padding; last of all what is wrong with the file."""
    offset = 0
    while header := file.read(NLMSG_HDRLEN):
        length = HEADER.unpack(header)[0] if len(header) == NLMSG_HDRLEN else 0
        if not NLMSG_HDRLEN <= length <= MAX_MESSAGE:
            yield _explain(path, offset)
            return
        aligned = (length + 3) & ~3
        rest = file.read(aligned - NLMSG_HDRLEN)
        if len(rest) < length - NLMSG_HDRLEN:
            yield _explain(path, offset)
            return
        yield (header + rest)[:length]
        offset += aligned


def _explain(path: Path, offset: int) -> DataError:
    if offset == 0:
        hint = "'conntrackd record FILE' writes one"
        return DataError("is no recording of netlink messages", place=str(path), hint=hint)
    hint = "what stands before it was processed"
    return DataError(f"is damaged or cut short at byte {offset}", place=str(path), hint=hint)
