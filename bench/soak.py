"""Memory and descriptors over many events, and of a subject that has nothing to do."""

from dataclasses import dataclass
from typing import Final

from bench.arena import Load
from bench.subject import Subject, run_subject

STEPS: Final = 10
STEP_FLOWS: Final = 182_000  # a million events, half of the flows TCP
# Before it idles each sink is to have connected and written: more events than Loki's batches have.
IDLE_FLOWS: Final = 1000


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
            resident = round(session.read_memory_kib("VmRSS") / 1024, 1)
            steps.append(Step(events, resident, session.count_descriptors(), session.count_lost()))
    return steps


def idle(subject: Subject) -> Step:
    """What it holds when it has written some events and waits for more."""
    with run_subject(subject) as session:
        events = session.send(Load(IDLE_FLOWS)).count(subject.groups)
        resident = round(session.read_memory_kib("VmRSS") / 1024, 1)
        return Step(events, resident, session.count_descriptors(), session.count_lost())
