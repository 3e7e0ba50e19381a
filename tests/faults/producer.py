"""A counting producer: each number is a flow of its own, and the number can be read from the record of it."""

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.live.network import TRACKING, Network, inside

CLIENT, SERVER = "10.1.0.2", "10.2.0.2"
FIRST_SOURCE: Final = 10_000
FIRST_TARGET: Final = 1_024
TARGETS: Final = 60_000  # flows of one source port

# Reads `FIRST COUNT RATE` a line and answers with a line when all is sent: one UDP datagram for each number.
# On one CPU: a packet that is sent on another one may overtake it.
PROGRAM: Final = f"""
import os, socket, sys, time
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
sockets = {{}}
def get_socket(port):
    if port not in sockets:
        sockets[port] = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(({CLIENT!r}, port))
    return sockets[port]
for line in sys.stdin:
    first, count, rate = map(int, line.split())
    begin = time.monotonic()
    for index in range(count):
        if rate and index % 20 == 0:
            time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        source, target = divmod(first + index, {TARGETS})
        get_socket({FIRST_SOURCE} + source).sendto(b"", ({SERVER!r}, {FIRST_TARGET} + target))
    print("done", flush=True)
"""
# Nobody answers, not even the kernel with an ICMP message.
SILENCE: Final = """
table inet silence {
    chain every { type filter hook prerouting priority -300; policy drop; }
}
"""


def compute_number(sport: int, dport: int) -> int:
    """The number of the flow that has these ports, -1 for none of ours."""
    source, target = sport - FIRST_SOURCE, dport - FIRST_TARGET
    return source * TARGETS + target if source >= 0 and 0 <= target < TARGETS else -1


@dataclass
class Producer:
    """Sends flows through the router, and knows how many."""

    network: Network
    process: subprocess.Popen[str]
    sent: int = 0
    _under_way: int = field(default=0, init=False)

    def send(self, count: int, rate: int = 0) -> None:
        """So many new flows, at most so many a second (0: as fast as it goes); returns when they are sent."""
        self.start(count, rate)
        self.wait()

    def start(self, count: int, rate: int = 0) -> None:
        """As send(), without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.sent} {count} {rate}\n")
        self.process.stdin.flush()
        self._under_way = count

    def is_sending(self, seconds: float) -> bool:
        """Whether what was started takes longer than that from now on."""
        assert self.process.stdout is not None
        return not select.select([self.process.stdout.fileno()], [], [], seconds)[0]

    def wait(self) -> None:
        """Until what was started is sent. Of what the kernel refuses there is no event to be lost."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"
        self.sent += self._under_way
        assert count_refused(self.network.router) == 0

    def forget(self) -> None:
        """Empty the router's table. What is sent afterwards has new numbers all the same."""
        subprocess.run(
            ["ip", "netns", "exec", self.network.router, "conntrack", "-F"], check=True, capture_output=True
        )


def count_refused(namespace: str) -> int:
    """Packets that the conntrack of the namespace dropped, of all CPUs."""
    head, *rows = inside(namespace, "cat", "/proc/net/stat/nf_conntrack").splitlines()
    columns = [head.split().index(name) for name in ("insert_failed", "drop", "early_drop")]
    return sum(int(row.split()[column], 16) for row in rows for column in columns)


@contextmanager
def produce(network: Network) -> Iterator[Producer]:
    """A producer in the network's client."""
    command = ["ip", "netns", "exec", network.client, sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Producer(network, process)
        finally:
            process.kill()


def prepare(network: Network) -> None:
    """What the producer needs: tracking in the router, silence behind it."""
    network.load(TRACKING)
    inside(network.server, "nft", "-f", "-", text=SILENCE)
