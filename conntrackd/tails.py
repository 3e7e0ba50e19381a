"""Tails: events as JSON lines in pipes, for `conntrackctl tail`. A slow reader is dropped, and counted.

Not a sink: nothing is kept, spooled or repeated for a tail. What each gets is decided and rendered by the
reader of events, like what sinks get; here are the pipes.
"""

import fcntl
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from conntrackd import apart
from conntrackd.engine import Opaque
from conntrackd.errors import UnavailableError
from conntrackd.flow import Lost
from conntrackd.render import json
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template

logger = logging.getLogger(__name__)

MAX_TAILS: Final = 8
# Events that may wait for the thread; at 50,000 a second it has more than a second.
MAX_WAITING: Final = 65536
# Text that may wait for one reader, about 16,000 events, above what its pipe holds.
MAX_UNREAD: Final = 8 << 20
PIPE_BYTES: Final = 1 << 20  # the largest that an unprivileged process may ask for


@dataclass(eq=False, slots=True)
class Tail:
    """One reader, and what it asked for."""

    rules: Sequence[Opaque]
    """What says which events it gets, one for each reader of events: nothing to this module."""
    pipe: int
    left: int | None
    """Counts down to the limit that was asked for; None is none."""
    unread: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    """Whether the thread has taken all that there will be."""
    missed: Lost | None = None
    """Events that were dropped and are not reported yet."""


class Tails:
    """The open tails. put() and report() cost one look at a flag while there are none."""

    def __init__(self, template: Template = json.TEMPLATE) -> None:
        self.template = template
        """What is put is rendered by it."""
        self.wanting: tuple[Tail, ...] = ()
        """Those that are not at their limit. Replaced as a whole whenever they change."""
        self.opened_total = 0
        self.dropped_total = 0
        """Tails that were closed because nobody read them fast enough."""
        self._lock = threading.Condition()
        # Guarded by the lock:
        self._waiting: deque[tuple[Tail | None, Rendered]] = deque()  # without a tail it is for all
        self._events = 0
        self._fresh: list[Tail] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1
        # The thread's own, but for its length:
        self._tails: list[Tail] = []

    def __len__(self) -> int:
        return len(self._tails) + len(self._fresh)

    # ---- for the reader of events ---------------------------------------------------------------------

    def put(self, tail: Tail, rendered: Rendered) -> None:
        """Take events for a tail, as many as it still wants, or drop them if too much waits."""
        with self._lock:
            if tail not in self.wanting or not rendered.events:  # it ended just now
                return
            if tail.left is not None and tail.left < rendered.events:
                rendered = rendered.split(tail.left)[0]
            if self._events + rendered.events > MAX_WAITING:
                since = rendered.time if tail.missed is None else tail.missed.since
                count = rendered.events + (0 if tail.missed is None else tail.missed.count)
                tail.missed = Lost(count, since, rendered.time, "tail", "queue")
                return
            if tail.missed is not None:
                self._append(tail, self.template.render_loss(tail.missed))
                tail.missed = None
            self._append(tail, rendered)
            if tail.left is not None:
                tail.left -= rendered.events
                self._list_wanting()

    def report(self, lost: Lost) -> None:
        """A LOST record for every tail, whatever its rules."""
        if not self.wanting:
            return
        with self._lock:
            if self.wanting:
                self._append(None, self.template.render_loss(lost))

    def _append(self, tail: Tail | None, rendered: Rendered) -> None:
        if not self._waiting:
            self._wake()
        self._waiting.append((tail, rendered))
        self._events += rendered.events

    def _wake(self) -> None:
        if self._wake_write >= 0:
            os.write(self._wake_write, b"\0")

    def _list_wanting(self) -> None:
        self.wanting = tuple(tail for tail in (*self._tails, *self._fresh) if tail.left != 0)

    # ---- for the daemon -------------------------------------------------------------------------------

    def open(self, rules: Sequence[Opaque], limit: int) -> int:
        """A new tail of the events that the rules keep, closed after `limit` of them, 0 for never.

        Returns the reading end of its pipe, which is the caller's. Raises UnavailableError beyond MAX_TAILS.
        """
        with self._lock:
            if len(self) >= MAX_TAILS:
                raise UnavailableError(
                    f"{MAX_TAILS} tails are open already", hint="end one of them, for example with ^C"
                )
            if self._thread is None:
                self._start()
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            _enlarge(writing)
            self._fresh.append(Tail(rules, writing, limit or None))
            self._list_wanting()
            self.opened_total += 1
            self._wake()
            return reading

    def _start(self) -> None:
        """Under the lock, for which the thread waits; it ends where no tail has come by then."""
        reading, writing = os.pipe()
        thread = threading.Thread(target=self._run, name="tails", daemon=True)
        try:
            apart.start(thread)
        except UnavailableError:
            os.close(reading)
            os.close(writing)
            raise
        self._thread, self._wake_read, self._wake_write = thread, reading, writing

    def close(self) -> None:
        """End all tails. May be called twice."""
        with self._lock:
            thread = self._thread
            self._closing = thread is not None
            self._wake()
        if thread is not None:
            thread.join()

    # ---- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Lives while there are tails, so that a daemon without them has one thread less."""
        while self._take_in():
            try:
                self._step()
            except Exception:  # a mistake of ours costs the tails, and never more
                logger.exception("tails: ending all of them")
                self._closing = True

    def _step(self) -> None:
        self._wait()
        for tail, rendered in self._take_out():
            for reader in self._tails if tail is None else (tail,):
                if tail is not None or not reader.is_complete:
                    reader.unread += rendered.text
        for tail in list(self._tails):
            self._write(tail)

    def _take_in(self) -> bool:
        """New tails. False when there are none left, and the thread is to end."""
        with self._lock:
            self._tails += self._fresh
            self._fresh.clear()
            if self._tails and not self._closing:
                return True
            self._closing = False
            self._thread = None
            self._waiting.clear()
            self._events = 0
            for tail in self._tails:
                os.close(tail.pipe)
            self._tails.clear()
            self._list_wanting()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
            return False

    def _wait(self) -> None:
        """Until there are events, a pipe has room for what waits for it, or a reader has gone."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for tail in self._tails:
            # Without POLLOUT it still reports POLLERR: the reading end is closed.
            poll.register(tail.pipe, select.POLLOUT if tail.unread else 0)
        found = dict(poll.poll())
        if self._wake_read in found:
            os.read(self._wake_read, 4096)
        for tail in list(self._tails):
            if found.get(tail.pipe, 0) & select.POLLERR:
                self._drop(tail)

    def _take_out(self) -> list[tuple[Tail | None, Rendered]]:
        with self._lock:
            batches = list(self._waiting)
            self._waiting.clear()
            self._events = 0
            for tail in (*self._tails, *self._fresh):
                tail.is_complete = tail.left == 0
            return batches

    def _write(self, tail: Tail) -> None:
        try:
            while tail.unread:
                del tail.unread[: os.write(tail.pipe, tail.unread[:PIPE_BYTES])]
        except BlockingIOError:
            if len(tail.unread) > MAX_UNREAD:
                self.dropped_total += 1
                self._drop(tail)
            return
        except OSError:  # the reader has gone
            self._drop(tail)
            return
        if tail.is_complete:
            self._drop(tail)

    def _drop(self, tail: Tail) -> None:
        with self._lock:
            if tail in self._tails:
                self._tails.remove(tail)
                self._list_wanting()
                os.close(tail.pipe)


def _enlarge(pipe: int) -> None:
    """A larger pipe takes longer pauses of its reader; where the kernel gives none, the small one will do."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return
