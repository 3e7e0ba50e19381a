"""10,000 calls a second over D-Bus, by somebody who may not and by root, or scrapes of the metrics a minute.

What they cost the events.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Final

from bench.arena import Load, finish_generator, start_generator
from bench.proc import find_listener
from bench.subject import GENERATOR_CORE, Session, Subject, run_subject
from tests.bus.private import PrivateBus

CALLS: Final = 10_000
EVENTS: Final = 50_000
FLOWS: Final = 91_000  # half a million events
# Who floods, and as which user; `daemon` is one that every machine has.
CALLERS: Final[Mapping[str, int | None]] = {"nobody": None, "an ordinary user": 1, "root": 0}
# Who scrapes, and how often a second: Prometheus asks four times a minute, and here 10,000.
SCRAPERS: Final[Mapping[str, int]] = {"nobody": 0, "a scraper": 167}
METRICS_PORT: Final = 9477  # of a network of our own
POLL_S: Final = 0.01
WATCHDOG_S: Final = 0.12
TURN_S: Final = WATCHDOG_S / 3  # in which the daemon's loop gives a sign of life


@dataclass(frozen=True, slots=True)
class Flood:
    """What was measured while one of the callers called.

    `us_per_event` is the CPU time of the threads that events pass through, `main_percent` the share of a core
    that the one with the bus took, `delay_ms` the longest time by which that one's loop was late.
    """

    caller: str
    calls_per_second: int
    events: int
    lost: int
    us_per_event: float
    main_percent: float
    delay_ms: float


@dataclass
class Signs:
    """A notify socket: how late the daemon's signs of life are."""

    path: Path
    latest: float = 0.0
    _last: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(self.path))
        self._socket.settimeout(1.0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def restart(self) -> None:
        """Count from now on."""
        self.latest, self._last = 0.0, 0.0

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                is_sign = self._socket.recv(4096) == b"WATCHDOG=1"
            except TimeoutError:
                continue
            if is_sign:
                now = time.monotonic()
                if self._last:
                    self.latest = max(self.latest, now - self._last - TURN_S)
                self._last = now

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()
        self.path.unlink()


def measure_floods(subject: Subject, scratch: Path, repeat: int) -> list[Flood]:
    """The same load for each caller, round by round; of each the middle run, and the worst loss."""
    rounds = [
        [_measure_calls(subject, scratch, name, user) for name, user in CALLERS.items()]
        for _ in range(repeat)
    ]
    return [summarize_floods(runs) for runs in zip(*rounds, strict=True)]


def measure_scrapes(subject: Subject, scratch: Path, repeat: int) -> list[Flood]:
    """The same for who reads the metrics."""
    environ = {**subject.environ, "CONNTRACKD_METRICS_LISTEN": f"127.0.0.1:{METRICS_PORT}"}
    asked = replace(subject, environ=environ)
    rounds = [
        [
            _measure(asked, scratch, name, ("bench.scraper", str(METRICS_PORT), str(rate)) if rate else ())
            for name, rate in SCRAPERS.items()
        ]
        for _ in range(repeat)
    ]
    return [summarize_floods(runs) for runs in zip(*rounds, strict=True)]


def summarize_floods(runs: Sequence[Flood]) -> Flood:
    """One row of several runs."""
    return Flood(
        runs[0].caller,
        round(median(run.calls_per_second for run in runs)),
        runs[0].events,
        max(run.lost for run in runs),
        median(run.us_per_event for run in runs),
        median(run.main_percent for run in runs),
        median(run.delay_ms for run in runs),
    )


def _measure_calls(subject: Subject, scratch: Path, name: str, user: int | None) -> Flood:
    bus = PrivateBus(strict=True)
    environ = {
        **subject.environ,
        "CONNTRACKD_BUS_ENABLE": "true",
        "CONNTRACKD_BUS_ADDRESS": bus.address,
    }
    caller = () if user is None else ("bench.caller", bus.address, str(user), str(CALLS))
    try:
        bus.start()
        return _measure(replace(subject, environ=environ), scratch, name, caller)
    finally:
        bus.close()


def _measure(subject: Subject, scratch: Path, name: str, caller: Sequence[str]) -> Flood:
    """While a module of ours calls, with these arguments; nobody where there is none."""
    signs = Signs(scratch / "notify")
    environ = {
        **subject.environ,
        "NOTIFY_SOCKET": os.fspath(signs.path),
        "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6)),
    }
    try:
        with run_subject(replace(subject, environ=environ)) as session, _calling(caller) as calls:
            before = _read_cpu(session)
            signs.restart()
            begin = time.monotonic()
            traffic = finish_generator(start_generator(Load(FLOWS, EVENTS), GENERATOR_CORE))
            _wait_until_read(session)
            seconds, latest = time.monotonic() - begin, signs.latest
            after, lost = _read_cpu(session), session.count_lost()
            rate = calls() / seconds
    finally:
        signs.close()
    path, main = (new - old for new, old in zip(after, before, strict=True))
    events = traffic.count(subject.groups)
    return Flood(
        name,
        round(rate),
        events,
        lost,
        round(path / 1000 / events, 2),
        round(main / 1e7 / seconds, 1),
        round(latest * 1000, 1),
    )


def _wait_until_read(session: Session) -> None:
    """Until its socket is empty: it is never idle while somebody calls."""
    while (listener := find_listener(session.process.pid)) is not None and listener.queued:
        time.sleep(POLL_S)


@contextmanager
def _calling(caller: Sequence[str]) -> Iterator["Calls"]:
    calls = Calls(_start_caller(caller) if caller else None)
    try:
        yield calls
    finally:
        calls()


class Calls:
    """Ends the caller, and returns how often it has called."""

    def __init__(self, process: "subprocess.Popen[str] | None") -> None:
        self._process = process
        self._count = 0

    def __call__(self) -> int:
        if self._process is not None:
            said, _ = self._process.communicate(input="")
            self._count = int(said)
            self._process = None
        return self._count


def _start_caller(words: Sequence[str]) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", *words]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _read_cpu(session: Session) -> tuple[int, int]:
    """Nanoseconds of the threads for events, and of the main one."""
    pid = session.process.pid
    spent = {
        int(thread.name): int((thread / "schedstat").read_text().split()[0])
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }
    main = spent.pop(pid)
    return sum(spent.values()), main
