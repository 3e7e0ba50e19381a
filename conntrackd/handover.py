"""What a process leaves in the state directory for the next: how much it has told, until when it listened.

Without a state directory nothing is kept, and nothing is told. What cannot be written is told again by the
next process, which is better than not at all.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

from conntrackd.flow import ABSENT, NANO, Lost

# Each is a write of twenty bytes; after a crash the gap seems to begin by so much too early.
NOTE_SECONDS: Final = 10


class Handover:
    """The files `drops` and `listened` of the state directory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._noted_ns = 0

    def read_drops(self) -> int:
        """How many drops of the socket the last process has told."""
        return self._read("drops")

    def note_drops(self, drops: int) -> None:
        """So many of them are told."""
        self._write("drops", drops)

    def find_gap(self, now_ns: int) -> Lost | None:
        """The time in which nobody listened, as a loss without a number. None at a first start."""
        since = self._read("listened")
        return Lost(ABSENT, min(since, now_ns), now_ns, "daemon", "not running") if since else None

    def note_listening(self, now_ns: int, *, at_once: bool = False) -> None:
        """Events are heard of until now. To be called often: it is written now and then, or at once."""
        if at_once or abs(now_ns - self._noted_ns) >= NOTE_SECONDS * NANO:
            self._noted_ns = now_ns
            self._write("listened", now_ns)

    def _read(self, name: str) -> int:
        try:
            return int((self._directory / name).read_text()) if self._directory is not None else 0
        except (OSError, ValueError):
            return 0

    def _write(self, name: str, value: int) -> None:
        if self._directory is not None:
            with suppress(OSError):
                fresh = self._directory / f"{name}.new"
                fresh.write_text(str(value))
                fresh.replace(self._directory / name)  # there is no moment at which it is empty
