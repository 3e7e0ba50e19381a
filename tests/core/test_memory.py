"""Tables of the core that cannot grow: what they held is there, and no event ends the reader."""

import subprocess
from pathlib import Path

from fuzz.native import SANITIZED, list_sources
from tests.core.build import HERE, SANITIZERS, compile_c, make_environment

FLOWS = 2000


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
