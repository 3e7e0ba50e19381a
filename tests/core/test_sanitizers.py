"""The core under sanitizers for addresses and undefined behaviour: all its tests, and what nobody sends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.native import FUZZ, LIMITS, TARGETS, build, list_seeds, make_kit
from fuzz.seeds import CORPUS
from tests.core.build import build_driver, build_module, list_runtimes, make_environment, run_driver

ROOT = FUZZ.parent
MUTATIONS = 1_000_000
# All that goes through the decoder, the filter and the texts, and what sends these.
SUITE = (
    "tests/core/test_binding.py",
    "tests/delivery/test_datagrams.py",
    "tests/engine",
    "tests/filter/test_limit.py",
    "tests/filter/test_sample.py",
    "tests/filter/test_sets.py",
    "tests/filter/test_table.py",
    "tests/netlink",
    "tests/render",
)
# What is mostly plain Python's: compiling 1000 rules; buckets of many keys; reading many mutated messages
# (the driver reads more).
LEFT_OUT = "not 1000 and not mutated and not broken_on_purpose and not so_many_keys"
# The same in every run.
RUNS = {"messages": 30_000, "programs": 200_000}


@pytest.fixture(name="kit", scope="module")
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit"
    path.write_bytes(make_kit())
    return path


def read_messages(kit: Path, count: int, *files: Path) -> int:
    """The number of events in so many mutated messages, and in those of the files."""
    return int(run_driver(build_driver("message_driver"), kit, str(count), *files))


def test_truncated_and_mutated_messages_are_read_decided_and_rendered(kit: Path) -> None:
    assert MUTATIONS // 10 < read_messages(kit, MUTATIONS) < MUTATIONS


def test_the_seeds_are_events(kit: Path, tmp_path: Path) -> None:
    seeds = [data for target, data in list_seeds() if target == "messages"]
    for number, data in enumerate(seeds):
        (tmp_path / str(number)).write_bytes(data)

    assert read_messages(kit, 0, *tmp_path.iterdir()) >= len(seeds)


@pytest.mark.parametrize("target", TARGETS)
def test_neither_the_corpus_nor_a_short_run_of_the_fuzzer_shows_a_fault(
    target: str, kit: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    found.mkdir()
    limits = [*LIMITS, f"-max_len={TARGETS[target]}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [build(target, tmp_path), *limits, "-seed=1", f"-runs={RUNS[target]}", found, CORPUS / target],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"CONNTRACKD_KIT": str(kit), "PATH": os.environ["PATH"]},
    )
    assert len(list((CORPUS / target).iterdir())) >= 10
    assert done.returncode == 0, done.stderr[-8000:]
    assert "stat::number_of_executed_units" in done.stderr


@pytest.mark.parametrize("part", SUITE)
def test_the_suite_passes_with_the_core_under_sanitizers(part: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.core.child", build_module(), part),
            *("-q", "-x", "-k", LEFT_OUT, "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0"),
            "--capture=sys",  # what a sanitizer writes is seen
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            **make_environment(leaks=False),
            "LD_PRELOAD": list_runtimes(),
            "PYTHONMALLOC": "malloc",  # each object's memory is the sanitizer's
        },
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
