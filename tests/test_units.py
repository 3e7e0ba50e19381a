"""units.py: sizes and durations in the largest unit that keeps them whole."""

import pytest

from conntrackd.units import SIZE_UNITS, render_duration, render_limit, render_size, render_whole


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (1023, "1023"), (1024, "1K"), (1536, "1536"), (64 << 20, "64M"), (1 << 40, "1024G")],
)
def test_a_size_has_its_largest_whole_unit(size: int, text: str) -> None:
    assert render_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (1.5, "1500ms"), (1, "1s"), (90, "90s"), (120, "2m"), (86400, "24h")],
)
def test_a_duration_has_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_a_number_that_no_unit_divides_has_none() -> None:
    assert render_whole((1 << 20) + 1, SIZE_UNITS) == "1048577"


def test_a_limit_is_in_mebibytes_or_kibibytes() -> None:
    assert (render_limit(8 << 20), render_limit(384 << 10)) == ("8 MiB", "384 KiB")
