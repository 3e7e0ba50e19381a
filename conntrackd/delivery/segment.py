"""The files of a spool: rows one behind the other, each with its length and two checksums.

A head that is damaged costs its row: the next one is found by the mark that it begins with. A body that is
damaged costs its row too, but its head says how many events were in it.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conntrackd.delivery.losses import Losses, dump_losses, load_losses
from conntrackd.delivery.spool_state import SpoolState
from conntrackd.delivery.store import PackedBatch
from conntrackd.files import opened

MARK: Final = b"\xffctrow\x01\n"
# Mark, number, events, time of the first, whether it is a report, lengths of losses and payload, and the
# checksums of the body and of the head up to here.
HEAD: Final = struct.Struct(">8sQIqBIIII")
CHECKED: Final = HEAD.size - 4
SEARCH_BYTES: Final = 1 << 20  # that are searched for a mark at once


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a row without reading it."""

    at: int
    number: int
    events: int
    oldest: int
    is_report: bool
    losses_size: int
    payload_size: int
    checksum: int

    @property
    def end(self) -> int:
        """Where the next row begins."""
        return self.at + HEAD.size + self.losses_size + self.payload_size


@dataclass(slots=True)
class Segment:
    """One file, and what of it is still to be delivered."""

    path: Path
    size: int = 0
    rows: int = 0
    events: int = 0
    last: int = 0
    """The highest number in it."""
    at: int = 0
    """Where the next row begins that is to be delivered."""
    is_kept: bool = False
    """Whether it is damaged, and a copy of it is kept aside."""


def encode_row(number: int, packed: PackedBatch, *, is_report: bool = False) -> bytes:
    """A row as it stands on disk."""
    losses = json.dumps(dump_losses(packed.losses)).encode() if packed.losses else b""
    body = losses + packed.payload
    head = HEAD.pack(
        MARK,
        number,
        packed.events,
        packed.oldest,
        is_report,
        len(losses),
        len(packed.payload),
        zlib.crc32(body),
        0,
    )[:CHECKED]
    return head + struct.pack(">I", zlib.crc32(head)) + body


def decode_head(data: bytes, at: int) -> Head | None:
    """None if it is not a head, or not as it was written."""
    if len(data) < HEAD.size:
        return None
    mark, number, events, oldest, report, losses, payload, body, checksum = HEAD.unpack_from(data)
    if mark != MARK or zlib.crc32(data[:CHECKED]) != checksum:
        return None
    return Head(at, number, events, oldest, bool(report), losses, payload, body)


def read_head(file: int, at: int) -> Head | None:
    """The head at this offset. OSError as read(2) says."""
    return decode_head(os.pread(file, HEAD.size, at), at)


def read_packed(file: int, head: Head) -> PackedBatch | None:
    """The row's packed batch. None when its body is not what was written."""
    body = os.pread(file, head.losses_size + head.payload_size, head.at + HEAD.size)
    if len(body) != head.losses_size + head.payload_size or zlib.crc32(body) != head.checksum:
        return None
    losses: Losses = load_losses(json.loads(body[: head.losses_size])) if head.losses_size else ()
    return PackedBatch(body[head.losses_size :], head.events, head.oldest, losses)


def find_head(file: int, at: int, size: int) -> Head | None:
    """The first head at or behind this offset, before the file's end."""
    while at < size:
        head = read_head(file, at)
        if head is not None and head.end <= size:
            return head
        at = _seek_mark(file, at + 1, size)
    return None


def _seek_mark(file: int, at: int, size: int) -> int:
    while at < size:
        data = os.pread(file, SEARCH_BYTES, at)
        found = data.find(MARK)
        if found >= 0:
            return at + found
        if len(data) < len(MARK):
            break
        at += len(data) - len(MARK) + 1  # a mark may stand across the border
    return size


def list_heads(file: int, size: int, at: int = 0) -> Iterator[Head]:
    """All heads from this offset on, in their order."""
    while (head := find_head(file, at, size)) is not None:
        yield head
        at = head.end


def scan_segment(path: Path, state: SpoolState) -> Segment:
    """What is left in a file. `is_kept` means for now that it has bytes outside of rows."""
    segment = Segment(path)
    with opened(path) as file:
        segment.size = os.fstat(file).st_size
        at = 0
        for head in list_heads(file, segment.size):
            segment.is_kept |= head.at != at
            at = head.end
            if state.is_gone(head.number) or head.number <= segment.last:
                continue
            segment.rows += 1
            segment.events += head.events
            segment.last = head.number
        segment.is_kept |= at != segment.size
    return segment
