"""What stands at the other end of the sinks: servers on loopback that take everything and count it.

`python -m bench.receivers` prints their ports as JSON, for each line of its standard input what has come
since the last one, and ends with it. Only in a namespace whose /run is the benchmark's own: it stands where
journald would.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, ClassVar, Final

from bench.arena import BUILD
from bench.capture import SO_RCVBUFFORCE
from conntrackd.delivery.batch import decompress
from conntrackd.render.journal import EVENT_ID
from conntrackd.render.loki import LOST

SYSLOG_EVENT: Final = "<30>1 "  # a loss is a warning, with 28
PUSH: Final = "/loki/api/v1/push"
JOURNAL: Final = Path("/run/systemd/journal/socket")


class Loki(BaseHTTPRequestHandler):
    """Ready, and content with every batch."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []
    """Read when somebody wants to know what is in them: not while there is load."""

    def handle(self) -> None:
        with suppress(ConnectionResetError):  # one that was ended before it read our answer
            super().handle()

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == PUSH:  # and not syscalls.c, whose bodies are nothing
            self.bodies.append(body)
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Drain:
    """A program that takes a socket's datagrams: Python would be slower than the sinks that send them."""

    def __init__(self, receiver: socket.socket, mark: str) -> None:
        """`mark` is what each event has in its text, once, and nothing else."""
        descriptor = receiver.fileno()
        argv = [str(BUILD / "drain"), str(descriptor), mark]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, pass_fds=[descriptor]
        )

    def count(self) -> int:
        """The events since the last count."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        return int(self._process.stdout.readline())


def count_events(body: bytes) -> int:
    """Entries of a push, losses not among them."""
    streams = json.loads(decompress(body))["streams"]
    return sum(len(stream["values"]) for stream in streams if stream["stream"]["type"] != LOST)


def hang(listener: socket.socket) -> None:
    """Take connections and never answer."""
    taken = []
    while True:
        taken.append(listener.accept())


def run(function: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C at a terminal is for the benchmark, which ends us
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    JOURNAL.parent.mkdir(parents=True)
    journal.bind(str(JOURNAL))
    syslog = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    syslog.setsockopt(
        socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20
    )  # what UDP loses here the daemon cannot know
    syslog.bind(("127.0.0.1", 0))
    tcp = socket.create_server(("127.0.0.1", 0))
    tcp.setblocking(False)
    hung = socket.create_server(("127.0.0.1", 0))
    loki = ThreadingHTTPServer(("127.0.0.1", 0), Loki)
    drains = {
        "journal": Drain(journal, EVENT_ID),
        "syslog": Drain(syslog, SYSLOG_EVENT),
        "syslog-tcp": Drain(tcp, SYSLOG_EVENT),
    }
    run(hang, hung)
    run(loki.serve_forever)
    ports = {"syslog": syslog, "syslog-tcp": tcp, "hung": hung, "loki": loki.socket}
    print(json.dumps({name: drain.getsockname()[1] for name, drain in ports.items()}), flush=True)
    for _ in sys.stdin:
        counts = {sink: drain.count() for sink, drain in drains.items()}
        print(json.dumps({**counts, "loki": sum(map(count_events, Loki.bodies))}), flush=True)
        Loki.bodies.clear()


@dataclass(frozen=True, slots=True)
class Receivers:
    """Those that run."""

    ports: dict[str, int]
    asks: IO[str]
    answers: IO[str]

    def count(self) -> dict[str, int]:
        """The events that have come since the last count, by sink."""
        self.asks.write("\n")
        self.asks.flush()
        counted: dict[str, int] = json.loads(self.answers.readline())
        return counted


@contextmanager
def start_receivers() -> Iterator[Receivers]:
    """Run them beside the benchmark."""
    argv = [sys.executable, "-m", "bench.receivers"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield Receivers(json.loads(process.stdout.readline()), process.stdin, process.stdout)
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
