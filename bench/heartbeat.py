"""What heartbeats take of a core: each flow of a full table is written, and nothing happens meanwhile."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.arena import COUNTERS, BenchError, count_flows, run_tool, turn_on
from bench.proc import read_cpu_ns
from bench.subject import Session, Subject, count_lines, run_subject

FLOWS: Final = 100_000
MEASURED_S: Final = 20  # the interval that is measured
SAID_S: Final = 60  # and the one of which a user thinks
PATIENCE_S: Final = 90.0
POLL_S: Final = 0.05
TIMEOUT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
PORTS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """One interval of a subject's; `core_percent` is as if the interval were SAID_S."""

    subject: str
    flows: int
    us_per_flow: float
    core_percent: float


@contextmanager
def fill_table(flows: int) -> Iterator[None]:
    """So many flows that last, all from one socket. Whether anybody gets a packet does not matter."""
    before = TIMEOUT.read_text()
    TIMEOUT.write_text("600")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(flows):
                host, port = divmod(number, PORTS)
                sock.sendto(b"", (f"10.3.0.{host + 1}", 1024 + port))
        if count_flows() < flows:
            raise BenchError(f"the table has {count_flows()} flows instead of {flows}")
        yield
    finally:
        TIMEOUT.write_text(before)
        run_tool("conntrack", "-F")


def measure_heartbeats(subject: Subject, flows: int = FLOWS) -> Heartbeats:
    """From the end of one reading to the end of the next one. It writes one line a flow."""
    with turn_on(COUNTERS), fill_table(flows), run_subject(subject) as session:
        _wait_for_lines(session, flows)
        before = read_cpu_ns(session.process.pid)
        _wait_for_lines(session, 2 * flows)
        cpu = read_cpu_ns(session.process.pid) - before
    return Heartbeats(subject.name, flows, round(cpu / 1000 / flows, 2), round(100 * cpu / 1e9 / SAID_S, 2))


def _wait_for_lines(session: Session, count: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while count_lines(session.subject.stdout, "") < count:
        if time.monotonic() > end or session.process.poll() is not None:
            raise BenchError(f"{session.subject.name} has not written {count} records")
        time.sleep(POLL_S)
