"""A sink's descriptor in the hands of the reader, whose core writes to it without Python."""

from enum import IntEnum
from typing import NamedTuple


class Way(IntEnum):
    """How a text is written. core/batch_relay.c has the same."""

    KEEP = 0
    """It is not: whoever has it rendered gets it."""
    DISCARD = 1
    WRITE = 2
    """In whole lines, to a descriptor that does not block."""
    NOWAIT = 3
    """The same to one that was inherited, and may block."""
    SEND = 4
    """As datagrams over a connected socket."""


class Loan(NamedTuple):
    """A way, and the descriptor where it needs one."""

    way: Way
    descriptor: int = -1


class Written(NamedTuple):
    """What went out at once: the time of the first event, 0 where the kernel gave none, and when that was."""

    time: int
    done: int
    events: int
    bytes: int
