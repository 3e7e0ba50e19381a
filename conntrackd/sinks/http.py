"""One HTTP connection to one server, which cannot hold us: deadlines that hold, replies that are bounded.

urllib3 follows nothing, repeats nothing and decodes nothing here: a redirect could carry a token to another
host, and repeating is the outbox's.
"""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.files import KindError, read_file
from conntrackd.sinks.tls import MAX_REASON, Tls, make_context, name_cause

MAX_REPLY: Final = 64 << 10  # bytes of a reply that are read; whatever is longer was not written for us
MAX_SECRET: Final = 64 << 10
HIDDEN: Final = b"(hidden)"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said: at most MAX_REPLY bytes of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def text(self) -> str:
        """The body in one harmless line."""
        text = self.body.decode(errors="replace")[:MAX_REASON]
        return " ".join("".join(char if char.isprintable() else " " for char in text).split())

    def hide(self, secrets: Sequence[str]) -> "Reply":
        """The same without what it was sent in confidence, and may repeat."""
        body = self.body
        for each in secrets:
            body = body.replace(each.encode(), HIDDEN)
        return replace(self, body=body)

    @property
    def reason(self) -> str:
        """What it says, for people."""
        return f"the server replied {self.status}" + (f": {self.text}" if self.text else "")


class _Guard:
    """Ends a request at its deadline, whatever comes: timeouts of a socket begin anew with each byte."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._late = False

    def watch(self, connected: socket.socket) -> None:
        """The socket of the request that runs now."""
        with self._lock:
            self._socket = connected
            if self._late:
                _cut(connected)

    def abort(self) -> None:
        """From another thread: the request fails now."""
        with self._lock:
            self._late = True
            if self._socket is not None:
                _cut(self._socket)

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """What is done within has no more time than that."""
        self._late = False
        timer = threading.Timer(seconds, self.abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    @property
    def late(self) -> bool:
        """Whether the last request was cut off."""
        return self._late


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not SSLSocket's own: that one throws the TLS state away under the feet of the thread that reads.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


class Connection:
    """Requests to one base address, kept alive between them. close() may come from any thread."""

    def __init__(self, address: str, tls: Tls) -> None:
        """SinkUnavailable when a certificate cannot be read. Nothing is sent yet."""
        self._guard = _Guard()
        self._path = urlsplit(address).path.rstrip("/")
        self._pool: HTTPConnectionPool | None = _make_pool(address, tls, self._guard)

    def close(self) -> None:
        """Cuts off what runs."""
        self._guard.abort()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def request(
        self, method: str, path: str, headers: Mapping[str, str], seconds: float, body: bytes | None = None
    ) -> Reply:
        """One request and its reply within that time, else SinkUnavailable with the cause."""
        pool = self._pool
        if pool is None:
            raise SinkUnavailable("closed")
        # A host with several addresses gets half of the time for each: the guard knows no socket before that.
        timeout = urllib3.Timeout(connect=seconds / 2, read=seconds)
        try:
            with self._guard.limit(seconds):
                response: Any = pool.urlopen(
                    method,
                    self._path + path,
                    body=body,
                    headers=headers,
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    timeout=timeout,
                    preload_content=False,
                    decode_content=False,
                )
                if self._guard.late:  # the standard library takes a header that was cut off for a whole one
                    response.close()
                    raise SinkUnavailable(f"no reply within {seconds:g} s")
                return Reply(response.status, response.headers, _read(response))
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if self._guard.late:
                raise SinkUnavailable(f"no reply within {seconds:g} s") from error
            raise SinkUnavailable(name_cause(error)) from error


def _make_pool(address: str, tls: Tls, guard: _Guard) -> HTTPConnectionPool:
    parts = urlsplit(address)
    host = parts.hostname or ""
    named = f"[{host}]" if ":" in host else host  # or urllib3 takes a zone's `%` for an escape

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            guard.watch(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            guard.watch(self.sock)
            # Only silences a warning on stderr: who sets `verify: false` knows.
            self.is_verified = True

    if parts.scheme == "http":
        pool = HTTPConnectionPool(named, parts.port or 80, maxsize=1)
        pool.ConnectionCls = Plain
        return pool
    context = make_context(tls)
    if _is_address(host):
        # urllib3 1.26 gives OpenSSL no name to check when it is an address; both versions check it themselves
        # after the handshake, and before anything is sent, when the context does not.
        context.check_hostname = False
    secure = HTTPSConnectionPool(named, parts.port or 443, maxsize=1, ssl_context=context)
    secure.ConnectionCls = Secure
    return secure


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _read(response: Any) -> bytes:  # noqa: ANN401  # two major versions of urllib3 call its class differently
    """As much of the body as is of interest. That it breaks off changes nothing about the status."""
    try:
        body: bytes = response.read(MAX_REPLY + 1)
    except (urllib3.exceptions.HTTPError, OSError, ValueError):
        response.close()
        return b""
    if len(body) > MAX_REPLY:
        response.close()
    else:
        response.release_conn()
    return body[:MAX_REPLY]


def read_secret(path: Path) -> str:
    """The first line of a file. The reasons never contain any of it."""
    try:
        content, _ = read_file(path, MAX_SECRET)
    except KindError as error:
        raise SinkUnavailable(f"{path} {error}") from error
    except OSError as error:
        raise SinkUnavailable(f"cannot read {path}: {error.strerror}") from error
    text = content.decode(errors="replace").rstrip("\r\n")
    if not text or not text.isascii() or not text.isprintable():
        raise SinkUnavailable(f"{path} does not hold one line of text")
    return text
