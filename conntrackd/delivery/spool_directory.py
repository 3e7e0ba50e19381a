"""The directory of a spool: lock, state, segments, and what is kept aside. No rows are read here."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from conntrackd.delivery.spool_state import SpoolState, encode_state, read_state
from conntrackd.errors import ConfigError
from conntrackd.files import SAFE

MAX_SET_ASIDE: Final = 10  # damaged files that are kept: a disk that rots must not fill itself


class SpoolDirectory:
    """The files of the spool `name` in it. Its methods raise OSError."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._name = name
        self._lock: int | None = None
        self._state: int | None = None

    def open(self) -> None:
        """Create it and lock it for this process. Raises ConfigError when another one holds it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            self._take_lock()

    def _take_lock(self) -> None:
        """flock: it goes with the process, however that ends."""
        path = self.path / f"{self._name}.lock"
        if path.is_symlink() or (path.exists() and not path.is_file()):
            self.keep(path)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | SAFE, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                f"the spool {self.path / self._name} is in use by another process",
                hint="each conntrackd needs a spool directory of its own",
            ) from error
        self._lock = lock

    @property
    def is_open(self) -> bool:
        """Whether the state can be written."""
        return self._state is not None

    def close(self) -> None:
        """Let go of the state, not of the lock."""
        state, self._state = self._state, None
        if state is not None:
            os.close(state)

    def unlock(self) -> None:
        """Let another process have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    # ---- the state ------------------------------------------------------------------------------------

    def read_state(self) -> tuple[SpoolState | None, str]:
        """None where there is none, or none that can be read: that one is kept under the name that comes."""
        path = self.path / f"{self._name}.state"
        if not path.is_symlink() and not path.exists():
            return None, ""
        state = None
        with suppress(OSError):
            state = read_state(path)
        return state, self.keep(path) if state is None else ""

    def write_state(self, state: SpoolState, *, sync: bool = False) -> None:
        """In place, so that a full disk has room for it."""
        if self._state is not None and os.fstat(self._state).st_nlink == 0:
            self.close()  # somebody has removed it
        if self._state is None:
            file = os.open(self.path / f"{self._name}.state", os.O_RDWR | os.O_CREAT | SAFE, 0o600)
            try:
                write_all(file, encode_state(state), 0)
                self._sync()
            except OSError:
                os.close(file)
                raise
            self._state = file
        write_all(self._state, encode_state(state), 0)
        if sync:
            os.fdatasync(self._state)

    # ---- segments -------------------------------------------------------------------------------------

    def list_segments(self) -> Iterator[Path]:
        """In the order of their numbers."""
        pattern = re.compile(re.escape(self._name) + r"-[0-9]{20}\.spool")
        yield from (path for path in sorted(self.path.iterdir()) if pattern.fullmatch(path.name))

    def create_segment(self, number: int) -> tuple[Path, int]:
        """An empty one that begins with this row, open for writing."""
        path = self.path / f"{self._name}-{number:020}.spool"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | SAFE, 0o600)
        self._sync()
        return path, file

    def _sync(self) -> None:
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def keep(self, path: Path, *, copy: bool = False) -> str:
        """Under another name; with `copy`, under its own as well. Returns the new one."""
        names = [self.path / f"{self._name}.damaged-{number}" for number in range(1, MAX_SET_ASIDE + 1)]
        if path.is_dir() and not path.is_symlink():  # which cannot take the place of a file
            names = [name.with_suffix(f"{name.suffix}-{time.time_ns()}") for name in names]
        target = next((name for name in names if not name.exists() and not name.is_symlink()), names[-1])
        if not copy:
            path.replace(target)
            return str(target)
        with suppress(FileNotFoundError):
            target.unlink()
        os.link(path, target, follow_symlinks=False)
        return str(target)


def write_all(file: int, data: bytes, at: int) -> None:
    """Write all of it at this offset."""
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done
