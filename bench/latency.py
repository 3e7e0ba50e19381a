"""Steady loads, small ones first: what they take of a core, how often they wake, how late their lines are."""

import fcntl
import os
import select
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Final

from bench.arena import TIMES, BenchError, Load, finish_generator, start_generator, turn_on
from bench.capture import capture
from bench.proc import count_switches, read_cpu_ns
from bench.subject import GENERATOR_CORE, Session, Subject, run_subject
from conntrackd.netlink.constants import CTA_TIMESTAMP_EVENT

RATES: Final = (0, 100, 1_000, 10_000, 50_000)
WINDOW_S: Final = 10.0
SENDING_S: Final = 12.0  # the generator shall not end within the window
POLL_S: Final = 0.1
# What the pipe holds, and what is read of it at once. The default, 64 KiB, has room for 5 ms of
# 50,000 events/s: on a busy machine it would be our own reading that is late.
CHUNK: Final = 1 << 20
PRIORITY: Final = -15  # of the reader, which shares its core with the generator
EVENT_TIME: Final = struct.pack("=HH", 12, CTA_TIMESTAMP_EVENT)  # a struct nlattr before eight bytes
JSON_TIME: Final = b'{"time":"'


@dataclass(frozen=True, slots=True)
class Latency:
    """One subject under one load; 99 % of the lines are less late than `most_ms`.

    None for both where lines have no time that the kernel gave.
    """

    subject: str
    rate: int
    lost: int
    core_percent: float
    wakeups: float
    median_ms: float | None = None
    most_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was read at once, and when, in seconds since the epoch."""

    time: float
    data: bytes


def measure_latency(subjects: Sequence[Subject]) -> list[Latency]:
    """All subjects under all loads, each once; what they write goes through a pipe."""
    with turn_on(TIMES):
        if EVENT_TIME not in capture(Load(flows=1)).buffer:
            raise BenchError("this kernel does not give the times of events (Linux 6.14 does)")
        return [sample for subject in subjects for sample in _measure_subject(subject)]


def _measure_subject(subject: Subject) -> list[Latency]:
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, CHUNK)
        with run_subject(subject, writing) as session:
            return [_measure_rate(session, reading, rate) for rate in RATES]
    finally:
        os.close(reading)
        os.close(writing)


def _measure_rate(session: Session, pipe: int, rate: int) -> Latency:
    """The window begins with the load; what comes after it is read and not looked at."""
    pid, lost = session.process.pid, session.count_lost()
    generator = start_generator(Load().at(rate, SENDING_S), GENERATOR_CORE) if rate else None
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    try:
        cpu, switches, begin = read_cpu_ns(pid), count_switches(pid), time.monotonic()
        chunks = list(_read_until(pipe, begin + WINDOW_S))
        seconds = time.monotonic() - begin
        cpu, switches = read_cpu_ns(pid) - cpu, count_switches(pid) - switches
        _finish(generator, pipe)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    session.wait_until_idle()
    times = list_delays(chunks)
    return Latency(
        session.subject.name,
        rate,
        session.count_lost() - lost,
        round(cpu / 1e7 / seconds, 2),
        round(switches / seconds, 1),
        round(1000 * median(times), 1) if times else None,
        round(1000 * compute_p99(times), 1) if times else None,
    )


def _read_until(pipe: int, end: float) -> Iterator[Chunk]:
    while (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            data = os.read(pipe, CHUNK)
            yield Chunk(time.time(), data)


def _finish(generator: "subprocess.Popen[str] | None", pipe: int) -> None:
    """To the end of the load, and of its lines."""
    if generator is None:
        return
    while generator.poll() is None:
        list(_read_until(pipe, time.monotonic() + POLL_S))
    finish_generator(generator)
    while select.select([pipe], [], [], POLL_S)[0]:
        os.read(pipe, CHUNK)


def list_delays(chunks: Sequence[Chunk]) -> list[float]:
    """How late each line's end was read, in seconds from the time in it. Other lines are left out."""
    delays, rest = [], b""
    for chunk in chunks:
        *lines, rest = (rest + chunk.data).split(b"\n")
        delays += [chunk.time - _read_time(line) for line in lines if line.startswith(JSON_TIME)]
    return delays


def _read_time(line: bytes) -> float:
    return datetime.fromisoformat(line.split(b'"', 4)[3].decode()).timestamp()


def compute_p99(values: Sequence[float]) -> float:
    """The smallest that 99 % of the values do not exceed."""
    return sorted(values)[(99 * len(values) - 1) // 100]
