"""`python -m tests.pictures.traffic serve|talk`: some hosts and what they say, in the namespace it runs in.

It ends when it is stopped. Addresses are those for documentation (RFC 5737, RFC 3849).
"""

import math
import random
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

CLIENTS: Final = ("192.0.2.10", "192.0.2.11", "192.0.2.24", "192.0.2.57", "2001:db8:1::10")
# As the database of the pictures has it.
COUNTRIES: Final = {
    "198.51.100.0/25": "Germany",
    "198.51.100.128/25": "France",
    "203.0.113.0/24": "Japan",
    "2001:db8:2::/48": "Norway",
}
# Destination, protocol, port, bytes of an answer, how often.
SERVERS: Final = (
    ("198.51.100.7", socket.SOCK_STREAM, 443, 5200, 30),
    ("198.51.100.7", socket.SOCK_STREAM, 80, 900, 8),
    ("198.51.100.201", socket.SOCK_STREAM, 443, 21_000, 12),
    ("203.0.113.5", socket.SOCK_STREAM, 22, 3100, 4),
    ("203.0.113.53", socket.SOCK_DGRAM, 53, 120, 25),
    ("2001:db8:2::25", socket.SOCK_STREAM, 993, 7400, 6),
)
BUSIEST: Final = 30.0  # connections a second


def get_family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve() -> None:
    """Answer each request with as much as belongs to its address and port."""
    waiting = selectors.DefaultSelector()
    for address, kind, port, size, _ in SERVERS:
        sock = socket.socket(get_family(address), kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        waiting.register(
            sock, selectors.EVENT_READ, answer_stream if kind == socket.SOCK_STREAM else answer_datagram
        )
        sizes[sock.fileno()] = size
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            answer: Callable[[socket.socket, bytes], None] = key.data
            answer(key.fileobj, bytes(sizes[key.fd]))  # type: ignore[arg-type]


sizes: dict[int, int] = {}


def answer_stream(sock: socket.socket, text: bytes) -> None:
    connection, _ = sock.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(text)


def answer_datagram(sock: socket.socket, text: bytes) -> None:
    _, peer = sock.recvfrom(1000)
    sock.sendto(text, peer)


def talk() -> None:
    """One connection after the other, at times more and at times fewer."""
    choose, weights = random.Random(7), [server[-1] for server in SERVERS]
    print("ready", flush=True)
    while True:
        (server,) = choose.choices(SERVERS, weights)
        address, kind, port, size, _ = server
        clients = [client for client in CLIENTS if get_family(client) == get_family(address)]
        (client,) = choose.choices(clients, range(len(clients), 0, -1))
        with socket.socket(get_family(address), kind) as sock:
            sock.settimeout(10)
            sock.bind((client, 0))
            sock.connect((address, port))
            sock.send(bytes(choose.randrange(80, 400)))
            while size > 0 and (data := sock.recv(1 << 16)):
                size -= len(data)
        rate = BUSIEST * (0.55 + 0.45 * math.sin(time.monotonic() / 4))
        time.sleep(choose.expovariate(rate))


if __name__ == "__main__":
    {"serve": serve, "talk": talk}[sys.argv[1]]()
