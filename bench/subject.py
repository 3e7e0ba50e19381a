"""One subject: start it, wait until it listens, send, wait until it has read all, stop it."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from bench.arena import BenchError, Load, Traffic, be_gateway, finish_generator, start_generator
from bench.proc import Listener, find_listener, read_cpu_ns, read_memory_kib

GENERATOR_CORE: Final = 0
RATED_S: Final = 8.0  # how long a load lasts that has a rate
READY_S: Final = 20.0
QUIET_S: Final = 120.0
STOP_S: Final = 20.0
IDLE_SAMPLE_S: Final = 0.3
IDLE_NS: Final = 3_000_000  # a process that burns less than 1 % of a core has nothing to do
MESSAGE_CHARACTERS: Final = 2000  # conntrack repeats its warning thousands of times


@dataclass(frozen=True, slots=True)
class Subject:
    """A program that listens to conntrack events, and how its output shows how many it has seen.

    `count` takes what it wrote to standard output and to standard error; None says that its output
    cannot show it, then the kernel's drop counter does. `groups` are those of the events that it should see.
    `rate`, in events a second, replaces that of the load; `floor` and `other` name the rows that it is
    compared with. `is_gateway`: the events are of flows with NAT, counters and times. `cores`: where it runs.
    """

    name: str
    argv: tuple[str, ...]
    stdout: Path = Path("/dev/null")
    count: Callable[[Path, str], int] | None = None
    groups: int = 7
    environ: Mapping[str, str] = field(default_factory=dict)
    rate: int = 0
    floor: str = "floor"
    other: str = ""
    is_gateway: bool = False
    cores: str = "1"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run of a subject has shown. `sent` counts events of the subject's groups."""

    subject: str
    sent: int
    events: int
    lost: int
    cpu_us: float
    peak_kib: int
    rate: float

    @property
    def us_per_event(self) -> float:
        """CPU time for each event that it got, or that its filter kept from it."""
        return self.cpu_us / max(self.events, 1)


class Session:
    """A subject that runs and listens."""

    def __init__(self, subject: Subject, process: subprocess.Popen[bytes], errors: IO[str]) -> None:
        self.subject = subject
        self.process = process
        self._errors = errors

    def wait_until_it_listens(self) -> None:
        """Until its socket is among the listeners of this namespace."""
        end = time.monotonic() + READY_S
        while self.process.poll() is None and time.monotonic() < end:
            if find_listener(self.process.pid):
                return
            time.sleep(0.02)
        raise BenchError(f"{self.subject.name} does not listen: {self.read_errors()}")

    def wait_until_idle(self) -> int:
        """Until its socket is empty and it has nothing to do; its CPU time at that moment."""
        end = time.monotonic() + QUIET_S
        last = read_cpu_ns(self.process.pid)
        while time.monotonic() < end:
            time.sleep(IDLE_SAMPLE_S)
            if self.process.poll() is not None:
                raise BenchError(f"{self.subject.name} has ended: {self.read_errors()}")
            listener = find_listener(self.process.pid)
            cpu = read_cpu_ns(self.process.pid)
            if (listener is None or listener.queued == 0) and cpu - last < IDLE_NS:
                return cpu
            last = cpu
        raise BenchError(f"{self.subject.name} is still busy after {QUIET_S:.0f} s")

    def send(self, load: Load) -> Traffic:
        """Make events, and wait until it has dealt with them."""
        traffic = finish_generator(start_generator(load, GENERATOR_CORE))
        self.wait_until_idle()
        return traffic

    def read_memory_kib(self, name: str) -> int:
        """VmHWM or VmRSS."""
        return read_memory_kib(self.process.pid, name)

    def count_descriptors(self) -> int:
        """The files and sockets that it holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def count_lost(self) -> int:
        """The events so far that its buffer had no room for."""
        listener = find_listener(self.process.pid)
        if listener is None:
            raise BenchError(f"{self.subject.name} no longer listens: {self.read_errors()}")
        return listener.drops

    def read_errors(self) -> str:
        """The end of what it said on standard error."""
        self._errors.seek(0)
        return self._errors.read().strip()[-MESSAGE_CHARACTERS:]


@contextmanager
def run_subject(subject: Subject, pipe: int | None = None) -> Iterator[Session]:
    """Start a subject on its core and wait until it listens and is idle; end it in any case.

    `pipe` is what it writes to in place of its file.
    """
    argv = ["taskset", "-c", subject.cores, *subject.argv]
    environ = {**os.environ, **subject.environ}
    with tempfile.TemporaryFile("w+") as errors:
        with subject.stdout.open("wb") as stdout:
            process = subprocess.Popen(argv, stdout=pipe or stdout, stderr=errors, env=environ)
        try:
            session = Session(subject, process, errors)
            session.wait_until_it_listens()
            session.wait_until_idle()
            yield session
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process politely, by force when it does not."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(subject: Subject, load: Load) -> Measurement:
    """Run it once under this load."""
    load = replace(load, is_translated=subject.is_gateway).at(subject.rate or load.rate, RATED_S)
    with be_gateway(subject.is_gateway), run_subject(subject) as session:
        before = read_cpu_ns(session.process.pid)
        traffic = session.send(load)
        after = read_cpu_ns(session.process.pid)
        listener = find_listener(session.process.pid)
        peak = session.read_memory_kib("VmHWM")
        if listener is None:
            raise BenchError(f"{subject.name} no longer listens: {session.read_errors()}")
        stop(session.process)
        events = _count(subject, traffic, listener, session.read_errors())
    sent = traffic.count(subject.groups)
    lost = max(listener.drops, sent - events)
    return Measurement(subject.name, sent, events, lost, (after - before) / 1000, peak, traffic.rate)


def _count(subject: Subject, traffic: Traffic, listener: Listener, errors: str) -> int:
    if subject.count is None:
        return traffic.count(subject.groups) - listener.drops
    return subject.count(subject.stdout, errors)


def count_lines(path: Path, _errors: str) -> int:
    """For a subject that writes one line an event."""
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def parse_shown(_path: Path, errors: str) -> int:
    """What conntrack says at its end."""
    found = re.search(r"(\d+) flow events have been shown", errors)
    if not found:
        raise BenchError(f"conntrack did not say how many events it has shown: {errors}")
    return int(found[1])
