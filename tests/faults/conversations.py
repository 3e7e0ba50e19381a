"""Flows through a gateway that translates, with counters of their own: what each end has sent and heard."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from tests.live import traffic
from tests.live.network import DNAT, SNAT, TRACKING, Network, ip, list_connections, network

# Two hosts behind the gateway have the same ports, so that it changes one of them; half is for the gateway
# itself, which hands it on.
SOURCES: Final = {4: ("10.1.0.2", "10.1.0.3"), 6: ("fd01::2", "fd01::3")}
TARGETS: Final = {4: ("10.2.0.2", "10.1.0.1"), 6: ("fd02::2", "fd01::1")}
HEADERS: Final = {4: 20 + 8, 6: 40 + 8}  # of IP and UDP
FIRST_PORT: Final = 20_000
# Of the 240 tries at a port to translate to each is the next one, but for three jumps: in a block of used
# ports the kernel gives up now and then, and drops the datagram (2 of 30,000: insert_failed of conntrack -S).
STEP: Final = 8
TCP_EVERY: Final = 20
COUNTERS: Final = ("packets", "bytes", "reply_packets", "reply_bytes")


class Flow(NamedTuple):
    """What every listing of flows has in common: the tuple as the client knows it."""

    protocol: str
    source: str
    port: int
    target: str


class Counted(NamedTuple):
    """What the ends of a flow know of it. Of TCP the packets are the kernel's business."""

    began_ns: int
    ended_ns: int
    counters: tuple[int, int, int, int] | None


@contextmanager
def gateway() -> Iterator[Network]:
    """A router that translates both ways, with counters, and a server that answers."""
    with network() as net:
        for number, addresses in SOURCES.items():
            ip(
                "-n",
                net.client,
                f"-{number}",
                "address",
                "add",
                f"{addresses[1]}/{24 if number == 4 else 64}",
                "dev",
                "eth0",
                *(["nodad"] if number == 6 else []),
            )
        net.load(TRACKING + SNAT + DNAT)
        net.set("net.netfilter.nf_conntrack_acct", 1)
        # Flows that began without a listener end with an event, too.
        net.set("net.netfilter.nf_conntrack_events", 1)
        with traffic.serve(net.server):
            yield net


def converse(first: int, count: int, rate: int) -> dict[Flow, Counted]:
    """So many flows, at most so many a second, in the client. Their numbers begin with `first`."""
    found, begin = {}, time.monotonic()
    for index in range(count):
        if index % 20 == 0:
            time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        flow, counted = _say(first + index)
        found[flow] = counted
    return found


def _say(number: int) -> tuple[Flow, Counted]:
    version = 6 if number % 5 == 4 else 4
    kind = socket.SOCK_DGRAM if number % TCP_EVERY else socket.SOCK_STREAM
    source, target = SOURCES[version][number % 2], TARGETS[version][number // 2 % 2]
    port, began = FIRST_PORT + number // 2 * STEP, time.time_ns()
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((source, port))
        sock.connect((target, 8080))
        times, size = 1 + number % 3 if kind == socket.SOCK_DGRAM else 1, 1 + number % 100
        for _ in range(times):
            sock.send(bytes(size))
        for _ in range(times):
            assert len(sock.recv(100)) == size
    data = times * (HEADERS[version] + size)
    counters = (times, data, times, data) if kind == socket.SOCK_DGRAM else None
    protocol = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    return Flow(protocol, source, port, target), Counted(began, time.time_ns(), counters)


def identify(record: dict[str, Any]) -> Flow:
    return Flow(record["prot"], record["src"], record["sport"], record["dst"])


def list_table(net: Network) -> dict[Flow, dict[str, Any]]:
    """What the kernel knows of each flow."""
    return {identify(told): told for family in ("ipv4", "ipv6") for told in list_connections(net, family)}
