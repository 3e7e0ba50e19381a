"""The page as a file, for the textfile collector of Prometheus's node_exporter."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

# Prometheus asks node_exporter every 15 s to a minute.
WRITE_SECONDS: Final = 15.0
# node_exporter has a user of its own; there are numbers in it, and no address.
FILE_MODE: Final = 0o644
# How long the end waits for a write, such as to a server of files that is away.
REMOVE_SECONDS: Final = 1.0


class TextFile:
    """Written in any thread, one at a time, until it is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._is_over = False

    def write(self, page: bytes) -> None:
        """Whole, or not at all: who reads sees the old page or the new one. Raises OSError."""
        with self._lock:
            if self._is_over:
                return
            _replace(self.path, page)
            if self._is_over:  # the end has not waited for it
                self._unlink()

    def remove(self) -> None:
        """For good: numbers of a daemon that has ended would be read as those of one that stands still."""
        self._is_over = True
        if self._lock.acquire(timeout=REMOVE_SECONDS):
            self._unlink()
            self._lock.release()

    def _unlink(self) -> None:
        with suppress(OSError):
            self.path.unlink()


def _replace(path: Path, page: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        fresh.unlink()  # of a process that was killed, or a link that somebody put there
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(page)
            os.fchmod(file.fileno(), FILE_MODE)  # whatever the umask
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
