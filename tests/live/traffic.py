"""Real connections, each made and ended by the functions below, in the namespace they are called in."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

SERVER = """
import os, selectors, socket, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # where the clients are, too
waiting = selectors.DefaultSelector()
def add(family, kind, protocol, address):
    sock = socket.socket(family, kind, protocol)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 8080))
    if kind != socket.SOCK_DGRAM:
        sock.listen(512)
    waiting.register(sock, selectors.EVENT_READ, kind)
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    add(family, socket.SOCK_STREAM, 0, address)
    add(family, socket.SOCK_DGRAM, 0, address)
    try:
        add(family, socket.SOCK_STREAM, 132, address)
    except OSError:
        pass
print("ready", flush=True)
while True:
    for key, _ in waiting.select():
        if key.data == socket.SOCK_DGRAM:
            data, peer = key.fileobj.recvfrom(100)
            key.fileobj.sendto(data, peer)
        else:
            connection, _ = key.fileobj.accept()
            with connection:
                data = connection.recv(100)
                connection.sendall(data)
                connection.recv(1)
"""


@contextmanager
def serve(namespace: str) -> Iterator[None]:
    """Echo on port 8080 over TCP, UDP and, where there is one, SCTP."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def talk_stream(family: int, address: str, protocol: int, times: int = 1) -> None:
    """Connect, say something, hear it back, close."""
    for _ in range(times):
        with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
            sock.settimeout(10)
            sock.connect((address, 8080))
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"


# Counted over all processes: of 20 ports that the kernel picks by chance, two are the same once in 150 times,
# and make one flow. Below the ports that the kernel picks from.
_next_port = get_context("fork").Value("i", 0)
_PORTS = range(20_000, 32_000)


def flood(first: int, times: int) -> None:
    """UDP datagrams from so many ports to nobody: a NEW each, where the kernel knows none of them yet."""
    for port in range(first, first + times):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.1.0.2", port))
            sock.sendto(b"", ("10.2.0.2", 9))


def talk_udp(family: int, address: str, times: int = 1) -> None:
    """Say something and hear it back, each time from a port that was not used before."""
    for _ in range(times):
        with _next_port.get_lock():
            port = _PORTS[_next_port.value % len(_PORTS)]
            _next_port.value += 1
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.bind(("", port))
            sock.sendto(b"hello", (address, 8080))
            assert sock.recv(100) == b"hello"


def ping(family: int, address: str, identifier: int = 0) -> None:
    """One echo request and its reply."""
    number = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    kind = 8 if family == socket.AF_INET else 128
    with socket.socket(family, socket.SOCK_RAW, number) as sock:
        sock.settimeout(10)
        message = struct.pack("!BBHHH", kind, 0, 0, identifier or os.getpid() & 0xFFFF, 1)
        if family == socket.AF_INET:  # of ICMPv6 the kernel computes it
            words = sum(struct.unpack("!4H", message))
            checksum = ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF
            message = message[:2] + struct.pack("!H", checksum) + message[4:]
        sock.sendto(message, (address, 0))
        expected = 0 if family == socket.AF_INET else 129
        while True:
            answer = sock.recv(200)
            if answer[20 if family == socket.AF_INET else 0] == expected:
                return
