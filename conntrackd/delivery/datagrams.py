"""Rendered messages -> datagrams and frames: by the core, or in plain Python where it cannot be loaded.

A send() for each costs 3.8 us over UDP to loopback and 2.0 us to a Unix socket, sendmmsg(2) 3.1 and 1.4 us;
the rest is the kernel's own work. The sinks gain more: whoever gives the interpreter's lock away has to wait
until it comes back.
"""

import errno
import os
import select
import socket
import threading
from array import array
from contextlib import suppress
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Final

from conntrackd.delivery.loan import Loan, Way
from conntrackd.render.rendered import END_BYTES

MAX_MESSAGES: Final = 256  # of one call: between two of them it is seen that the socket was closed
MAX_SEQUENCE: Final = 2147483647  # RFC 5424, 7.3.1: then it begins at 1 again
PLACEHOLDER: Final = b"\0"
PADDED_TO: Final = 64
MAX_SEGMENTS: Final = 64  # that the core gives the kernel as one
STALLED: Final = "the receiver does not accept what it is sent"
# include/uapi/linux/in.h, in6.h. Else a router's report of a smaller packet is an error of the next message
# (EMSGSIZE), whatever its length, and what was reported is lost. Like this routers, or our kernel, cut it.
MTU_DISCOVER: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23),
}
PMTUDISC_DONT: Final = 0
# Of datagrams before, by their receiver or a firewall. core/outlet.c has the same.
REFUSALS: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH)
LOCK_SECONDS: Final = 0.05  # a send that is awakened lets go at once


class Framing(IntEnum):
    """How messages are delimited."""

    NONE = 0
    """A datagram each."""
    OCTETS = 1
    """RFC 6587, 3.4.1: the length before it."""
    LINE = 2
    """RFC 6587, 3.4.2: a line feed behind it; no message of ours holds one."""
    NUL = 3
    """As syslog(3) over a local stream: a NUL behind it."""
    PADDED = 4
    """A datagram each, with spaces up to a multiple of PADDED_TO bytes: many are of one length then."""


def send_plainly(
    fd: int, text: bytes, ends: bytes, first: int, patience_ms: int, segments: bool
) -> tuple[int, int]:
    """Send the messages from number `first` on, one datagram each; `segments` are the core's.

    Returns how many were taken, and what kept the next one from it as an errno, 0 for nothing. ETIMEDOUT:
    there was no room for it in time.
    """
    found = array("I", ends)
    begin = found[first - 1] if first else 0
    for sent, end in enumerate(found[first:]):
        try:
            _send_one(fd, text[begin:end], patience_ms)
        except OSError as error:
            return sent, error.errno or errno.EIO
        begin = end
    return len(found) - first, 0


def _send_one(fd: int, message: bytes, patience_ms: int) -> None:
    while True:
        try:
            os.write(fd, message)
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            if not poll.poll(patience_ms):
                raise TimeoutError(errno.ETIMEDOUT, STALLED) from None
        else:
            return


def frame_plainly(text: bytes, ends: bytes, number: int, framing: int) -> tuple[bytes, bytes, int]:
    """Messages with their numbers and frames, where each ends then, and the number of the next one.

    A message's first NUL is replaced by its number: `number` is the first one; 1 follows 2147483647.
    """
    frames = []
    for begin, end in pairwise((0, *array("I", ends))):
        message, placeholder, rest = text[begin:end].partition(PLACEHOLDER)
        if placeholder:
            message += b"%d%b" % (number, rest)
            number = number % MAX_SEQUENCE + 1
        match framing:
            case Framing.OCTETS:
                message = b"%d %b" % (len(message), message)
            case Framing.LINE:
                message += b"\n"
            case Framing.NUL:
                message += b"\0"
            case Framing.PADDED:
                message += b" " * (-len(message) % PADDED_TO)
        frames.append(message)
    return b"".join(frames), array("I", accumulate(map(len, frames))).tobytes(), number


try:
    from conntrackd.core._core import frame, send
except ImportError:
    frame, send = frame_plainly, send_plainly

__all__ = ["frame", "send"]  # beside what is defined here


class DatagramSocket:
    """A connected socket of datagrams, whose send() another thread can end by close()."""

    def __init__(self, sock: socket.socket, patience: float, *, segments: bool = False) -> None:
        """`patience`: seconds that the receiver may keep us waiting for room. `segments`: see core/send.h."""
        # A missing receiver is reported with the next datagram of UDP, and sendmmsg(2) hides that when it has
        # sent one before: the last two went nowhere. Over loopback that is known at once, else later.
        # What goes as one call is refused as one.
        self._also_refused = 0 if sock.family == socket.AF_UNIX else MAX_SEGMENTS if segments else 2
        sock.setblocking(False)
        if sock.family in MTU_DISCOVER:
            sock.setsockopt(*MTU_DISCOVER[sock.family], PMTUDISC_DONT)
        self._socket = sock
        self._patience_ms = int(patience * 1000)
        self._segments = segments
        self._lock = threading.Lock()  # held while the descriptor is in use
        self._is_closed = False

    def send(self, text: bytes, ends: bytes) -> tuple[int, OSError | None]:
        """How many of the first messages were taken, and why no more were."""
        sent, total = 0, len(ends) // END_BYTES
        with self._lock:
            code = 0
            while sent < total and not self._is_closed:
                until = min(total, sent + MAX_MESSAGES)
                count, code = send(
                    self._socket.fileno(),
                    text,
                    ends[: until * END_BYTES],
                    sent,
                    self._patience_ms,
                    self._segments,
                )
                sent += count
                if code:
                    break
            if self._is_closed:
                self._socket.close()
                return sent, None if sent == total else OSError(errno.EBADF, os.strerror(errno.EBADF))
            sent, code = self._hear(sent, code)
        reason = STALLED if code == errno.ETIMEDOUT else os.strerror(code)
        return sent, OSError(code, reason) if code else None

    def try_send(self, text: bytes, ends: bytes) -> tuple[int, int]:
        """How many of the first messages were taken at once, and an errno, 0 for none. Never waits."""
        if not self._lock.acquire(blocking=False):
            return 0, 0
        try:
            if self._is_closed:
                return 0, 0
            return self._hear(*send(self._socket.fileno(), text, ends, 0, 0, self._segments))
        finally:
            self._lock.release()

    def lend(self, way: Way = Way.SEND, number: int = 1) -> Loan | None:
        """See DirectSink and Loan."""
        return None if self._is_closed else Loan(way, self._socket.fileno(), number, self._also_refused)

    def _hear(self, sent: int, code: int) -> tuple[int, int]:
        """How many were taken indeed, and an errno: that of the call, or what they have brought since."""
        if self._also_refused and not code:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # once: it is forgotten then
        return max(0, sent - self._also_refused) if code in REFUSALS else sent, code

    def close(self) -> None:
        """End a send that waits. The receiver sees nothing of it."""
        self._is_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # Not under the feet of the other thread: the number of the descriptor is somebody else's soon.
        if self._lock.acquire(timeout=LOCK_SECONDS):
            self._socket.close()
            self._lock.release()
