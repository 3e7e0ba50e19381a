"""What a sink is: three methods, the payload between them, and the ways in which it may say no."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from conntrackd.flow import Batch, Lost
from conntrackd.sinks.encode import Form

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Parcel(Generic[P]):
    """A payload, encoded once and the same bytes at every attempt, and how many events are in it.

    LOST records are in the payload but not in `events`: they are about events that are counted elsewhere.
    """

    payload: P
    events: int
    oldest: int = 0
    """Time of the first record, as in Flow."""
    losses: tuple[Lost, ...] = ()
    """The LOST records in it: reported again when the parcel itself is lost."""


class SinkState(Enum):
    """What people see of a sink's health."""

    STARTING = "starting"
    OK = "ok"
    RETRYING = "retrying"
    FAILED = "failed"
    DISABLED = "disabled"


class SinkTrouble(Exception):  # noqa: N818  # what the receiver says is no error of ours
    """What a sink raises from open() and write(); `reason` is one line for the log and the status."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SinkUnavailable(SinkTrouble):
    """The receiver cannot take it now: to be tried again, not before `retry_after` seconds where given.

    `rest` is what remains of the payload when the first part of it has been accepted.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, *, rest: "Parcel[Any] | None" = None
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.rest = rest


class SinkRefused(SinkTrouble):
    """The receiver will never take it: to be dropped. `events` of the payload were refused, all for None.

    `losses` are the LOST records that were refused with them: to be told again.
    """

    def __init__(self, reason: str, events: int | None = None, *, losses: Sequence[Lost] = ()) -> None:
        super().__init__(reason)
        self.events = events
        self.losses = losses


class SinkRevised(SinkTrouble):
    """The receiver wants it otherwise: these parcels in its place, in this order.

    `delivered` events of it were accepted as they stood; those that are in no parcel either were refused.
    """

    def __init__(self, reason: str, parcels: "Sequence[Parcel[Any]]", *, delivered: int = 0) -> None:
        super().__init__(reason)
        self.parcels = tuple(parcels)
        self.delivered = delivered


class SinkFailed(SinkTrouble):
    """No retry can help (a closed stdout): the sink stays out until a person enables it again."""


class Sink(Protocol[P]):
    """Where events go. All but close() are called by one thread; all may block, for a bounded time.

    open() and write() raise SinkUnavailable, SinkRefused, SinkRevised or SinkFailed. After anything but
    success and SinkRefused/SinkRevised the sink is closed and opened again before the next write.
    """

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> Form | None:
        """How it writes events: then encode() gets Pieces in that form, or records, or both."""

    @property
    def batch_events(self) -> int:
        """As many events as it likes to have in one payload."""

    @property
    def batch_wait(self) -> float:
        """Seconds that the first event may wait for others to join it; 0 writes at once."""

    def open(self) -> None:
        """Connects and reads secrets. Called before the first write and after each trouble."""

    def encode(self, batch: Batch) -> P:
        """The batch as this sink writes it. Pure: nothing is sent, nothing can fail."""

    def write(self, payload: P) -> int:
        """Returns the number of bytes when the receiver has accepted all of it."""

    def close(self) -> None:
        """Lets go of everything. May be called twice, and from another thread to end a write that hangs."""


def describe(error: Exception) -> str:
    """An exception in one line, in the system's words where there are some."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "too many files are open: LimitNOFILE= in the unit, or ulimit -n, is too small"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]
