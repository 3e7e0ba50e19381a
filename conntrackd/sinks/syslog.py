"""Events to a syslog server, or to the socket of a local one. Formats: render/syslog.py."""

import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from conntrackd.config import options
from conntrackd.config.field_list import choose_names
from conntrackd.config.read import Config, get_host
from conntrackd.config.together import get_syslog_form
from conntrackd.delivery.datagrams import DatagramSocket, Framing, frame
from conntrackd.delivery.loan import Loan, Passed, Way
from conntrackd.delivery.sink import SinkRevised, SinkUnavailable
from conntrackd.render.rendered import Rendered, count_ends, join
from conntrackd.render.syslog import make_template
from conntrackd.render.template import Template
from conntrackd.sinks.addresses import Addresses
from conntrackd.sinks.anonymizer import read_anonymizer
from conntrackd.sinks.tls import Credentials, Tls, is_waiting, name_cause, read_tls

BATCH_EVENTS: Final = 1024
BATCH_WAIT: Final = 0.1  # over the network; what is here has gathered already
PORTS: Final = {"udp": 514, "tcp": 514, "tls": 6514}  # RFC 5426, RFC 6587, RFC 5425
CONNECT_SECONDS: Final = 10.0
SEND_SECONDS: Final = 10.0
# How long an acknowledgement may take, and how often it is looked for.
ACKNOWLEDGE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.002


class Target(NamedTuple):
    """Where to: a host and port, or a path."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""


class SyslogSink:
    """One connection or socket. Over a stream a message counts as delivered when the peer's kernel has it.

    Messages get their numbers and frames when they are written: only then their order is known, and those
    from the spool have the frames of today.
    """

    name = "syslog"
    batch_events = BATCH_EVENTS

    def __init__(
        self,
        target: Target,
        template: Template,
        framing: Framing = Framing.OCTETS,
        tls: Tls | None = None,
        *,
        segments: bool = False,
    ) -> None:
        """`framing`: over TCP and TLS; a datagram is one, and a local stream has its own.

        `segments`: over UDP, many padded messages in one call, which the kernel or the device cuts (udp(7)).
        """
        self.template = template
        self.batch_wait = 0.0 if target.path else BATCH_WAIT
        self._target = target
        self._stream_framing = framing
        self._framing = framing  # that of the socket
        self._tls = tls
        self._segments = segments and target.scheme == "udp"
        self._credentials: Credentials | None = None
        kind = socket.SOCK_DGRAM if target.scheme == "udp" else socket.SOCK_STREAM
        self._addresses = Addresses(target.host, target.port, kind)
        self._socket: socket.socket | None = None
        self._datagrams: DatagramSocket | None = None
        self._refusals = 0
        self._error = 0  # an errno that was met past write(), which raises it
        self._number = 1  # of the next message

    def open(self) -> None:
        self._error = 0
        try:
            self._socket = self._connect()
            self._socket.settimeout(SEND_SECONDS)
            if self._socket.type == socket.SOCK_DGRAM:
                self._datagrams = DatagramSocket(self._socket, SEND_SECONDS, segments=self._segments)
                self._framing = Framing.PADDED if self._segments else Framing.NONE
            else:  # whether a local socket is a stream, connecting shows
                is_local = self._socket.family == socket.AF_UNIX
                self._framing = Framing.NUL if is_local else self._stream_framing
        except OSError as error:
            raise SinkUnavailable(self._explain(error)) from error

    def _connect(self) -> socket.socket:
        match self._target.scheme:
            case "udp":  # the next address after each refusal: connecting does not show where the server is
                return self._addresses.connect(CONNECT_SECONDS, first=self._refusals)
            case "unix" | "unixgram":
                return _connect_unix(self._target)
        if self._tls is not None and self._credentials is None:
            self._credentials = Credentials(self._tls)
        plain = self._addresses.connect(CONNECT_SECONDS)
        plain.settimeout(CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if self._credentials is None else self._secure(plain, self._credentials)

    def _secure(self, plain: socket.socket, credentials: Credentials) -> socket.socket:
        try:
            # RFC 6874: the zone of a link-local address is our affair, and no part of the server's name.
            secure = credentials.wrap(plain, self._target.host.partition("%")[0])
        except (OSError, SinkUnavailable):
            plain.close()
            raise
        try:
            secure.do_handshake()
        except OSError:
            secure.close()
            raise
        return secure

    def write(self, parts: Sequence[Rendered]) -> int:
        """All of it, or `written` on what is raised: those before the first that is not there whole."""
        if self._socket is not None and self._leads_elsewhere(self._socket):
            self.close()
            self.open()
        sock, error, self._error = self._socket, self._error, 0
        if sock is None:
            raise SinkUnavailable("closed")
        if error:
            raise self._note_trouble(OSError(error, os.strerror(error)))
        # The messages joined are a copy that is needed no longer than this takes.
        text, ends, number = self._frame(join(parts))
        try:
            if self._datagrams is not None:
                self._write_datagrams(self._datagrams, text, ends)
            else:
                self._write_stream(sock, text, ends)
        except (SinkUnavailable, SinkRevised) as trouble:
            messages = join(parts)
            # A loss is one message and no event.
            trouble.written = min(trouble.written, messages.events)
            self._number = self._frame(messages.split(trouble.written)[0])[2]
            raise
        self._number = number
        return len(text)

    def _frame(self, messages: Rendered) -> tuple[bytes, bytes, int]:
        """What goes out, where each message ends, and the number of the next one."""
        return frame(messages.text, messages.ends, self._number, self._framing)

    def _leads_elsewhere(self, sock: socket.socket) -> bool:
        """Whether a new connection would be another: the name's address has changed, or our certificate."""
        if self._target.path:
            return False
        has_others = self._credentials is not None and self._credentials.have_changed()
        return has_others or self._addresses.have_moved(sock)

    def try_write(self, rendered: Rendered) -> tuple[int, int]:
        """See DirectSink."""
        sock = self._datagrams
        if sock is None or self.lend() is None:
            return 0, 0
        text, ends, number = self._frame(rendered)
        sent, error = sock.try_send(text, ends)
        if sent < rendered.events:  # the others get their numbers when they go out
            text, _, number = self._frame(rendered.split(sent)[0])
        self.end_loan(Passed(number=number, error=error))
        return sent, len(text)

    def lend(self) -> Loan | None:
        """See DirectSink. Datagrams; whether their receiver has another address now, write() finds out."""
        is_certain = self._target.path or self._addresses.are_known()
        if self._datagrams is None or self._error or not is_certain:
            return None
        return self._datagrams.lend(Way.SEGMENT if self._segments else Way.NUMBER, self._number)

    def end_loan(self, passed: Passed) -> None:
        """See DirectSink. For want of room write() waits, and what is too long it refuses."""
        self._number = passed.number or self._number
        if passed.error not in (errno.ETIMEDOUT, errno.EMSGSIZE):
            self._error = passed.error

    def _write_datagrams(self, sock: DatagramSocket, text: bytes, ends: bytes) -> None:
        sent, error = sock.send(text, ends)
        if error is None:
            return
        if error.errno == errno.EMSGSIZE:  # no message of ours is that long; it will never be taken
            raise SinkRevised(self._explain(error), written=sent, refused=1) from error
        raise self._note_trouble(error, sent) from error

    def _note_trouble(self, error: OSError, written: int = 0) -> SinkUnavailable:
        self._refusals += 1  # the next address is tried then
        return SinkUnavailable(self._explain(error), written=written)

    def _explain(self, error: OSError) -> str:
        return f"{self._describe_target()}: {name_cause(error)}"

    def _write_stream(self, sock: socket.socket, text: bytes, ends: bytes) -> None:
        data, sent = memoryview(text), 0
        try:
            _check_peer(sock)
            while sent < len(data):
                sent += sock.send(data[sent : sent + (1 << 16)])
            _wait_for_acknowledgement(sock)
        except OSError as error:
            # Of what TLS has sent nobody knows how much of it was ours.
            there = 0 if self._tls is not None else sent - _count_unacknowledged(sock)
            raise SinkUnavailable(self._explain(error), written=count_ends(ends, max(0, there))) from error

    def _describe_target(self) -> str:
        target = self._target
        if target.path:
            return f"{target.scheme}://{target.path}"
        host = f"[{target.host}]" if ":" in target.host else target.host
        return f"{target.scheme}://{host}:{target.port}"

    def close(self) -> None:
        sock, self._socket = self._socket, None
        datagrams, self._datagrams = self._datagrams, None
        if datagrams is not None:
            datagrams.close()
        elif sock is not None:
            sock.close()


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
    except OSError as error:
        if not is_waiting(error):
            raise
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
    template = make_template(
        get_syslog_form(config),
        config[options.SINK_SYSLOG_FACILITY],
        get_host(config),
        is_local=bool(target.path),
        names=choose_names(config[options.SINK_SYSLOG_FIELDS]),
    )
    framing = Framing.LINE if config[options.SINK_SYSLOG_FRAMING] == "lf" else Framing.OCTETS
    return SyslogSink(
        target,
        template.anonymize(read_anonymizer(config, "syslog")),
        framing,
        read_tls(config, options.SINK_SYSLOG_TLS) if parts.scheme == "tls" else None,
        segments=config[options.SINK_SYSLOG_SEGMENTS],
    )
