"""Events to journald's socket, one datagram each.

Not through python-systemd: it holds the interpreter's lock while it waits for journald (235,
_journal.c), so that a journald that stands still would stop the thread that reads events, and all others.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from conntrackd.config import Config
from conntrackd.flow import Batch
from conntrackd.netlink.constants import SO_SNDBUFFORCE
from conntrackd.sinks.datagrams import SLOTS, DatagramSender
from conntrackd.sinks.encode_journal import JournalEncoder
from conntrackd.sinks.sink import Parcel, SinkUnavailable, describe

SOCKET: Final = Path("/run/systemd/journal/socket")
BATCH_EVENTS: Final = 256
BATCH_WAIT: Final = 0.02
# How long journald may keep us waiting before the sink is said to be in trouble; nothing is dropped by that.
PATIENCE_SECONDS: Final = 5.0
# libsystemd's own figure: journald may be busy for a while.
SEND_BUFFER: Final = 8 << 20


class JournalSink:
    """Sends to journald, and waits for it."""

    name = "journal"
    batch_events = BATCH_EVENTS
    batch_wait = BATCH_WAIT

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._sender: DatagramSender | None = None
        self._encoder = JournalEncoder()
        self.form = self._encoder.form

    def open(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self._socket.connect(os.fspath(self._path))
            self._sender = DatagramSender(self._socket, PATIENCE_SECONDS)
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: {describe(error)}") from error

    def encode(self, batch: Batch) -> list[bytes]:
        return self._encoder.encode(batch)

    def write(self, payload: list[bytes]) -> int:
        """All of it; what journald has not taken is raised as `rest`."""
        sender, sent = self._sender, 0
        assert sender is not None
        while sent < len(payload):
            try:
                sent += sender.send(payload[sent : sent + SLOTS])
            except OSError as error:
                left = payload[sent:]
                # The EVENT_TYPE of a LOST record can be nothing else's: no value holds a line's end.
                events = sum(b"\nEVENT_TYPE=LOST\n" not in each for each in left)
                reason = f"{self._path}: {describe(error)}"
                raise SinkUnavailable(reason, rest=Parcel(left, events)) from error
        return sum(map(len, payload))

    def close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # ends a write that waits; journald sees nothing of it
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = self._sender = None


def create(_: Config) -> JournalSink:
    """The sink as configured, which is not much."""
    return JournalSink()
