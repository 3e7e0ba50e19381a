"""SIGKILL at every place of a spool's life: what was on disk is delivered, only what was in flight twice."""

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SEEDS = 20
POINTS = (
    "before append",
    "in append",
    "after append",
    "before write",
    "after write",
    "in remove",
    "after remove",
)

# A daemon in small: events come, the sink is away for the first half of them, and the process kills itself
# at the n-th time that it passes the named point. On stdout it tells each row that append() acknowledged.
PROGRAM = r"""
import json, os, signal, socket, struct, sys
from pathlib import Path
from conntrackd.delivery import spool as module
from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.stats import SinkStats
from conntrackd.delivery.batch import unpack_batch
from tests.delivery.fakes import FAKE, Clock, put, show
from tests.sinks.flows import make_flows

directory, port, point, countdown, first, count = sys.argv[1:]
left, clock, away = int(countdown), Clock(), True


def pass_by(name):
    global left
    if name == point:
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Watched(module.Spool):
    def append(self, batches, **options):
        pass_by("before append")
        gone = super().append(batches, **options)
        sys.stdout.write(json.dumps([n for p in batches for n in show(unpack_batch(p.payload).parts)]) + "\n")
        sys.stdout.flush()
        pass_by("after append")
        return gone

    def _make_room(self, keep, gone):
        pass_by("in append")  # the row is there, the state does not know it
        super()._make_room(keep, gone)

    def remove(self, row):
        super().remove(row)
        pass_by("after remove")

    def _give_back(self):
        pass_by("in remove")
        super()._give_back()


class Remote:
    name, template, batch_events, batch_wait = "fake", FAKE, 5, 0.0

    def __init__(self):
        self.connection = None

    def open(self):
        if away:
            raise SinkUnavailable("away")
        self.connection = socket.create_connection(("127.0.0.1", int(port)))

    def write(self, parts):
        payload = json.dumps(show(parts)).encode()
        pass_by("before write")
        self.connection.sendall(struct.pack(">I", len(payload)) + payload)
        if self.connection.recv(1) != b"+":
            raise SinkUnavailable("reset")
        pass_by("after write")
        return len(payload)

    def close(self):
        if self.connection is not None:
            self.connection.close()


spool = Watched(Path(directory), "fake", 1 << 20)
outbox = Outbox(Remote(), queue=1000, stats=SinkStats(), spool=spool, backoff=Backoff(0.1, 1.0), clock=clock)
for number in range(int(first), int(first) + int(count), 5):
    away = number < int(first) + int(count) // 2
    put(outbox, make_flows(5, number))
    for _ in range(20):
        wait = outbox.step()
        clock.now += wait or 0.0
        if wait is None:
            break
for _ in range(1000):
    wait = outbox.step()
    if wait is None:
        break
    clock.now += wait
outbox.stop(clock.now)
"""


@dataclass
class Receiver:
    """Acknowledges payloads, and remembers them before it does."""

    port: int
    received: Counter[int] = field(default_factory=Counter)
    order: list[int] = field(default_factory=list)


@contextmanager
def run_receiver() -> Iterator[tuple[Receiver, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30.0)
        yield Receiver(listener.getsockname()[1]), listener


def serve(receiver: Receiver, listener: socket.socket, process: subprocess.Popen[str]) -> None:
    """Everything that one life of the process sends."""
    listener.setblocking(False)
    while process.poll() is None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            try:
                process.wait(0.005)
            except subprocess.TimeoutExpired:
                continue
            continue
        with connection:
            connection.settimeout(30.0)
            _serve_connection(receiver, connection)


def _serve_connection(receiver: Receiver, connection: socket.socket) -> None:
    stream = connection.makefile("rb")
    with stream:
        while len(head := stream.read(4)) == 4:
            payload = stream.read(struct.unpack(">I", head)[0])
            numbers = json.loads(payload)
            receiver.received.update(numbers)
            receiver.order += numbers
            try:
                connection.sendall(b"+")
            except OSError:
                return


def live(
    directory: Path, receiver: Receiver, listener: socket.socket, *arguments: object
) -> tuple[int, list[int]]:
    """One life of the process. Returns its status and the events that its spool has acknowledged."""
    command = [sys.executable, "-c", PROGRAM, str(directory), str(receiver.port), *map(str, arguments)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        serve(receiver, listener, process)
        assert process.stdout is not None
        spooled = [number for line in process.stdout for number in json.loads(line)]
    return process.returncode, spooled


@pytest.mark.parametrize("point", POINTS)
def test_whatever_the_spool_took_is_delivered_though_the_process_is_killed(
    tmp_path: Path, point: str
) -> None:
    chooser = random.Random(point)
    spooled: set[int] = set()
    first, killed = 0, 0
    with run_receiver() as (receiver, listener):
        for _ in range(SEEDS):
            status, taken = live(tmp_path, receiver, listener, point, chooser.randint(1, 8), first, 100)
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            spooled.update(taken)
            first += 100
        status, taken = live(tmp_path, receiver, listener, "nowhere", 1, first, 10)
        spooled.update(taken)

    assert status == 0
    assert killed
    assert spooled <= receiver.received.keys()
    assert {*range(first, first + 10)} <= receiver.received.keys()
    # Only the batch that was in flight when the process died may come twice.
    assert sum(receiver.received.values()) - len(receiver.received) <= killed * 5
    seen = list(dict.fromkeys(receiver.order))
    assert seen == sorted(seen)
