"""Datagrams for an engine's batch without a kernel that sends them: over a pair of Unix sockets."""

import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conntrackd.core import _core as core
from conntrackd.delivery.loan import Loan
from conntrackd.engine import Engine, EventBatch, Link, Outlet, Received, Relayed, Stages
from conntrackd.engine.native import NativeEngine
from conntrackd.engine.plain import PlainEngine
from conntrackd.flow import Flow
from conntrackd.netlink.constants import NLMSG_NOOP
from conntrackd.netlink.message import HEADER
from conntrackd.pipeline import Pipeline
from conntrackd.records import Records
from conntrackd.render import json
from tests.messages import build_message

CORPUS = sorted((Path(__file__).parent.parent / "netlink" / "corpus").glob("*.nl"))
# net.unix.max_dgram_qlen is 10 on some machines
QUEUE = 10
PATIENCE_MS = 5000
RECEIVED_NS = 1_763_807_683_181_432_081

ENGINE = NativeEngine(True)
ENGINES: tuple[Engine, ...] = (ENGINE, PlainEngine(True))
ALL = ENGINE.compile_table([])
FORM = ENGINE.compile_template(json.TEMPLATE)
# Of one relay:
SECONDS = 0.05
ROOM = 100


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """One to receive from, one to send to it."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        yield one, other


class Feed:
    """A batch, and the pair of sockets that it reads from."""

    def __init__(self, slots: int, one: socket.socket, other: socket.socket) -> None:
        self.batch = core.Batch(slots, 2048, True)
        self.one, self.other = one, other

    def send(self, flows: Sequence[Flow]) -> None:
        for flow in flows:
            self.other.send(build_message(flow))

    def send_singly(self, flows: Sequence[Flow]) -> None:
        """Each when the one before it has been received."""
        for flow in flows:
            self.send([flow])
            while select.select([self.one], [], [], 0)[0]:
                pass

    def relay(self, loan: Loan, table: object = ALL, drops: int = 0, room: int = ROOM) -> Relayed:
        return self.relay_to([Outlet(FORM, loan, room)], table, drops)

    def relay_to(
        self, outlets: Sequence[Outlet], table: object = ALL, drops: int = 0, **stages: Any
    ) -> Relayed:
        link = Link(self.one.fileno(), 0, drops)
        relayed = ENGINE.relay(self.batch, Stages(table, **stages), link, outlets, SECONDS)
        assert relayed is not None
        return relayed

    def call_relay(self, outlet: tuple[Any, ...], milliseconds: int = 1, locations: Any = None) -> Any:
        """By what it takes, whatever that is."""
        stages = (ALL.core, locations, None, False)
        return self.batch.relay(self.one.fileno(), 0, 0, milliseconds, *stages, (outlet,))

    def list_left(self) -> list[int]:
        """The ids of what was received and not relayed."""
        return [self.batch.describe(index)["id"] for index in range(len(self.batch))]


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
