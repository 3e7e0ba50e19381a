"""The last values of numbers as lines of small bars."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

KEPT: Final = 120  # values of a number: no line is longer
NARROWEST: Final = 8  # columns: with less room there is no line
BARS: Final = "▁▂▃▄▅▆▇█"


class History:
    """The values that some numbers had, the oldest first."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """One moment."""
        for name, value in values.items():
            self._values.setdefault(name, deque(maxlen=KEPT)).append(value)

    def list(self, name: str) -> Sequence[float]:
        """Those of one number; none of an unknown one."""
        return tuple(self._values.get(name, ()))


def render_sparkline(values: Sequence[float], width: int) -> str:
    """The last values that fit, from 0 to the largest of them; only what is 0 has the lowest bar."""
    shown = values[-width:] if width > 0 else ()
    largest = max(shown, default=0)
    return "".join(
        BARS[max(1, round(value / largest * (len(BARS) - 1)))] if value > 0 else BARS[0] for value in shown
    )
