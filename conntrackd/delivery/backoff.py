"""When to try again: growing delays with full jitter."""

import random
from collections.abc import Callable
from typing import Final

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
# A server may ask for more patience than the back-off has, but no reply may silence a sink for a day.
LONGEST_RETRY_AFTER: Final = 600.0


class Backoff:
    """Delays between attempts: uniformly between 0 and a bound that doubles up to `longest`.

    Full jitter, so that a hundred gateways that lost the same server do not come back in the same second.
    """

    def __init__(
        self,
        first: float = FIRST_DELAY,
        longest: float = LONGEST_DELAY,
        choose: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first
        self._longest = longest
        self._choose = choose
        self._bound = first

    def next_delay(self, retry_after: float | None = None) -> float:
        """Seconds until the next attempt; never less than what the server asked for."""
        delay = self._choose(0.0, self._bound)
        self._bound = min(self._bound * 2, self._longest)
        if retry_after is None:
            return delay
        # The jitter comes on top: all clients of a busy server got the same number.
        return min(max(retry_after, 0.0), LONGEST_RETRY_AFTER) + delay

    def reset(self) -> None:
        """It works again: the next trouble starts with short delays."""
        self._bound = self._first
