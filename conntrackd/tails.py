"""Tails: events as JSON lines in pipes, for `conntrackctl tail`. A slow reader is dropped, and counted.

Not a sink: nothing is kept, spooled or repeated for a tail.
"""

import fcntl
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from conntrackd.errors import UnavailableError
from conntrackd.flow import Batch, Flow, Lost
from conntrackd.sinks.encode_json import JsonEncoder

logger = logging.getLogger(__name__)

MAX_TAILS: Final = 8
# Events that may wait for the thread; at 50,000 a second it has more than a second.
MAX_WAITING: Final = 65536
# Encoded text that may wait for one reader, about 16,000 events, above what its pipe holds.
MAX_UNREAD: Final = 8 << 20
PIPE_BYTES: Final = 1 << 20  # the largest that an unprivileged process may ask for

Select = Callable[[list[Flow]], list[Flow]]


@dataclass(eq=False, slots=True)
class _Tail:
    """One reader. `left` counts down to the limit that was asked for; None is none."""

    select: Select
    pipe: int
    left: int | None
    unread: bytearray


class Tails:
    """The open tails. put() and tell_lost() cost one look at a flag while there are none."""

    def __init__(self) -> None:
        self.opened_total = 0
        self.dropped_total = 0
        """Tails that were closed because nobody read them fast enough."""
        self._lock = threading.Condition()
        # Guarded by the lock:
        self._waiting: deque[Batch] = deque()
        self._events = 0
        self._fresh: list[_Tail] = []
        self._closing = False
        self._missed = 0
        self._missed_since = 0
        self._missed_until = 0
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1
        # The thread's own, but for its length:
        self._tails: list[_Tail] = []
        self._encoder = JsonEncoder()
        self._is_open = False

    def __len__(self) -> int:
        return len(self._tails) + len(self._fresh)

    # ---- for the reader of events ---------------------------------------------------------------------

    def put(self, flows: list[Flow]) -> None:
        """Takes the batch, or drops it where too much waits. The list is kept: do not change it."""
        if not self._is_open or not flows:
            return
        with self._lock:
            if not self._is_open:  # the last one ended just now
                return
            if self._events + len(flows) > MAX_WAITING:
                self._missed += len(flows)
                self._missed_since = self._missed_since or flows[0].time
                self._missed_until = flows[-1].time
                return
            self._tell_missed()
            self._events += len(flows)
            self._append([*flows])

    def tell_lost(self, lost: Lost) -> None:
        """A LOST record for every tail, whatever its rules."""
        if not self._is_open:
            return
        with self._lock:
            if self._is_open:
                self._append([lost])

    def _tell_missed(self) -> None:
        if self._missed:
            self._append([Lost(self._missed, self._missed_since, self._missed_until, "tail", "queue")])
            self._missed = self._missed_since = 0

    def _append(self, batch: Batch) -> None:
        if not self._waiting:
            self._wake()
        self._waiting.append(batch)

    def _wake(self) -> None:
        if self._wake_write >= 0:
            os.write(self._wake_write, b"\0")

    # ---- for the daemon -------------------------------------------------------------------------------

    def open(self, select: Select, limit: int) -> int:
        """A new tail of the events that `select` keeps, closed after `limit` of them, 0 for never.

        Returns the reading end of its pipe, which is the caller's. Raises UnavailableError beyond MAX_TAILS.
        """
        with self._lock:
            if len(self) >= MAX_TAILS:
                raise UnavailableError(
                    f"{MAX_TAILS} tails are open already", hint="end one of them, such as with ^C"
                )
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            _enlarge(writing)
            self._fresh.append(_Tail(select, writing, limit or None, bytearray()))
            self.opened_total += 1
            self._is_open = True
            if self._thread is None:
                self._start()
            self._wake()
            return reading

    def _start(self) -> None:
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="tails", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all tails. May be called twice."""
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
            except Exception:  # a record that nobody thought of costs the tails, and never more
                logger.exception("tails: ending all of them")
                self._closing = True

    def _step(self) -> None:
        self._wait()
        for batch in self._take_out():
            self._distribute(batch)
        for tail in list(self._tails):
            self._write(tail)

    def _take_in(self) -> bool:
        """New tails. False when there are none left, and the thread is to end."""
        with self._lock:
            self._tails += self._fresh
            self._fresh.clear()
            if self._tails and not self._closing:
                return True
            self._is_open = self._closing = False
            self._thread = None
            self._waiting.clear()
            self._events = self._missed = self._missed_since = 0
            for tail in self._tails:
                os.close(tail.pipe)
            self._tails.clear()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
            return False

    def _wait(self) -> None:
        """Until there are events, a pipe has room for what waits for it, or a reader has gone."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for tail in self._tails:
            # Without POLLOUT it still tells POLLERR: the reading end is closed.
            poll.register(tail.pipe, select.POLLOUT if tail.unread else 0)
        found = dict(poll.poll())
        if self._wake_read in found:
            os.read(self._wake_read, 4096)
        for tail in list(self._tails):
            if found.get(tail.pipe, 0) & select.POLLERR:
                self._drop(tail)

    def _take_out(self) -> list[Batch]:
        with self._lock:
            batches = list(self._waiting)
            self._waiting.clear()
            self._events = 0
            return batches

    def _distribute(self, batch: Batch) -> None:
        flows = [each for each in batch if isinstance(each, Flow)]
        losses: Batch = [each for each in batch if isinstance(each, Lost)]
        for tail in self._tails:
            if tail.left == 0:  # it has all it wanted, and has not read it yet
                continue
            kept = tail.select(flows)[: tail.left]
            if tail.left is not None:
                tail.left -= len(kept)
            if kept or losses:
                tail.unread += self._encoder.encode([*losses, *kept])

    def _write(self, tail: _Tail) -> None:
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
        if tail.left == 0:
            self._drop(tail)

    def _drop(self, tail: _Tail) -> None:
        with self._lock:
            if tail in self._tails:
                self._tails.remove(tail)
                os.close(tail.pipe)


def _enlarge(pipe: int) -> None:
    """A larger pipe takes longer pauses of its reader; where the kernel gives none, the small one will do."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return
