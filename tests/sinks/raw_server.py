"""A server that says exactly these bytes, and remembers the requests that it got."""

import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)

Answer = bytes | Callable[[socket.socket], None]
"""What is sent when a request has come whole, or what is done with the connection then."""


@dataclass
class RawServer:
    """One connection after the other, one answer for each request; then it hangs up."""

    listener: socket.socket
    answers: list[Answer]
    before: dict[int, bytes] = field(default_factory=dict)
    """Sent before the body of the request of this number is read."""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        with suppress(OSError):
            while self.answers:
                connection, _ = self.listener.accept()
                self.connections += 1
                with connection, suppress(OSError):
                    self._serve_connection(connection)

    def _serve_connection(self, connection: socket.socket) -> None:
        connection.settimeout(20.0)
        while self.answers:
            if not self._read_request(connection):
                return
            answer = self.answers.pop(0)
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)

    def _read_request(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(1 << 16)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        connection.sendall(self.before.get(len(self.requests), b""))
        found = LENGTH.search(head)
        left = int(found[1] if found else 0) - len(body)
        while left > 0:
            more = connection.recv(1 << 20)
            if not more:
                return False
            left -= len(more)
        self.requests.append(head)
        return True


@contextmanager
def run_raw_server(answers: Sequence[Answer], before: dict[int, bytes] | None = None) -> Iterator[RawServer]:
    """Until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = RawServer(listener, list(answers), before or {})
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(30.0)
            assert not thread.is_alive()
