"""What a process leaves in the state directory for the next: the drops it reported, how far it came, its end.

Without a state directory nothing is kept, and nothing is reported. What cannot be written is a problem, tried
again, and reported again by the next process, which is better than not at all. A directory belongs to one
process at a time.
"""

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Final

from conntrackd import resources
from conntrackd.config import options
from conntrackd.errors import ConfigError
from conntrackd.files import MADE, KindError, check_folder
from conntrackd.flow import ABSENT, NANO, Lost
from conntrackd.netlink.socket import NAME
from conntrackd.unwritten import Unwritten

# Each is a write of twenty bytes; after a crash the gap seems to begin by so much too early.
NOTE_SECONDS: Final = 10
GAP: Final = "not running"
KILLED: Final = "ended without a stop"


class StateDirectory:
    """The files `deaf`, `drops`, `held`, `listened`, `pid` and `running` of a directory that is ours now."""

    def __init__(self, directory: Path | None, origin: str = "") -> None:
        """`origin`: the setting, and where it is made.

        Raises ConfigError where there is none and none can be made, or another process has it.
        """
        self.unwritten = Unwritten(
            options.STATE_DIRECTORY.key, "the next start may report losses wrongly, or not at all"
        )
        self._directory = directory
        self._writing = threading.Lock()
        self._waiting: dict[str, str] = {}
        self._noted = (0, 0)
        self._drops: dict[str, int] = {}
        self._held: dict[str, int] | None = None
        # Never closed: it goes with the process, however that ends. No child has it (close on exec).
        self._lock = None if directory is None else _lock(directory, origin)
        self._write("pid", os.getpid())

    def read_drops(self, name: str) -> int:
        """How many drops of the socket of this name the last process has reported."""
        return self._read(_name_drops(name))

    def note_drops(self, name: str, drops: int) -> None:
        """So many of them are reported. It is written when it is another number than before."""
        if self._drops.get(name) != drops:
            self._drops[name] = drops
            self._write(_name_drops(name), drops)

    def read_deaf(self) -> int:
        """Since when the last process listened and nothing could be heard, 0 where that was not so."""
        return self._read("deaf")

    def note_deaf(self, since_ns: int) -> None:
        """Nothing can be heard since then; 0 for that being over and reported."""
        self._write("deaf", since_ns)

    def find_gap(self, now_ns: int) -> Lost | None:
        """The time in which nobody listened, as a loss without a number. None at a first start."""
        return self._find_loss(now_ns, GAP)

    def find_kill(self, now_ns: int) -> Lost | None:
        """What the last process had read and not handed on, likewise. None where it was stopped in order."""
        return self._find_loss(now_ns, KILLED) if self._read("running") else None

    def _find_loss(self, now_ns: int, reason: str) -> Lost | None:
        since = self._read("listened") or self._read("running")
        return Lost(ABSENT, min(since, now_ns), now_ns, "daemon", reason) if since else None

    def read_held(self) -> dict[str, int]:
        """Since when, where that is earlier, for each sink by its name."""
        try:
            text = (self._directory / "held").read_text() if self._directory is not None else "{}"
            return {str(name): int(since) for name, since in json.loads(text).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def note_running(self, since_ns: int) -> None:
        """Events are read from then on; 0: no more, and a stop is complete.

        After an end that was no stop the older time stays. Always as long as before.
        """
        if "running" in self._waiting or bool(since_ns) != bool(self._read("running")):
            self._write("running", f"{since_ns:020}")

    def note_listening(self, until_ns: int, held: dict[str, int], *, at_once: bool = False) -> None:
        """Until then all events are handed on, and in each sink of `held` until the time that it has there.

        To be called often: it is written now and then, or at once.
        """
        noted = (until_ns, min([until_ns, *held.values()]))
        moved = max(abs(now - then) for now, then in zip(noted, self._noted, strict=True))
        if at_once or moved >= NOTE_SECONDS * NANO:
            # Of two of different times nothing is left out as long as `listened` is the older one.
            if held != self._held:
                self._held = None  # until it is there
                if not self._write("held", json.dumps(held)):
                    return
            self._held, self._noted = held, noted
            self._write("listened", until_ns)

    def _read(self, name: str) -> int:
        try:
            return int((self._directory / name).read_text()) if self._directory is not None else 0
        except (OSError, ValueError):
            return 0

    def _write(self, name: str, value: int | str) -> bool:
        """False where that failed: it is tried again with each write of another file."""
        if self._directory is None:
            return True
        with self._writing:
            self._waiting[name] = str(value)
            failed = []
            for waiting, text in list(self._waiting.items()):
                path = self._directory / waiting
                try:
                    _replace(path, text)
                    del self._waiting[waiting]
                except OSError as error:
                    failed.append((path, error))
            if failed:
                self.unwritten.fail(*failed[0])
            else:
                self.unwritten.clear()
            return name not in self._waiting


def _replace(path: Path, text: str) -> None:
    if path.name == "running" and path.exists():  # in place, for which a full disk has room
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(file, text.encode(), 0)
        finally:
            os.close(file)
        return
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)  # there is no moment at which it is empty


def _name_drops(socket: str) -> str:
    return "drops" if socket == NAME else f"drops-{socket}"


def _lock(directory: Path, origin: str) -> int:
    """flock of the directory itself, which takes no right to write there. Returns what holds it."""
    try:
        check_folder(directory)
        directory.mkdir(exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except KindError as error:
        raise ConfigError(f"{directory}: {error}", origin=origin, hint=MADE) from error
    except OSError as error:
        resources.raise_descriptors(error)
        raise ConfigError(
            f"{directory}: {error.strerror}",
            origin=origin,
            hint="choose a directory that conntrackd can write to",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConfigError(
            f"{directory} is in use by {_describe_holder(directory)}",
            origin=origin,
            hint="each conntrackd process needs its own state directory",
        ) from error
    except OSError:
        pass  # a file system without locks, such as some over a network: as if there were no other process
    return lock


def _describe_holder(directory: Path) -> str:
    """Who has the lock, as far as it has said so by now."""
    try:
        return f"process {int((directory / 'pid').read_text())}"
    except (OSError, ValueError):
        return "another process"
