"""What a spool knows of itself beside its rows: twice in one small file, so that one may be damaged."""

import json
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conntrackd.delivery.losses import Losses, dump_losses, join_losses, load_losses
from conntrackd.files import opened

SLOT: Final = 8192  # bytes of a copy: a loss has some 80, and there are less than twenty kinds of them
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class SpoolState:
    """Rows up to number `done` are delivered, and those of the `cut` have gone to keep the bound.

    So `events` are in rows with a number below `next`: what cannot be read of them is known by that.
    """

    turn: int = 0
    done: int = 0
    next: int = 1
    events: int = 0
    cut: tuple[int, int] = (0, 0)
    losses: Losses = ()

    def is_gone(self, number: int) -> bool:
        """Whether the row is not to be delivered any more."""
        return number <= self.done or self.cut[0] <= number <= self.cut[1]


def encode_state(state: SpoolState) -> bytes:
    """Both copies."""
    values = [FORMAT, state.turn, state.done, state.next, state.events, list(state.cut)]
    losses = state.losses
    text = json.dumps([*values, dump_losses(losses)]).encode()
    while len(text) > SLOT - 16:  # nothing has so many kinds of losses
        losses = losses[1:]
        text = json.dumps([*values, dump_losses(losses)]).encode()
    slot = (b"%08x %s\n" % (zlib.crc32(text), text)).ljust(SLOT, b" ")
    return slot * 2


def decode_state(data: bytes) -> SpoolState | None:
    """The newer of the copies that are whole. A process that is killed leaves two that differ by one turn."""
    found = [_decode_slot(data[start : start + SLOT]) for start in (0, SLOT)]
    return max((state for state in found if state is not None), key=lambda state: state.turn, default=None)


def _decode_slot(slot: bytes) -> SpoolState | None:
    checksum, _, text = slot.rstrip(b" \n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        form, turn, done, following, events, (first, last), losses = json.loads(text)
        numbers = [int(number) for number in (turn, done, following, events, first, last)]
        if form != FORMAT or min(numbers) < 0:
            return None
        return SpoolState(turn, done, following, events, (first, last), join_losses(load_losses(losses)))
    except (ValueError, TypeError):
        return None


def read_state(path: Path) -> SpoolState | None:
    """None where there is none that can be read. OSError as read(2) says."""
    with opened(path) as file:
        return decode_state(os.pread(file, 2 * SLOT, 0)) if stat.S_ISREG(os.fstat(file).st_mode) else None
