"""Events to a syslog server, or to the socket of a local one. Formats and frames: encode_syslog.py."""

import errno
import fcntl
import os
import socket
import ssl
import struct
import termios
import time
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from conntrackd import options
from conntrackd.config import Config
from conntrackd.flow import Batch
from conntrackd.sinks.datagrams import SLOTS, DatagramSender
from conntrackd.sinks.encode_syslog import (
    SyslogEncoder,
    frame_by_datagram,
    frame_by_line,
    frame_by_octets,
)
from conntrackd.sinks.sink import Parcel, SinkRevised, SinkUnavailable
from conntrackd.sinks.tls import Tls, make_context, name_cause

BATCH_EVENTS: Final = 1024
BATCH_WAIT: Final = 0.1
PORTS: Final = {"udp": 514, "tcp": 514, "tls": 6514}  # RFC 5426, RFC 6587, RFC 5425
CONNECT_SECONDS: Final = 10.0
SEND_SECONDS: Final = 10.0
# How long an acknowledgement may take, and how often it is looked for.
ACKNOWLEDGE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.002
# What marks a LOST record, in each of the formats; no value can hold it, because its quotes are escaped.
LOST_MARKS: Final = (b' type="LOST"', b'"type":"LOST"')
STREAMS: Final = ("tcp", "tls")


class Target(NamedTuple):
    """Where to: a host and port, or a path."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""


class SyslogSink:
    """One connection or socket. Over a stream a message counts as delivered when the peer's kernel has it."""

    name = "syslog"
    batch_events = BATCH_EVENTS
    batch_wait = BATCH_WAIT

    def __init__(self, target: Target, encoder: SyslogEncoder, tls: Tls | None = None) -> None:
        self._target = target
        self._encoder = encoder
        self._tls = tls
        self._socket: socket.socket | None = None
        self._sender: DatagramSender | None = None

    def open(self) -> None:
        try:
            self._socket = self._connect()
            self._socket.settimeout(SEND_SECONDS)
            if self._socket.type == socket.SOCK_DGRAM:
                self._sender = DatagramSender(self._socket, SEND_SECONDS)
        except OSError as error:
            raise SinkUnavailable(f"{self._describe_target()}: {name_cause(error)}") from error

    def _connect(self) -> socket.socket:
        match self._target.scheme:
            case "udp":
                return _connect_udp(self._target)
            case "unix" | "unixgram":
                return _connect_unix(self._target)
        plain = socket.create_connection((self._target.host, self._target.port), CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return plain
        try:
            return make_context(self._tls).wrap_socket(plain, server_hostname=self._target.host)
        except (OSError, SinkUnavailable):
            plain.close()
            raise

    def encode(self, batch: Batch) -> list[bytes]:
        return self._encoder.encode(batch)

    def write(self, payload: list[bytes]) -> int:
        """All of it, or what is left is raised as `rest`, from the first message that is not there whole."""
        assert self._socket is not None
        if self._socket.type == socket.SOCK_STREAM:
            return self._write_stream(self._socket, payload)
        self._write_datagrams(self._socket, payload)
        return sum(map(len, payload))

    def _write_datagrams(self, sock: socket.socket, payload: list[bytes]) -> None:
        assert self._sender is not None
        # That nobody is there is told with the next datagram, and sendmmsg(2) keeps it to itself when it has
        # sent one before: the last two went nowhere. Over loopback that is known at once, else later.
        vain = 0 if self._target.path else 2
        sent = 0
        try:
            while sent < len(payload):
                sent += self._sender.send(payload[sent : sent + SLOTS])
            if vain and (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # no message of ours is that long
                delivered, rest = _make_parcel(payload[:sent]), _make_parcel(payload[sent + 1 :])
                reason = f"{self._describe_target()}: {name_cause(error)}"
                raise SinkRevised(
                    reason, [rest] if rest.payload else [], delivered=delivered.events
                ) from error
            vain = vain if error.errno == errno.ECONNREFUSED else 0
            raise self._fail(error, payload[max(0, sent - vain) :]) from error

    def _write_stream(self, sock: socket.socket, payload: list[bytes]) -> int:
        # As syslog(3): over a local stream a NUL ends each message. Whether it is one, connecting shows.
        end = b"\0" if sock.family == socket.AF_UNIX else b""
        data = b"".join([message + end for message in payload]) if end else b"".join(payload)
        sent = 0
        try:
            _check_peer(sock)
            while sent < len(data):
                sent += sock.send(data[sent : sent + (1 << 16)])
            _wait_for_acknowledgement(sock)
        except OSError as error:
            there = max(0, sent - _count_unacknowledged(sock))
            # Of what TLS has sent nobody knows how much of it was ours.
            raise self._fail(error, _cut(payload, 0 if self._tls is not None else there, len(end))) from error
        return len(data)

    def _fail(self, error: OSError, left: list[bytes]) -> SinkUnavailable:
        return SinkUnavailable(f"{self._describe_target()}: {name_cause(error)}", rest=_make_parcel(left))

    def _describe_target(self) -> str:
        target = self._target
        if target.path:
            return f"{target.scheme}://{target.path}"
        host = f"[{target.host}]" if ":" in target.host else target.host
        return f"{target.scheme}://{host}:{target.port}"

    def close(self) -> None:
        sock, self._socket, self._sender = self._socket, None, None
        if sock is not None:
            sock.close()


def _make_parcel(messages: list[bytes]) -> Parcel[list[bytes]]:
    lost = sum(any(mark in each for mark in LOST_MARKS) for each in messages)
    return Parcel(messages, len(messages) - lost)


def _cut(payload: list[bytes], there: int, end: int) -> list[bytes]:
    """The messages that are not within the first so many bytes; each is followed by `end` bytes more."""
    for index, message in enumerate(payload):
        if there < len(message) + end:
            return payload[index:]
        there -= len(message) + end
    return []


def _connect_udp(target: Target) -> socket.socket:
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise last or OSError(errno.EADDRNOTAVAIL, "no address")


def _connect_unix(target: Target) -> socket.socket:
    """As syslog(3): datagrams, and a stream where the socket is one, unless datagrams are asked for."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            sock.connect(target.path)
        except OSError as error:
            sock.close()
            if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM or target.scheme == "unixgram":
                raise
        else:
            return sock
    raise AssertionError("one of the two ways was taken")


def _check_peer(sock: socket.socket) -> None:
    """A server sends nothing; what can be read is the end of the connection, and a write would be in vain."""
    sock.settimeout(0)
    try:
        closed = sock.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        closed = False
    finally:
        sock.settimeout(SEND_SECONDS)
    if closed:
        raise ConnectionResetError(errno.ECONNRESET, "the server has closed the connection")


def _wait_for_acknowledgement(sock: socket.socket) -> None:
    """Until the peer's kernel has everything. A receiver that died would swallow what waits in ours."""
    deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
    while _count_unacknowledged(sock):
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "the server does not acknowledge what it is sent")
        time.sleep(LOOK_SECONDS)


def _count_unacknowledged(sock: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    if sock.fileno() < 0 or sock.family == socket.AF_UNIX:
        return 0
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 1 << 31  # the connection is gone: nothing is known to be there
    return int(struct.unpack("=i", answer)[0])


def create(config: Config) -> SyslogSink:
    """The sink as configured."""
    address = config[options.SINK_SYSLOG_ADDRESS]
    parts = urlsplit(address)
    if parts.scheme in ("unix", "unixgram"):
        target = Target(parts.scheme, path=unquote(parts.path))
    else:
        target = Target(parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme])
    frame = frame_by_datagram
    if parts.scheme in STREAMS:
        by_line = config[options.SINK_SYSLOG_FRAMING] == "lf"
        frame = frame_by_line if by_line else frame_by_octets
    encoder = SyslogEncoder(
        config[options.SINK_SYSLOG_FORMAT],
        config[options.SINK_SYSLOG_FACILITY],
        frame,
        is_local=bool(target.path),
    )
    tls = Tls(
        ca=config[options.SINK_SYSLOG_TLS_CA],
        cert=config[options.SINK_SYSLOG_TLS_CERT],
        key=config[options.SINK_SYSLOG_TLS_KEY],
        verify=config[options.SINK_SYSLOG_TLS_VERIFY],
    )
    return SyslogSink(target, encoder, tls if parts.scheme == "tls" else None)
