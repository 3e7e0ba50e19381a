"""Memory of the core: none is allocated for an event, and where there is none no event ends the reader."""

import subprocess
from pathlib import Path

from fuzz.native import FUZZ, SANITIZED, list_sources, make_kit
from tests.core.build import HERE, SANITIZERS, compile_c, make_environment

FLOWS = 2000
ALLOCATING = ("malloc", "calloc", "realloc")


def test_where_there_is_no_memory_there_is_no_room(tmp_path: Path) -> None:
    driver = tmp_path / "memory_driver"
    compile_c(
        [HERE / "memory_driver.c", *list_sources()], driver, *SANITIZED, SANITIZERS, "-Wl,--wrap=calloc"
    )

    done = subprocess.run(
        [driver], text=True, capture_output=True, check=False, timeout=60, env=make_environment(leaks=False)
    )

    assert done.returncode == 0, done.stderr
    forgotten, known, series, overflows, living = map(int, done.stdout.split())
    assert forgotten > 0
    assert forgotten + known == FLOWS
    assert 0 < series < FLOWS
    assert series + overflows == FLOWS
    assert 0 < living < FLOWS


def test_nothing_is_allocated_for_events_of_the_kinds_that_a_gateway_has(tmp_path: Path) -> None:
    """Once each of them has come: what a template writes of a kind is worked out then, and kept."""
    driver, kit = tmp_path / "allocation_driver", tmp_path / "kit"
    kit.write_bytes(make_kit())
    sources = [HERE / "allocation_driver.c", FUZZ / "kit.c", *list_sources()]
    wrapped = [f"-Wl,--wrap={name}" for name in ALLOCATING]
    compile_c(sources, driver, *SANITIZED, SANITIZERS, f"-I{FUZZ}", *wrapped)

    done = subprocess.run(
        [driver, kit],
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
        env=make_environment(leaks=True),
    )

    assert (done.returncode, done.stderr) == (0, "")
    kinds, first, second = map(int, done.stdout.split())
    assert kinds > 50
    assert (first > kinds, second) == (True, 0)
