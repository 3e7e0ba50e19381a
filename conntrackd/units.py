"""Sizes and durations as people write them: the one table of units; and the largest number of 32 bits."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

MAX_U32: Final = (1 << 32) - 1
# Largest first: text takes the first unit that keeps the number whole.
SIZE_UNITS: Final[Mapping[str, int]] = MappingProxyType({"G": 1 << 30, "M": 1 << 20, "K": 1 << 10})
"""Bytes in a unit."""
DURATION_UNITS: Final[Mapping[str, int]] = MappingProxyType({"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1})
"""Milliseconds in a unit."""
SECOND_UNITS: Final[Mapping[str, int]] = MappingProxyType(
    {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
)
"""Seconds in a unit that is spelled out."""
BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
"""Each 1024 times the one before, in what people read."""


def render_whole(number: int, units: Mapping[str, int]) -> str:
    """A number with the largest unit that keeps it whole, else without one."""
    for unit, factor in units.items():
        if number and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)


def render_size(size: float) -> str:
    """A number of bytes with the largest unit that keeps it whole: `64M`."""
    return render_whole(int(size), SIZE_UNITS)


def render_duration(seconds: float) -> str:
    """Seconds with the largest unit that keeps them whole: `10s`, `500ms`."""
    if not seconds:
        return "0s"
    for unit in ("h", "m", "s"):
        factor = DURATION_UNITS[unit] // 1000
        if seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    return f"{seconds * 1000:g}ms"


def render_bytes(size: float) -> str:
    """A number of bytes for people: `64.0 MiB`."""
    for unit in BYTE_UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {BYTE_UNITS[-1]}"


def render_limit(size: int) -> str:
    """A limit of files in a message: `8 MiB`."""
    return f"{size >> 20} MiB" if size >= SIZE_UNITS["M"] else f"{size >> 10} KiB"
