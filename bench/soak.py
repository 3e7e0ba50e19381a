"""Memory and descriptors over many events, and of a subject that has nothing to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.arena import Load
from bench.subject import RATED_S, Session, Subject, run_subject
from tests.bus.private import PrivateBus

STEPS: Final = 10
STEP_FLOWS: Final = 182_000  # a million events, half of the flows TCP
# Before it idles each sink is to have connected and written: more events than Loki's batches have.
IDLE_FLOWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Memory:
    """What a subject holds."""

    subject: str
    started_mib: float
    idle_mib: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Step:
    """What a subject holds after so many events, and how many of them it has not read."""

    events: int
    resident_mib: float
    descriptors: int
    lost: int


def soak(subject: Subject) -> list[Step]:
    """One process, ten million events."""
    steps: list[Step] = []
    events = 0
    with run_subject(subject) as session:
        for _ in range(STEPS):
            events += session.send(Load(STEP_FLOWS)).count(subject.groups)
            steps.append(
                Step(events, _read_mib(session, "VmRSS"), session.count_descriptors(), session.count_lost())
            )
    return steps


def measure_memory(subjects: Sequence[Subject], load: Load) -> list[Memory]:
    """Of each with a bus: when it has started, when it has written some events and waits, and the peak."""
    with PrivateBus() as bus:
        environ = {"CONNTRACKD_BUS_ENABLE": "true", "CONNTRACKD_BUS_ADDRESS": bus.address}
        return [
            _measure_memory(replace(subject, environ={**subject.environ, **environ}), load)
            for subject in subjects
        ]


def _measure_memory(subject: Subject, load: Load) -> Memory:
    with run_subject(subject) as session:
        started = _read_mib(session, "VmRSS")
        session.send(Load(IDLE_FLOWS))
        idle = _read_mib(session, "VmRSS")
        session.send(load.at(subject.rate or load.rate, RATED_S))
        return Memory(f"{subject.name}, and the bus", started, idle, _read_mib(session, "VmHWM"))


def _read_mib(session: Session, name: str) -> float:
    return round(session.read_memory_kib(name) / 1024, 1)
