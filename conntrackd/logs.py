"""The daemon's own log: stderr, one message a line. Events never go there, and the log never goes to them."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Final, TextIO

from conntrackd.errors import describe_raise_site, show_controls

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
WORDS: Final = {logging.DEBUG: "debug: ", logging.INFO: "", logging.WARNING: "warning: "}
# sd-daemon(3): the severity of a line, as journald takes it from its beginning
SEVERITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Formatter(logging.Formatter):
    """People see the program's name and a severity word; journald gets the severity's number."""

    def __init__(self, *, for_journal: bool) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f": {type(error).__name__}: {error} (at {describe_raise_site(error)})"
        text = show_controls(text)
        if self._for_journal:
            mark = f"<{SEVERITIES.get(record.levelno, 3)}>"
            return "\n".join(mark + line for line in text.splitlines())
        return f"conntrackd: {WORDS.get(record.levelno, 'error: ')}{text}"


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


def set_up(level: str, environ: Mapping[str, str], stream: TextIO = sys.stderr) -> None:
    """Send all messages of at least this level to the stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(for_journal=_is_journal(environ, stream)))
    logging.basicConfig(handlers=[handler], level=LEVELS[level], force=True)
    # Messages of libraries are not ours, and appear at debug only.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # It warns of a file that the unit's sandbox hides, and that only traffic control would need.
    logging.getLogger("pyroute2").setLevel(logging.ERROR)
    logging.raiseExceptions = False  # a closed stderr must not cause more writes to it


def set_level(level: str) -> None:
    """From now on only messages of at least this level."""
    logging.getLogger().setLevel(LEVELS[level])


def get_level() -> str:
    """The level in force."""
    number = logging.getLogger().level
    return next(name for name, level in LEVELS.items() if level >= number)


def _is_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Whether the stream is the one that systemd connected to journald (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
