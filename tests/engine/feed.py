"""Datagrams for an engine's batch without a kernel that sends them: over a pair of Unix sockets."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conntrackd.engine import Engine, EventBatch, Received
from conntrackd.engine.native import NativeEngine
from conntrackd.engine.plain import PlainEngine
from conntrackd.netlink.constants import NLMSG_NOOP
from conntrackd.netlink.message import HEADER
from conntrackd.pipeline import Pipeline
from conntrackd.records import Records

CORPUS = sorted((Path(__file__).parent.parent / "netlink" / "corpus").glob("*.nl"))
# net.unix.max_dgram_qlen is 10 on some machines
QUEUE = 10
PATIENCE_MS = 5000
RECEIVED_NS = 1_763_807_683_181_432_081

ENGINES: tuple[Engine, ...] = (NativeEngine(True), PlainEngine(True))


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """One to receive from, one to send to it."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        yield one, other


def receive(batch: EventBatch, *datagrams: bytes) -> Received:
    """At most QUEUE datagrams as one batch; an empty one would be nothing to a socket."""
    assert len(datagrams) <= QUEUE
    with pair() as (one, other):
        for datagram in datagrams:
            other.send(datagram)
        return Received(*batch.receive(one.fileno(), PATIENCE_MS, 0))


def read_messages(path: Path) -> list[bytes]:
    """The messages of a recording, one by one."""
    content, offset, messages = path.read_bytes(), 0, []
    while offset < len(content):
        length, kind, *_ = HEADER.unpack_from(content, offset)
        if kind != NLMSG_NOOP:  # the time
            messages.append(content[offset : offset + length])
        offset += length + 3 & ~3
    return messages


MESSAGES = [message for path in CORPUS for message in read_messages(path)]


def set_records(pipeline: Pipeline, records: Records) -> None:
    """What is written from the next batch on, by the filters in force."""
    pipeline.tables = tuple(tables._replace(records=records) for tables in pipeline.tables)
