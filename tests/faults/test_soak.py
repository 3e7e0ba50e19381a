"""Row 35: minutes of 2,000 events a second with faults at random.

SOAK_SECONDS (75) is how long, SOAK_SEED which faults in which order; the seed is printed.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import astuple

import pytest

from tests.bus.private import PrivateBus
from tests.faults.figures import make_row, note
from tests.faults.rig import Rig
from tests.faults.soak import ENDED, FAULTS, LIVED, RATE, ROUND_SECONDS, Soak, plan
from tests.faults.verdict import Verdict
from tests.live.service import Store

MIB = 1 << 20


@pytest.fixture
def soak(rig: Rig, store: Store, bus: PrivateBus, capsys: pytest.CaptureFixture[str]) -> Iterator[Soak]:
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1_000_000))
    with capsys.disabled():
        print(f"SOAK_SEED={seed} ", end="", flush=True)
    made = Soak(rig, store, bus, seed)
    with made.run():
        yield made


@pytest.mark.privileged
@pytest.mark.slow
def test_row_35_the_law_holds_whatever_happens_and_nothing_grows(soak: Soak, rig: Rig) -> None:
    seconds = int(os.environ.get("SOAK_SECONDS", "75"))
    names = plan(soak.seed, seconds // ROUND_SECONDS)
    for name in names:
        soak.play(name)
    total = Verdict(*(sum(row) for row in zip(*map(astuple, soak.verdicts), strict=True)))
    fault = f"{seconds} s of {RATE:,} events/s, {len(names)} faults at random"
    note(make_row(35, fault, total, rig.memory_kib, rig.delay))
    print(fault, total, soak.held)

    first, *lived = [amount for amount in soak.held if amount.process == soak.held[0].process]
    assert len(lived) >= len(LIVED)
    # Each of two spools has a file that it writes and one that it reads, as long as there is something in it.
    assert max(run.descriptors for run in lived) <= first.descriptors + 4
    # The first time through the faults takes what queues need, which the allocator keeps: no later one does.
    once = lived[: len(LIVED)]
    assert max(run.memory for run in once) - first.memory < 32 * MIB
    assert max(run.memory for run in lived) - max(run.memory for run in once) < 4 * MIB


def test_a_seed_is_one_sequence_of_faults_in_which_each_comes() -> None:
    names = plan(7, 100)

    assert names == plan(7, 100) != plan(8, 100)
    assert (len(names), names[0], set(names)) == (100, "nothing", set(FAULTS))
    assert not set(names[:75]) & set(ENDED)
