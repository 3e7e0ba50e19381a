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
from conntrackd.sinks.addresses import Addresses
from conntrackd.sinks.datagrams import SLOTS, DatagramSender
from conntrackd.sinks.encode_json import LOST_MARK
from conntrackd.sinks.encode_syslog import (
    Frame,
    SyslogEncoder,
    frame_by_line,
    frame_by_nul,
    frame_by_octets,
)
from conntrackd.sinks.sink import Parcel, SinkRefused, SinkRevised, SinkUnavailable
from conntrackd.sinks.tls import Credentials, Tls, name_cause

BATCH_EVENTS: Final = 1024
BATCH_WAIT: Final = 0.1
PORTS: Final = {"udp": 514, "tcp": 514, "tls": 6514}  # RFC 5426, RFC 6587, RFC 5425
CONNECT_SECONDS: Final = 10.0
SEND_SECONDS: Final = 10.0
# How long an acknowledgement may take, and how often it is looked for.
ACKNOWLEDGE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.002
# What marks a LOST record, in each of the formats; no value can hold it, because its quotes are escaped.
LOST_MARKS: Final = (b' type="LOST"', LOST_MARK)


class Target(NamedTuple):
    """Where to: a host and port, or a path."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""


class SyslogSink:
    """One connection or socket. Over a stream a message counts as delivered when the peer's kernel has it.

    Messages get their frames when they are written, so that those from the spool have the ones of today.
    """

    name = "syslog"
    batch_events = BATCH_EVENTS
    batch_wait = BATCH_WAIT

    def __init__(
        self, target: Target, encoder: SyslogEncoder, frame: Frame = frame_by_octets, tls: Tls | None = None
    ) -> None:
        """`frame`: over TCP and TLS; a datagram is one, and a local stream has its own."""
        self._target = target
        self._encoder = encoder
        self.form = encoder.form
        self._frame = frame
        self._tls = tls
        self._credentials: Credentials | None = None
        kind = socket.SOCK_DGRAM if target.scheme == "udp" else socket.SOCK_STREAM
        self._addresses = Addresses(target.host, target.port, kind)
        self._socket: socket.socket | None = None
        self._sender: DatagramSender | None = None
        self._refusals = 0

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
                return _connect_udp(self._addresses, self._refusals)
            case "unix" | "unixgram":
                return _connect_unix(self._target)
        if self._tls is not None and self._credentials is None:
            self._credentials = Credentials(self._tls)
        plain = self._addresses.connect(CONNECT_SECONDS, lambda _: None)
        plain.settimeout(CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._credentials is None:
            return plain
        try:
            # RFC 6874: the zone of a link-local address is our affair, and no part of the server's name.
            secure = self._credentials.wrap(plain, self._target.host.partition("%")[0])
        except (OSError, SinkUnavailable):
            plain.close()
            raise
        try:
            secure.do_handshake()
        except OSError:
            secure.close()
            raise
        return secure

    def encode(self, batch: Batch) -> list[bytes]:
        return self._encoder.encode(batch)

    def write(self, payload: list[bytes]) -> int:
        """All of it, or what is left is raised as `rest`, from the first message that is not there whole."""
        assert self._socket is not None
        if self._leads_elsewhere(self._socket):
            self.close()
            self.open()
        if self._socket.type == socket.SOCK_STREAM:
            return self._write_stream(self._socket, payload)
        self._write_datagrams(self._socket, payload)
        return sum(map(len, payload))

    def _leads_elsewhere(self, sock: socket.socket) -> bool:
        """Whether a new connection would be another: the name's address has changed, or our certificate."""
        if self._target.path:
            return False
        has_others = self._credentials is not None and self._credentials.have_changed()
        return has_others or self._addresses.have_moved(sock)

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
                raise self._refuse(error, payload, sent) from error
            if error.errno != errno.ECONNREFUSED:
                vain = 0
            self._refusals += 1
            raise self._fail(error, payload[max(0, sent - vain) :]) from error

    def _write_stream(self, sock: socket.socket, payload: list[bytes]) -> int:
        # Whether a local socket is a stream, connecting shows.
        frame = frame_by_nul if sock.family == socket.AF_UNIX else self._frame
        frames = [frame(message) for message in payload]
        data, sent = b"".join(frames), 0
        try:
            _check_peer(sock)
            while sent < len(data):
                sent += sock.send(data[sent : sent + (1 << 16)])
            _wait_for_acknowledgement(sock)
        except OSError as error:
            # Of what TLS has sent nobody knows how much of it was ours.
            there = 0 if self._tls is not None else sent - _count_unacknowledged(sock)
            raise self._fail(error, payload[_count_whole(frames, there) :]) from error
        return len(data)

    def _fail(self, error: OSError, left: list[bytes]) -> SinkUnavailable:
        return SinkUnavailable(f"{self._describe_target()}: {name_cause(error)}", rest=_make_parcel(left))

    def _refuse(self, error: OSError, payload: list[bytes], number: int) -> SinkRefused | SinkRevised:
        """One message will never be taken; those before it were."""
        reason = f"{self._describe_target()}: {name_cause(error)}"
        done, rest = _make_parcel(payload[:number]), _make_parcel(payload[number + 1 :])
        if rest.payload:
            return SinkRevised(reason, [rest], delivered=done.events)
        return SinkRefused(reason, _make_parcel(payload[number:]).events)

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


def _count_whole(frames: list[bytes], there: int) -> int:
    """How many of the first are within so many bytes."""
    for index, frame in enumerate(frames):
        there -= len(frame)
        if there < 0:
            return index
    return len(frames)


def _connect_udp(addresses: Addresses, refusals: int) -> socket.socket:
    """To the next address after each refusal: connecting alone does not show at which one the server is."""
    found = addresses.find()
    first = refusals % len(found)
    last: OSError | None = None
    for family, kind, protocol, _, address in found[first:] + found[:first]:
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
        target = Target(parts.scheme, unquote(parts.hostname or ""), parts.port or PORTS[parts.scheme])
    encoder = SyslogEncoder(
        config[options.SINK_SYSLOG_FORMAT],
        config[options.SINK_SYSLOG_FACILITY],
        is_local=bool(target.path),
    )
    frame = frame_by_line if config[options.SINK_SYSLOG_FRAMING] == "lf" else frame_by_octets
    tls = Tls(
        ca=config[options.SINK_SYSLOG_TLS_CA],
        cert=config[options.SINK_SYSLOG_TLS_CERT],
        key=config[options.SINK_SYSLOG_TLS_KEY],
        verify=config[options.SINK_SYSLOG_TLS_VERIFY],
    )
    return SyslogSink(target, encoder, frame, tls if parts.scheme == "tls" else None)
