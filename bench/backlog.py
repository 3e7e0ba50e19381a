"""How many events a second are read that are queued already: nobody sends meanwhile, all cores are free."""

import signal
import time
from dataclasses import dataclass
from typing import Final

from bench.arena import Load, finish_generator, start_generator
from bench.proc import find_listener
from bench.subject import GENERATOR_CORE, Session, Subject, count_lines, run_subject

FLOWS: Final = 60_000
BUFFER: Final = 256 << 20  # of which the kernel makes twice as much: room for all of their events
POLL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Backlog:
    """What was queued, and how fast it was read; lost is what did not arrive in the subject's file."""

    subject: str
    events: int
    lost: int
    rate: int


def measure_backlog(subject: Subject) -> Backlog:
    """Fill its queue while it stands still, and let it go. It writes one line an event."""
    with run_subject(subject) as session:
        session.process.send_signal(signal.SIGSTOP)
        try:
            traffic = finish_generator(start_generator(Load(FLOWS), GENERATOR_CORE))
            queued = traffic.events - session.count_lost()
        finally:
            session.process.send_signal(signal.SIGCONT)
        seconds = _wait_until_read(session)
        session.wait_until_idle()
        lost = traffic.events - count_lines(subject.stdout, "")
        return Backlog(subject.name, traffic.events, lost, round(queued / seconds))


def _wait_until_read(session: Session) -> float:
    begin = time.monotonic()
    while (listener := find_listener(session.process.pid)) is not None and listener.queued:
        time.sleep(POLL_S)
    return time.monotonic() - begin
