"""What a sink is: three methods, and the ways in which it may say no."""

import errno
from collections.abc import Sequence
from enum import Enum
from typing import Protocol, runtime_checkable

from conntrackd.delivery.loan import Loan, Passed, Writer
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template


class SinkState(Enum):
    """What people see of a sink's health."""

    STARTING = "starting"
    OK = "ok"
    RETRYING = "retrying"
    REFUSED = "refused"
    """The receiver answers, and has taken nothing of what it was sent last."""
    FAILED = "failed"
    DISABLED = "disabled"


class SinkTrouble(Exception):  # noqa: N818  # an answer of the receiver, not an error of ours
    """What a sink raises from open() and write(); `reason` is one line for the log and the status."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SinkUnavailable(SinkTrouble):
    """The receiver cannot take it now: to be tried again, not before `retry_after` seconds where given.

    The first `written` events were accepted, and are not written again.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, written: int = 0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.written = written


class SinkRefused(SinkTrouble):
    """The receiver will never take it: to be dropped. `events` of the batch were refused, all for None."""

    def __init__(self, reason: str, events: int | None = None) -> None:
        super().__init__(reason)
        self.events = events


class SinkRevised(SinkTrouble):
    """The receiver wants it otherwise, and at once.

    Without `parts` the first `written` events were accepted, the next `refused` were not and never will be,
    and the rest is to be written. With `parts`, each is to be written alone in place of the whole, in this
    order; `written` of the whole were accepted as they stood, those that are in no part either were refused.
    """

    def __init__(
        self, reason: str, parts: Sequence[Rendered] | None = None, *, written: int = 0, refused: int = 0
    ) -> None:
        super().__init__(reason)
        self.parts = None if parts is None else tuple(parts)
        self.written = written
        self.refused = refused


class SinkFailed(SinkTrouble):
    """No retry can help (a closed stdout): the sink stays out until a person enables it again."""


class Sink(Protocol):
    """Where events go. All but close() are called by one thread; all may block, for a bounded time.

    open() and write() raise SinkUnavailable, SinkRefused, SinkRevised or SinkFailed. After anything but
    success and SinkRefused/SinkRevised the sink is closed and opened again before the next write.
    """

    @property
    def name(self) -> str:
        """That of its kind."""

    @property
    def template(self) -> Template:
        """How it writes a record: events come to write() in that form, or in that of a sink before it."""

    @property
    def batch_events(self) -> int:
        """As many events as it likes to have in one write."""

    @property
    def batch_wait(self) -> float:
        """Seconds that the first event may wait for others to join it; 0 writes at once."""

    def open(self) -> None:
        """Connect and read secrets. Called before the first write and after each trouble."""

    def write(self, parts: Sequence[Rendered]) -> int:
        """Return the number of bytes when the receiver has accepted all of it: events, or one loss."""

    def close(self) -> None:
        """Let go of everything. May be called twice, and from another thread to end a write that hangs."""


@runtime_checkable
class DirectSink(Sink, Protocol):
    """A sink that can be written to without waiting for anything."""

    def try_write(self, rendered: Rendered) -> tuple[int, int]:
        """How many of the first events were accepted at once, and as how many bytes.

        From any thread; never blocks, never fails.
        """

    def lend(self) -> Loan | None:
        """What try_write() writes to, for a while in which nothing else is called; None for not now."""

    def end_loan(self, passed: Passed) -> None:
        """What became of it. What was begun or refused comes to write(), the whole of it."""


@runtime_checkable
class FileSink(Sink, Protocol):
    """A sink whose thread can leave writing to the core."""

    def can_run_writer(self) -> bool:
        """Whether run_writer() would write: what it writes to is a file, and at the beginning of a line."""

    def run_writer(self, writer: Writer) -> None:
        """Run the writer. What that could not write comes to write(), which meets the same trouble."""


@runtime_checkable
class Successor(Protocol):
    """A sink that may follow one of its kind to the same receiver."""

    def succeed(self, old: Sink) -> None:
        """Take over what of a record the receiver has. Before open(); the old one is closed."""


def describe(error: Exception) -> str:
    """An exception in one line, with the system's text if it has one."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "too many files are open: LimitNOFILE= in the unit, or ulimit -n, is too low"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]
