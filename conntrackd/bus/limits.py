"""How much a caller may ask for: sizes and numbers of everything that he chooses, and calls in a time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from conntrackd.bus.interface import Argument
from conntrackd.config.options import LOG_LEVEL
from conntrackd.errors import ConntrackdError, UsageError

# What the filter language takes (filter/cost.py) is what the bus carries.
MAX_RULES: Final = 1000
MAX_TEXT: Final = 4096
MAX_RULES_TEXT: Final = 256 << 10
# A list of rules as long as it may be; each string has a length, an end and up to 3 bytes of padding.
MAX_RULES_BODY: Final = MAX_RULES_TEXT + MAX_RULES * 8 + 64
# Any other call: two names and a word.
MAX_BODY: Final = 2 * MAX_TEXT
MAX_ERROR_TEXT: Final = 65536
# What may be asked of a run-time filter; more is a mistake (or never).
MAX_TIMEOUT_S: Final = 31 * 24 * 3600
LEVELS: Final = LOG_LEVEL.kind.words

# Nobody types or scripts more than this; a flood beyond it is answered slowly, and then not read.
RATE: Final = 200.0  # calls a second of one user
BURST: Final = 400
MAX_USERS: Final = 1024  # whose rate is remembered
MAX_RUNNING: Final = 16  # calls of one user that are being answered, such as those that wait for a password
MAX_CALLERS: Final = 1024  # bus names whose user is remembered
# Seconds in which nothing is read from the bus for each call that was refused for its rate.
PAUSE: Final = 0.001
MAX_PAUSE: Final = 0.02
# After a call that took its time, nobody of the same kind has a turn for so many times as long: whoever may
# only look gets a quarter of one core, however often he asks.
REST: Final = 3.0
MAX_REST: Final = 3.0


class LimitError(ConntrackdError):
    """The caller asks for more than anyone may."""

    dbus_name = "org.freedesktop.DBus.Error.LimitsExceeded"


class Limiter:
    """A token bucket for each user: RATE calls a second, BURST of them at once."""

    def __init__(
        self, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[int | str, tuple[float, float]] = OrderedDict()

    def admit(self, user: int | str) -> bool:
        """Whether this user may call once more now. A bus name stands for a user who is not known yet."""
        now = self._clock()
        tokens, then = self._buckets.pop(user, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        admitted = tokens >= 1
        self._buckets[user] = (tokens - 1 if admitted else tokens, now)
        while len(self._buckets) > MAX_USERS:
            self._buckets.popitem(last=False)
        return admitted


def check_texts(texts: Iterable[str]) -> None:
    """Raises LimitError for a text that is too long."""
    for number, text in enumerate(texts, 1):
        if len(text) > MAX_TEXT:
            raise LimitError(f"text {number} has {len(text)} characters, at most {MAX_TEXT} are allowed")


def check_arguments(values: Iterable[object]) -> None:
    """Raises LimitError where a list or a text that a caller sent is longer than it may be."""
    for value in values:
        if isinstance(value, str):
            check_texts([value])
        elif isinstance(value, list):
            if len(value) > MAX_RULES:
                raise LimitError(f"a list of {len(value)} is too long, at most {MAX_RULES} are allowed")
            check_texts(text for text in value if isinstance(text, str))


def check_values(values: Iterable[tuple[Argument, object]]) -> None:
    """Raises UsageError where an argument has a value that no call takes."""
    for argument, value in values:
        if argument.name == "timeout_s" and isinstance(value, int) and value > MAX_TIMEOUT_S:
            raise UsageError(
                "a run-time change lasts 31 days at most",
                hint="without --for, on the bus with 0, it lasts until a reload",
            )
        if argument.name == "level" and value not in LEVELS:
            raise UsageError("unknown log level", hint=f"one of: {', '.join(LEVELS)}")


class Running:
    """Counts the calls that each user has under way."""

    def __init__(self) -> None:
        self._counts: dict[int | str, int] = {}

    @contextmanager
    def count(self, user: int | str) -> Iterator[None]:
        """One more inside. Raises LimitError when this user has enough of them."""
        if self._counts.get(user, 0) >= MAX_RUNNING:
            hint = "wait until one has ended; where one asks for a password, answer or cancel it"
            raise LimitError(f"{MAX_RUNNING} of your calls are in progress already", hint=hint)
        self._counts[user] = self._counts.get(user, 0) + 1
        try:
            yield
        finally:
            self._counts[user] -= 1
            if not self._counts[user]:
                del self._counts[user]


class Turns:
    """Calls that take time and memory, one after the other, with a rest after each."""

    def __init__(self, rest: float = 0.0) -> None:
        self._lock = asyncio.Lock()
        self._rest = rest

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. The rest comes after it: only the next caller waits for it."""
        await self._lock.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            loop.call_later(min((loop.time() - began) * self._rest, MAX_REST), self._lock.release)
