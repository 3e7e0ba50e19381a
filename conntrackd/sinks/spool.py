"""Batches on disk for a sink that can be away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from conntrackd.sinks.sink import Parcel

P = TypeVar("P")


class SpoolError(Exception):
    """The disk does not take it: full, read-only, broken."""


class SpoolDamagedError(SpoolError):
    """What is on the disk cannot be read any more."""


@dataclass(frozen=True, slots=True)
class Row(Generic[P]):
    """A parcel on disk."""

    number: int
    parcel: Parcel[P]


class Store(Protocol[P]):
    """Parcels on disk, oldest first: spool.py. Used by one thread at a time."""

    @property
    def rows(self) -> int:
        """Parcels in it."""

    @property
    def events(self) -> int:
        """Events in it."""

    @property
    def oldest(self) -> int:
        """Time of its oldest record, 0 for none."""

    def append(self, parcels: Sequence[Parcel[P]]) -> list[Row[P]]:
        """Stores all or none of them behind the others. Returns the oldest rows, which had to go for them."""

    def first(self) -> Row[P] | None:
        """The oldest row."""

    def remove(self, row: Row[P]) -> None:
        """The row has been delivered or refused."""

    def set_aside(self) -> None:
        """Keeps the damaged file under another name and starts anew, empty."""

    def close(self) -> None:
        """Lets another process open it."""
