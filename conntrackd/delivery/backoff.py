"""When to try again, and when to say so again: growing delays with full jitter; rare log lines."""

import logging
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


class Repeats:
    """Lets one message of a kind through in an interval and counts the others."""

    def __init__(self, clock: Callable[[], float], interval: float = 60.0) -> None:
        self._clock = clock
        self._interval = interval
        self._last: float | None = None
        self._silent = 0

    def warn(self, logger: logging.Logger, message: str, *arguments: object) -> bool:
        """Log the message with the number of those kept back, or keep it back. Whether it was logged."""
        now = self._clock()
        if self._last is not None and now - self._last < self._interval:
            self._silent += 1
            return False
        silent, self._silent, self._last = self._silent, 0, now
        note = f" ({silent} times more since the last message)" if silent else ""
        logger.warning(message + "%s", *arguments, note)
        return True
