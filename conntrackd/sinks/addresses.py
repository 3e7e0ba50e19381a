"""Where a server is: asked at each connecting, and again every minute while a connection lasts."""

import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

ASK_SECONDS: Final = 60.0

Found = list[tuple[Any, Any, int, str, Any]]
"""What getaddrinfo(3) gives."""


class Addresses:
    """The addresses of one host and port. Used by one thread."""

    def __init__(
        self,
        host: str,
        port: int,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._port = port
        self._kind = kind
        self._clock = clock
        self._is_name = not _is_address(host)
        self._asked_at = 0.0
        self._asking: threading.Thread | None = None
        self._answer: Found | None = None

    def connect(
        self, seconds: float, watch: Callable[[socket.socket], None] = lambda _: None, first: int = 0
    ) -> socket.socket:
        """To the first address that answers, in that time. `watch` gets each socket before it may wait.

        `first`: how many are to be left for the end. OSError as getaddrinfo(3) and connect(2) say.
        """
        deadline = time.monotonic() + seconds
        last: OSError | None = None
        self._asked_at, self._answer = self._clock(), None
        found = self._ask()
        begin = first % max(1, len(found))
        found = found[begin:] + found[:begin]
        for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
            rest = deadline - time.monotonic()
            if rest <= 0:
                break
            sock = socket.socket(family, kind, protocol)
            try:
                watch(sock)
                sock.settimeout(rest if left == 1 else rest / 2)
                sock.connect(address)
            except OSError as error:
                sock.close()
                last = error
            else:
                return sock
        raise last or OSError(errno.EADDRNOTAVAIL, "no address")

    def are_known(self) -> bool:
        """Whether have_moved() has nothing to find out for now. From any thread."""
        return not self._is_name or (self._answer is None and self._clock() - self._asked_at < ASK_SECONDS)

    def have_moved(self, sock: socket.socket) -> bool:
        """Whether the name leads elsewhere now than this socket does. Never waits for the answer.

        A resolver that is away changes nothing: what works is used as long as it does.
        """
        if not self._is_name:
            return False
        if self._clock() - self._asked_at >= ASK_SECONDS:
            self._ask_soon()
        answer = self._answer
        if not answer:
            return False
        self._answer = None
        with suppress(OSError):
            return sock.getpeername()[:2] not in [address[:2] for *_, address in answer]
        return False

    def _ask(self) -> Found:
        return socket.getaddrinfo(self._host, self._port, type=self._kind)

    def _ask_soon(self) -> None:
        """In a thread: a resolver that is away takes its time, and events do not wait for it."""
        if self._asking is not None and self._asking.is_alive():
            return
        self._asked_at = self._clock()

        def ask() -> None:
            with suppress(OSError, UnicodeError):
                self._answer = self._ask()

        self._asking = threading.Thread(target=ask, name="resolver", daemon=True)
        with suppress(RuntimeError):  # no thread to be had: in a minute, perhaps
            self._asking.start()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
