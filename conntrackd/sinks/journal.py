"""Events to journald's socket, one datagram each.

Not through python-systemd: it holds the interpreter's lock while it waits for journald (235,
_journal.c), so that a journald that stands still would stop the thread that reads events, and all others.

One entry a datagram. journald would take many, an empty line apart (src/journal/journald-native.c, from 38 to
261), and the sender save 2 us for each, but one that is killed takes with it the datagram that it holds.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from conntrackd.config import options
from conntrackd.config.field_list import choose_names
from conntrackd.config.read import Config
from conntrackd.delivery.datagrams import DatagramSocket
from conntrackd.delivery.loan import Loan, Passed
from conntrackd.delivery.sink import SinkUnavailable, describe
from conntrackd.netlink.constants import SO_SNDBUFFORCE
from conntrackd.render import journal
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template
from conntrackd.sinks.anonymizer import read_anonymizer

SOCKET: Final = Path("/run/systemd/journal/socket")
BATCH_EVENTS: Final = 256
# So many are sent by the reader. A batch that fills its slots means a high load: another core may send it.
DIRECT_EVENTS: Final = 255
# How long journald may keep us waiting before the sink is said to be in trouble; nothing is dropped by that.
PATIENCE_SECONDS: Final = 5.0
# libsystemd's own figure: journald may be busy for a while.
SEND_BUFFER: Final = 8 << 20


class JournalSink:
    """Sends to journald, and waits for it."""

    name = "journal"
    batch_events = BATCH_EVENTS
    batch_wait = 0.0  # the reader has gathered already

    def __init__(self, path: Path = SOCKET, template: Template = journal.TEMPLATE) -> None:
        self.template = template
        self._path = path
        self._socket: DatagramSocket | None = None

    def open(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.connect(os.fspath(self._path))
        except OSError as error:
            sock.close()
            raise SinkUnavailable(f"{self._path}: {describe(error)}") from error
        self._socket = DatagramSocket(sock, PATIENCE_SECONDS)

    def write(self, parts: Sequence[Rendered]) -> int:
        """All of it; how many events journald has taken of it stands on what is raised."""
        sock, written = self._socket, 0
        if sock is None:
            raise SinkUnavailable("closed")
        for part in parts:
            sent, error = sock.send(part.text, part.ends)
            if error is not None:
                reason = f"{self._path}: {describe(error)}"
                raise SinkUnavailable(reason, written=written + min(sent, part.events)) from error
            written += part.events
        return sum(len(part.text) for part in parts)

    def try_write(self, rendered: Rendered) -> tuple[int, int]:
        """See DirectSink."""
        sock = self._socket  # the sink's thread may let go of it meanwhile
        if sock is None or rendered.events > DIRECT_EVENTS:
            return 0, 0
        sent, _ = sock.try_send(rendered.text, rendered.ends)
        return sent, rendered.get_end(sent)

    def lend(self) -> Loan | None:
        """See DirectSink."""
        return None if self._socket is None else self._socket.lend()

    def end_loan(self, passed: Passed) -> None:
        """See DirectSink. No datagram is taken in part, and what is wrong the next one shows, too."""

    def close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


def create(config: Config) -> JournalSink:
    """The sink as configured, which is not much."""
    template = journal.make_template(choose_names(config[options.SINK_JOURNAL_FIELDS]))
    return JournalSink(template=template.anonymize(read_anonymizer(config, "journal")))
