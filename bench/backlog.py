"""How many events a second are read that are queued already: nobody sends meanwhile, all cores are free."""

import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bench.arena import BenchError, Load, finish_generator, start_generator
from bench.proc import find_listener, read_cpu_ns
from bench.subject import GENERATOR_CORE, Session, Subject, run_subject

FLOWS: Final = 60_000
BUFFER: Final = 256 << 20  # of which the kernel makes twice as much: room for all of their events
POLL_S: Final = 0.002  # to look takes 70 us, of a core that the subject has a use for


class Reading(NamedTuple):
    """Of one round: events a second, and microseconds of CPU time for each."""

    rate: int
    cpu_us: float


@dataclass(slots=True)
class Backlog:
    """How fast one reader and two have read what was queued, in each round.

    `lost` is what had no room, or did not arrive in the subject's file, in the worst of them.
    """

    subject: str
    events: int = 0
    lost: int = 0
    one: list[Reading] = field(default_factory=list)
    two: list[Reading] = field(default_factory=list)


def measure_backlogs(pairs: Iterable[tuple[Subject, Subject]], rounds: int) -> list[Backlog]:
    """Of subjects with one reader and with two, which take turns. One that cannot be measured is left out."""
    measured = [(Backlog(one.name), one, two) for one, two in pairs]
    for _ in range(rounds):
        for row in list(measured):
            backlog, one, two = row
            try:
                found = _measure(one, backlog), _measure(two, backlog)
            except BenchError as error:
                print(f"bench: {one.name} is left out: {error}", file=sys.stderr)
                measured.remove(row)
                continue
            backlog.one.append(found[0])
            backlog.two.append(found[1])
    return [backlog for backlog, _, _ in measured]


def _measure(subject: Subject, backlog: Backlog) -> Reading:
    """Fill its queue while it stands still, and let it go."""
    with run_subject(subject) as session:
        session.process.send_signal(signal.SIGSTOP)
        try:
            traffic = finish_generator(start_generator(Load(FLOWS), GENERATOR_CORE))
            dropped, before = session.count_lost(), read_cpu_ns(session.process.pid)
        finally:
            session.process.send_signal(signal.SIGCONT)
        seconds = _wait_until_read(session)
        spent = session.wait_until_idle() - before
        arrived = traffic.events - dropped
        if subject.count is not None:
            arrived = subject.count(subject.stdout, "")
    backlog.events, backlog.lost = traffic.events, max(backlog.lost, traffic.events - arrived)
    queued = traffic.events - dropped
    return Reading(round(queued / seconds), spent / 1000 / queued)


def _wait_until_read(session: Session) -> float:
    begin = time.monotonic()
    while (listener := find_listener(session.process.pid)) is not None and listener.queued:
        time.sleep(POLL_S)
    return time.monotonic() - begin
