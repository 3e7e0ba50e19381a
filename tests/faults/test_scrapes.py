"""Whoever reads the metrics, and however badly: 100,000 events are counted, and delivered, all the same."""

import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.rig import Rig
from tests.faults.verdict import evaluate
from tests.live.control import count_descriptors
from tests.metrics.client import ask, open_client
from tests.metrics.prometheus import PROMETHEUS, prometheus
from tests.sinks.syslog_servers import get_free_port, wait_until

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.slow,
    pytest.mark.skipif(not PROMETHEUS.exists(), reason="prometheus is not unpacked: make .venv/prometheus"),
]

EVENTS, RATE = 100_000, 10_000
SCRAPES_A_SECOND = 170  # 10,000 a minute
CONNECTIONS = 1000
REQUEST = b"GET /metrics HTTP/1.1\r\n\r\n"
HEAD = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (1 << 20)  # and no end
GROWTH_KIB = 8 << 10  # an answer to each of those that are served at a time, and what asyncio has of them


@contextmanager
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, soft + 2 * CONNECTIONS), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def abuse(address: tuple[str, int]) -> None:
    """1,000 connections that ask nothing, one that never reads, and a megabyte of headers."""
    with many_descriptors(), ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(closing(open_client(address)))
        slow = stack.enter_context(closing(open_client(address)))
        slow.sendall(REQUEST)
        try:
            answer = ask(address, HEAD)
        except (BrokenPipeError, ConnectionResetError):  # it was not read to the end
            answer = None
        assert answer is None or answer.status == 431


class Scraper(threading.Thread):
    """Asks so often until it is stopped, and counts answers: beyond 50 connections the oldest has none."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(name="scraper")
        self.answers = 0
        self._address = address
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(1 / SCRAPES_A_SECOND):
            with suppress(OSError):
                self.answers += ask(self._address, REQUEST) is not None

    def stop(self) -> None:
        self._stopped.set()
        self.join(10)


def test_totals_in_prometheus_are_those_of_the_verdict_whoever_else_reads_the_metrics(
    rig: Rig, tmp_path: Path
) -> None:
    rig.choose("stream")
    address = ("127.0.0.1", get_free_port())
    with (
        prometheus(tmp_path, [f"{address[0]}:{address[1]}"]) as server,
        rig.daemon(f"--metrics.listen={address[0]}:{address[1]}") as running,
    ):
        running.wait_for_start()
        wait_until(lambda: bool(server.query("up == 1")), "the first scrape")
        rig.producer.send(1)
        rig.wait_for_law()
        rig.measure(running)
        descriptors, memory = count_descriptors(running), rig.memory_kib
        scraper = Scraper(address)
        scraper.start()
        rig.producer.start(EVENTS - 1, RATE)
        abuse(address)
        rig.producer.wait()
        rig.wait_for_law()
        scraper.stop()
        assert scraper.answers > EVENTS / RATE
        wait_until(
            lambda: server.query("conntrackd_sink_events_delivered_total") == {(("sink", "stream"),): EVENTS},
            "the last scrape",
        )
        assert server.query("conntrackd_events_received_total") == {(): EVENTS}
        assert set(server.query("conntrackd_events_lost_total").values()) <= {0}
        assert server.query("conntrackd_healthy") == {(): 1}
        wait_until(lambda: count_descriptors(running) == descriptors, "the end of all connections")
        rig.measure(running)
        assert rig.memory_kib - memory < GROWTH_KIB
        assert running.stop() == 0

    verdict = evaluate(rig.producer.sent, list(rig.tallies.values()))
    assert (verdict.delivered, verdict.lost) == (EVENTS, 0)
