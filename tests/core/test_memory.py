"""Memory of the core: none is allocated for an event, and where there is none no event ends the reader."""

from pathlib import Path

from fuzz.native import make_kit
from tests.core.build import build_driver, run_driver

FLOWS = 2000
COUNTED = ("-Wl,--wrap=malloc", "-Wl,--wrap=calloc", "-Wl,--wrap=realloc")


def test_where_there_is_no_memory_there_is_no_room() -> None:
    printed = run_driver(build_driver("memory_driver", "-Wl,--wrap=calloc"), leaks=False)

    forgotten, known, series, overflows, living = map(int, printed.split())
    assert forgotten > 0
    assert forgotten + known == FLOWS
    assert 0 < series < FLOWS
    assert series + overflows == FLOWS
    assert 0 < living < FLOWS


def test_nothing_is_allocated_for_events_of_the_kinds_that_a_gateway_has(tmp_path: Path) -> None:
    """Once each of them has come: what a template writes of a kind is worked out then, and kept."""
    kit = tmp_path / "kit"
    kit.write_bytes(make_kit())

    printed = run_driver(build_driver("allocation_driver", *COUNTED), kit)

    kinds, first, second = map(int, printed.split())
    assert kinds > 50
    assert (first > kinds, second) == (True, 0)
