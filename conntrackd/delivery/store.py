"""What an outbox needs of a spool: rows on disk, oldest first, and what is gone of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from conntrackd.delivery.losses import Losses
from conntrackd.flow import Lost


class SpoolError(Exception):
    """The disk does not take it or give it back: full, read-only, broken."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as bytes, how many events are in it, and the time of its first record."""

    payload: bytes
    events: int
    oldest: int = 0
    losses: Losses = ()
    """The LOST record in it: reported again when the packed itself is lost."""


@dataclass(frozen=True, slots=True)
class Row:
    """A packed on disk."""

    number: int
    packed: PackedBatch
    intact: bool = True
    """Whether it is what was stored. If not, only the number of its events is known."""


class Store(Protocol):
    """Packed batches on disk, oldest first. Used by one thread at a time. Its methods raise SpoolError."""

    @property
    def rows(self) -> int:
        """Batches in it."""

    @property
    def events(self) -> int:
        """Events in it."""

    @property
    def oldest(self) -> int:
        """Time of its oldest record, 0 for none."""

    @property
    def damage(self) -> str:
        """What could not be read when it was opened, empty for nothing."""

    @property
    def missing(self) -> int:
        """Events that were in it and could not be read when it was opened."""

    @property
    def restored(self) -> int | None:
        """Events that were found when it was opened first; None as long as the disk does not let it."""

    @property
    def losses(self) -> Losses:
        """What is gone and has not been reported yet. On disk, too."""

    def append(
        self, batches: Sequence[PackedBatch], *, keep: int | None = None, is_report: bool = False
    ) -> list[Row]:
        """Store all or none of them behind the others. With `is_report` each stands for its `losses`.

        Returns the oldest rows, which had to go for them; never the one numbered `keep`.
        """

    def first(self) -> Row | None:
        """The oldest row."""

    def remove(self, row: Row) -> None:
        """The oldest row is done with: first() never gives it again. One that is not intact is a loss."""

    def note(self, losses: Sequence[Lost]) -> None:
        """Add to the losses what was lost elsewhere."""

    def set_aside(self) -> str:
        """Keep the files under another name, which is returned, and start anew and empty."""

    def close(self) -> None:
        """Let another process open it."""
