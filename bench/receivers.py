"""What stands at the other end of the sinks: servers on loopback that take everything and keep nothing.

`python -m bench.receivers` prints their ports as JSON and runs until its standard input is closed. Only in a
namespace whose /run is the benchmark's own: it stands where journald would.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

JOURNAL: Final = Path("/run/systemd/journal/socket")
DATAGRAM: Final = 1 << 18  # journald takes larger entries by descriptor; an event has less than 1 KiB


class Loki(BaseHTTPRequestHandler):
    """Ready, and content with every batch."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def drain(receiver: socket.socket) -> None:
    """Take datagrams for ever."""
    buffer = bytearray(DATAGRAM)
    while True:
        receiver.recv_into(buffer)


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
    syslog.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    syslog.bind(("127.0.0.1", 0))
    hung = socket.create_server(("127.0.0.1", 0))
    loki = ThreadingHTTPServer(("127.0.0.1", 0), Loki)
    run(drain, journal)
    run(drain, syslog)
    run(hang, hung)
    run(loki.serve_forever)
    ports = {"syslog": syslog, "hung": hung, "loki": loki.socket}
    print(json.dumps({name: each.getsockname()[1] for name, each in ports.items()}), flush=True)
    os.read(0, 1)


@contextmanager
def start_receivers() -> Iterator[dict[str, int]]:
    """Run them beside the benchmark; their ports."""
    argv = [sys.executable, "-m", "bench.receivers"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
