"""One HTTP connection to one server, which cannot hold us: deadlines that hold, replies that are bounded.

Nothing is followed, repeated or decoded here: a redirect could carry a token to another host, and repeating
is the outbox's. A reply belongs to the request before it, or the connection is closed: see http_reply.py.
"""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.sinks.addresses import Addresses
from conntrackd.sinks.http_reply import Reply, ReplyError, ReplyReader
from conntrackd.sinks.tls import Credentials, Tls, is_waiting, name_cause

PORTS: Final = {"http": 80, "https": 443}
PIECE: Final = 64 << 10  # bytes that are sent or received at once


class HttpConnection:
    """Requests to one base address, kept alive between them. close() may come from any thread."""

    def __init__(self, address: str, tls: Tls) -> None:
        """SinkUnavailable when a certificate cannot be read. Nothing is sent yet."""
        parts = urlsplit(address)
        port = parts.port or PORTS[parts.scheme]
        host = _encode_host(parts.hostname or "")
        self._path = quote(parts.path, safe="/%!$&'()*+,;=:@~").rstrip("/")
        # RFC 6874: the zone of a link-local address is our affair, and no part of the server's name.
        self._name = host.partition("%")[0]
        self._host = f"[{self._name}]" if ":" in self._name else self._name
        if port != PORTS[parts.scheme]:
            self._host += f":{port}"
        self._addresses = Addresses(host, port)
        self._credentials = Credentials(tls) if parts.scheme == "https" else None
        self._socket: socket.socket | None = None
        self._turn = threading.Lock()  # held by the request that runs: only who has it lets go of the socket
        self._is_closed = False
        self._deadline = 0.0

    def close(self) -> None:
        """Cut off what runs."""
        self._is_closed = True
        sock = self._socket
        if sock is not None:
            _cut(sock)
        if self._turn.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._turn.release()

    def request(
        self, method: str, path: str, headers: Mapping[str, str], seconds: float, body: bytes = b""
    ) -> Reply:
        """One request and its reply within that time, else SinkUnavailable with the cause."""
        stays = False
        with self._turn:
            self._deadline = time.monotonic() + seconds
            try:
                reply, stays = self._exchange(self._make_head(method, path, headers, body) + body)
            except TimeoutError as error:
                raise SinkUnavailable(f"no reply within {seconds:g} s") from error
            except ReplyError as error:
                raise SinkUnavailable(str(error)) from error
            except (OSError, ValueError) as error:
                raise SinkUnavailable("closed" if self._is_closed else name_cause(error)) from error
            finally:
                if self._is_closed or not stays:
                    self._drop()
        return reply

    # ---- to connect -----------------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        """The connection that is there, or a new one where that is in any doubt, or leads elsewhere now."""
        credentials, sock = self._credentials, self._socket
        if sock is not None:
            is_other = credentials is not None and credentials.have_changed()
            if not is_other and not self._addresses.have_moved(sock) and _receive_now(sock) is None:
                return sock
            self._drop()
        sock = self._addresses.connect(self._get_time_left(), self._watch)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if credentials is not None:
            secure = credentials.wrap(sock, self._name)
            self._watch(secure)
            secure.settimeout(self._get_time_left())
            secure.do_handshake()
            return secure
        return sock

    def _watch(self, sock: socket.socket) -> None:
        """What close() has to cut off, from now on."""
        self._socket = sock
        if self._is_closed:
            raise OSError(errno.ECANCELED, "closed")

    def _drop(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _get_time_left(self) -> float:
        """Seconds that are left; never 0, which would make a socket non-blocking."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    # ---- to ask ---------------------------------------------------------------------------------------

    def _make_head(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"{method} {self._path}{path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        if not all(line.isascii() and line.isprintable() for line in lines):
            raise ValueError("a header has a character that HTTP does not allow")
        return "\r\n".join([*lines, "", ""]).encode()

    def _exchange(self, request: bytes) -> tuple[Reply, bool]:
        """The reply, and whether the connection can be used again."""
        if self._is_closed:
            raise OSError(errno.ECANCELED, "closed")
        sock, reader = self._connect(), ReplyReader()
        reply = self._send(sock, reader, request)
        is_early = reader.has_begun
        while reply is None:
            sock.settimeout(self._get_time_left())
            data = sock.recv(PIECE)
            reply = reader.feed(data) if data else reader.eof()
        more = _receive_now(sock) if reader.can_stay else None
        if reply.status < 300:
            # Nothing counts as done by a reply that may be the one to another request.
            if is_early:
                raise ReplyError("the server replied before it had the whole request")
            if reader.has_rest or more:
                raise ReplyError("the server replied more than once to one request")
        return reply, reader.can_stay and not is_early and more is None

    def _send(self, sock: socket.socket, reader: ReplyReader, request: bytes) -> Reply | None:
        """Until all of it is sent, or a reply begins: one that does not wait for the body refuses it."""
        view, data = memoryview(request), None
        for start in range(0, len(request), PIECE):
            if (data := _receive_now(sock)) is not None:
                reply = reader.feed(data) if data else reader.eof()
                if reader.has_begun:  # and not a 100 or 103 alone
                    return reply
            sock.settimeout(self._get_time_left())
            try:
                sock.sendall(view[start : start + PIECE])
            except (BrokenPipeError, ConnectionResetError):
                if not (data := _receive_now(sock)):
                    raise
                return reader.feed(data)
        return None


def _encode_host(host: str) -> str:
    """A name with other letters than DNS has, as it stands there and in a certificate."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as error:
        raise SinkUnavailable(f"{host} is not a valid host name: {name_cause(error)}") from error


def _receive_now(sock: socket.socket) -> bytes | None:
    """What has come by now: empty at the end of the connection, None for nothing."""
    sock.settimeout(0)
    try:
        return sock.recv(PIECE)
    except OSError as error:
        return None if is_waiting(error) else b""


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not SSLSocket's own: that one throws the TLS state away under the feet of the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
