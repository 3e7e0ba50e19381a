"""A scraper that says just what a test wants, over a raw socket."""

import socket
from contextlib import closing
from dataclasses import dataclass, field


@dataclass
class Answer:
    """What came back, up to the end of the connection."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def open_client(address: tuple[str, int] | str) -> socket.socket:
    if isinstance(address, str):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(15)
        client.connect(address)
        return client
    return socket.create_connection(address, 15)


def read_answer(client: socket.socket) -> Answer | None:
    """None where the connection ended without one."""
    received = b""
    while True:
        try:
            part = client.recv(65_536)
        except (
            ConnectionResetError
        ):  # who has not read all that was sent resets the connection after the answer
            part = b""
        if not part:
            break
        received += part
    if not received:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, body)


def ask(address: tuple[str, int] | str, request: bytes) -> Answer | None:
    with closing(open_client(address)) as client:
        client.sendall(request)
        return read_answer(client)


def get(address: tuple[str, int] | str, path: str = "/metrics", *headers: str) -> Answer:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    answer = ask(address, "\r\n".join(lines).encode())
    assert answer is not None
    return answer
