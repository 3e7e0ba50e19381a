"""A sink's descriptor in the hands of the core: of the reader, or of the sink's own thread."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from conntrackd.render.rendered import Rendered


class Way(IntEnum):
    """How a text is written. core/outlet.h has the same."""

    KEEP = 0
    """It is not: a Writer takes it, or whoever has it rendered gets it."""
    DISCARD = 1
    WRITE = 2
    """In whole lines, to a descriptor that does not block."""
    NOWAIT = 3
    """The same to one that was inherited, and may block."""
    SEND = 4
    """As datagrams over a connected socket."""
    NUMBER = 5
    """The same, each with its number of a syslog message."""
    SEGMENT = 6
    """The same, padded, and many in one call."""


class Loan(NamedTuple):
    """A way, and the descriptor where it needs one."""

    way: Way
    descriptor: int = -1
    number: int = 1
    """Of the next message of syslog."""
    also_refused: int = 0
    """So many of the datagrams before one that is refused went nowhere, too."""


class Written(NamedTuple):
    """One write by the core: the time of its first event, 0 where the kernel gave none, and of its end."""

    time: int
    done: int
    events: int
    bytes: int


class Passed(NamedTuple):
    """What became of the events of one loan, or of those that were kept."""

    written: Sequence[Written] = ()
    rest: Rendered = Rendered(b"", b"", 0, 0)
    """What was not written, nor left for a Writer."""
    is_timed: bool = False
    """Whether it has the kernel's times."""
    torn: int = 0
    """Bytes of it that were."""
    number: int = 0
    """Of the next message of syslog; 0 where nothing was lent."""
    error: int = 0
    """What the socket had to say, an errno: it says it once."""
    left: int = 0
    """Events that a Writer has taken."""


NOTHING_PASSED: Final = Passed()


class Writer(Protocol):
    """Text that a relay leaves for the thread of a sink, which writes it to a file without Python."""

    def start(self) -> None:
        """From now on text may be left, which the next run() writes."""

    def stop(self) -> None:
        """No more may be: run() ends when all is written. From any thread."""

    def give_up(self) -> None:
        """The same, and what run() has not begun to write is forgotten."""

    def run(self, descriptor: int, is_named: bool, /) -> tuple[int, int, int]:
        """Write until stop(), or until not all can be written, which stops it.

        Of the last write: bytes of the file before, bytes written, and those of whole lines. `is_named`:
        write nothing to a file that was deleted.
        """

    def take_counts(self) -> tuple[int, int, Sequence[tuple[int, int, int, int]]]:
        """Events taken since the last call, the time of the first that is not written (0: none),
        and the writes since then: see Written. From any thread."""

    def take_rest(self) -> Sequence[tuple[tuple[bytes, bytes, int, int], bool]]:
        """What run() has not written: see Rendered; and whether its time is the kernel's."""
