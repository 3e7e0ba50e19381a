"""Rows 25 to 29, as far as they are about events: what changes while they flow costs none of them."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from conntrackd.bus.client import DaemonError
from conntrackd.bus.names import MANAGER, SINK
from conntrackd.bus.names import MANAGER_PATH as PATH
from tests.bus.private import PrivateBus
from tests.bus.raw import Raw
from tests.faults.figures import Row, note
from tests.faults.producer import FIRST_SOURCE, FIRST_TARGET, TARGETS, Producer, produce
from tests.faults.rig import wait_until
from tests.live.daemon import Running, command, environment, start
from tests.live.network import Network

pytestmark = pytest.mark.privileged

RATE: Final = 58_000  # in the pauses in which the table is emptied nothing is sent: 50,000 in the end
PIECE: Final = 150_000  # flows that the table has room for
ROUNDS: Final = 5_000
WARM_UP: Final = 100
STREAM: Final = "/org/conntrackd1/sink/stream"
ENDS: Final = re.compile(rb'"sport":(\d+),"dport":(\d+)')
TOLD: Final = re.compile(rb'"lost":(\d+)[^\n]*"where":"(\w+)"(?:,"reason":"(\w+)")?')
CHUNK: Final = 1 << 20
# Nothing but the rule differs, so that each reload puts another program into the kernel.
CONFIGURATIONS: Final = [
    f"sink: {{stream: {{enable: true}}}}\nfilter: [drop destination port {port}]\n" for port in (7, 9)
]


class Ledger(Running):
    """A daemon whose events are counted as they come: millions of them would not fit as records."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.seen = bytearray()
        self.doubled = 0
        self.reported: dict[str, int] = {}
        super().__init__(process)

    def _gather(self, stream: Any, add: Callable[[bytes], None]) -> None:
        if stream is self.process.stderr:
            super()._gather(stream, add)
            return
        rest = b""
        while data := os.read(stream.fileno(), CHUNK):
            lines, _, rest = (rest + data).rpartition(b"\n")
            self._count(lines)
        stream.close()

    def _count(self, lines: bytes) -> None:
        for sport, dport in ENDS.findall(lines):
            number = (int(sport) - FIRST_SOURCE) * TARGETS + int(dport) - FIRST_TARGET
            if number >= len(self.seen):
                self.seen += bytes(number + 1_000_000 - len(self.seen))
            self.doubled += self.seen[number]
            self.seen[number] = 1
        for count, where, reason in TOLD.findall(lines):
            name = (reason or where).decode()
            self.reported[name] = self.reported.get(name, 0) + int(count)

    @property
    def accounted(self) -> int:
        return sum(self.seen) + sum(self.reported.values())

    def read_status(self, name: str) -> int:
        """A number of /proc/PID/status: VmRSS and VmHWM in KiB, Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(rf"(?m)^{name}:\s+(\d+)", text)
        assert match
        return int(match[1])

    def count_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "conntrackd.yaml"
    path.write_text(CONFIGURATIONS[0])
    return path


@pytest.fixture
def running(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Ledger]:
    line = command("run", "--config", os.fspath(configuration), "--bus.address", bus.address)
    line += ["--conntrack.netns", net.router, "--conntrack.events", "new", "--conntrack.protocols", "udp"]
    with start(Ledger, line, environment(CONNTRACKD_BUS_ENABLE="true")) as made:
        made.wait_for_words("org.conntrackd1 is on")
        yield made
    assert not made.has_said("Traceback"), made.said


class Load:
    """Flows at a rate until stop(), in pieces, after each of which the kernel's table is emptied.

    Not meanwhile: of a flow that is flushed before its event is sent the kernel sends none.
    """

    def __init__(self, producer: Producer, rate: int) -> None:
        self._producer, self._rate, self._piece = producer, rate, min(PIECE, rate * 3)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        begin, first = time.monotonic(), self._producer.sent
        try:
            while not self._over.is_set():
                self._producer.send(self._piece, self._rate)
                self._producer.forget()
        except BaseException as error:  # told by stop()
            self._error = error
        self._seconds = time.monotonic() - begin
        self.rate = (self._producer.sent - first) / self._seconds

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


@contextmanager
def load(producer: Producer, rate: int) -> Iterator[Load]:
    made = Load(producer, rate)
    try:
        yield made
    finally:
        made.stop()


def ask_patiently(raw: Raw, path: str, interface: str, member: str) -> None:
    """As often as it takes: so many calls a second of one user are answered, and no more."""
    pause = threading.Event()
    for _ in range(1000):
        try:
            raw.ask(path, interface, member, "")
            return
        except DaemonError as error:
            if error.name != "org.freedesktop.DBus.Error.LimitsExceeded":
                raise
            pause.wait(0.005)
    raise AssertionError(f"{member} is refused again and again")


def change(raw: Raw, configuration: Path, rounds: int) -> None:
    """So many times: the sink off and on again, and the two reloads with other rules each."""
    for number in range(rounds):
        new = configuration.with_suffix(".new")
        new.write_text(CONFIGURATIONS[number % 2])
        new.replace(configuration)
        ask_patiently(raw, STREAM, SINK, "Disable")
        ask_patiently(raw, PATH, MANAGER, "ReloadFilter")
        ask_patiently(raw, STREAM, SINK, "Enable")
        ask_patiently(raw, PATH, MANAGER, "Reload")


def evaluate(running: Ledger, sent: int, reasons: set[str]) -> int:
    """The law for the one sink, with nothing lost and drops for these reasons only; what was delivered."""
    wait_until(lambda: running.accounted >= sent, 30.0, lambda: f"sent {sent}: {running.reported}")
    delivered = sum(running.seen)
    assert running.doubled == 0
    assert not any(running.seen[sent:])
    assert set(running.reported) <= reasons, running.reported
    assert delivered + sum(running.reported.values()) == sent
    return delivered


def test_row_28_tails_that_nobody_reads_are_dropped_and_cost_no_event(
    running: Ledger, net: Network, bus: PrivateBus
) -> None:
    with produce(net) as producer, Raw(bus.address, {}) as raw:
        before = running.count_descriptors()
        pipes = [raw.open_tail([], 0) for _ in range(2)]
        with load(producer, RATE // 5):
            wait_until(lambda: count_tails(raw)["tails_dropped_total"] == 2, 30.0, lambda: "the drop")
        evaluate(running, producer.sent, set())
        counters = count_tails(raw)
        for pipe in pipes:
            os.close(pipe)
        wait_until(lambda: running.count_descriptors() == before, 5.0, lambda: "descriptors")

    assert (counters["tails_open"], counters["tails_opened_total"]) == (0, 2)
    assert running.read_status("VmHWM") < 128 << 10


def count_tails(raw: Raw) -> dict[str, int]:
    counters: dict[str, int] = raw.call("GetStatistics")[0]
    return {name: value for name, value in counters.items() if name.startswith("tails_")}


@pytest.mark.slow
def test_row_29_ten_thousand_reloads_and_toggles_under_load_lose_and_double_nothing(
    running: Ledger, net: Network, bus: PrivateBus, configuration: Path
) -> None:
    with produce(net) as producer, Raw(bus.address, {}) as raw:
        with load(producer, RATE):
            change(raw, configuration, WARM_UP)
        before = running.count_descriptors(), running.read_status("Threads"), running.read_status("VmRSS")
        with load(producer, RATE) as under_way:
            change(raw, configuration, ROUNDS)
        begin = time.monotonic()
        producer.send(1)
        wait_until(lambda: running.seen[producer.sent - 1 : producer.sent] == b"\1", 5.0, lambda: "fresh")
        delay = time.monotonic() - begin
        delivered = evaluate(running, producer.sent, {"disabled"})
        after = running.count_descriptors(), running.read_status("Threads"), running.read_status("VmRSS")
        sent, dropped = producer.sent, running.reported["disabled"]
        print(f"{under_way.rate:,.0f} events/s; descriptors, threads, KiB: {before} -> {after}")
        note(
            Row(
                29,
                "10,000 reloads and 10,000 sink toggles under load",
                sent,
                delivered,
                duplicated=running.doubled,
                lost=0,
                filtered=0,
                dropped=dropped,
                died=0,
                memory_kib=running.read_status("VmHWM"),
                delay_ms=round(delay * 1000),
            )
        )

    assert after[0] == before[0]
    assert after[2] < before[2] + (8 << 10), f"{before} -> {after}"


def test_row_29_a_thousand_signals_in_a_second_are_a_few_reloads_and_cost_no_event(
    running: Ledger, net: Network, bus: PrivateBus
) -> None:
    with produce(net) as producer, Raw(bus.address, {}) as raw:
        before = running.count_descriptors()
        with load(producer, RATE // 5):
            pause = threading.Event()
            for _ in range(1000):
                running.process.send_signal(signal.SIGHUP)
                pause.wait(0.0005)
        evaluate(running, producer.sent, set())
        wait_until(lambda: running.count_descriptors() == before, 5.0, lambda: "descriptors")
        reloads = raw.call("GetStatistics")[0]["reloads_total"]

    assert 1 <= reloads < 1000
