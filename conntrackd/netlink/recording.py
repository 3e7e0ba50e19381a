"""Write and replay raw netlink messages.

A recording is the messages one after the other, as they came, each with its length in its header. Before each
batch stands an NLMSG_NOOP, which netlink has for padding, with the time of receipt (u64, ns since the epoch),
so that a replay gives the events the times they had. Other programs skip it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from conntrackd.errors import DataError
from conntrackd.netlink.constants import NLMSG_HDRLEN, NLMSG_NOOP
from conntrackd.netlink.message import HEADER

if TYPE_CHECKING:
    from conntrackd.engine import EventBatch

TIME: Final = struct.Struct(f"{HEADER.format}Q")
# The kernel's longest event is far below it; a longer one means that the file is not a recording.
MAX_MESSAGE: Final = 1 << 16
CHUNK_BYTES: Final = 1 << 20


def write_batch(file: BinaryIO, batch: "EventBatch", limit: int) -> int:
    """Append at most `limit` messages of the last receive; returns how many."""
    count, messages = batch.datagrams(limit)
    file.write(TIME.pack(TIME.size, NLMSG_NOOP, 0, 0, 0, batch.received_ns))
    file.write(messages)
    return count


def explain_fault(path: Path) -> str:
    """Why the file cannot be replayed, as far as its first message shows; empty where it may be."""
    try:
        if not path.is_file():  # a pipe is left for the replay itself
            missing = "no such file" if path.name != "-" else "no such file: standard input is /dev/stdin"
            return "is a directory" if path.is_dir() else "" if path.exists() else missing
        with path.open("rb") as file:
            begin = file.read(NLMSG_HDRLEN)
    except PermissionError:
        return "not permitted"
    except OSError as error:
        return error.strerror or str(error)
    if begin and (len(begin) < NLMSG_HDRLEN or not _is_length(HEADER.unpack(begin)[0])):
        return "is not a recording of netlink messages"
    return ""


def _is_length(length: int) -> bool:
    return NLMSG_HDRLEN <= length <= MAX_MESSAGE


def read_batches(path: Path, received_ns: int, batch: "EventBatch") -> Iterator[tuple[int, int]]:
    """Load the batch again and again; gives messages and malformed ones of each load.

    `received_ns` is for a recording that holds no times. Raises DataError where the file is not, or no
    longer, a recording, after what stands before the damage; OSError.
    """
    with path.open("rb") as file:
        content, offset, begin = b"", 0, 0
        while True:
            more = file.read(CHUNK_BYTES)
            content, begin, offset = content[offset:] + more, begin + offset, 0
            while len(content) - offset >= NLMSG_HDRLEN:
                length, kind, *_ = HEADER.unpack_from(content, offset)
                if not _is_length(length):
                    raise _explain(path, begin + offset)
                if offset + length > len(content):
                    break
                if kind == NLMSG_NOOP:
                    received_ns = (
                        TIME.unpack_from(content, offset)[-1] if length == TIME.size else received_ns
                    )
                    offset += length + 3 & ~3
                    continue
                offset, messages, malformed = _load(batch, content, offset, received_ns)
                yield messages, malformed
            if not more:
                break
        if offset < len(content):
            raise _explain(path, begin + offset)


def _load(batch: "EventBatch", content: bytes, offset: int, received_ns: int) -> tuple[int, int, int]:
    end, messages, malformed = batch.load(content, offset, received_ns)
    if messages:
        return end, messages, malformed
    # A control message, which is not an event and does not belong in a recording.
    length = HEADER.unpack_from(content, offset)[0]
    return min(offset + (length + 3 & ~3), len(content)), 1, 1


def _explain(path: Path, offset: int) -> DataError:
    if offset == 0:
        hint = "'conntrackd record FILE' writes one"
        return DataError("is not a recording of netlink messages", origin=str(path), hint=hint)
    hint = "everything before it was processed"
    return DataError(f"is damaged or truncated at byte {offset}", origin=str(path), hint=hint)
