"""Address -> Location, from MaxMind-format databases, reopened when a file changes.

What is found is remembered by the engine.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, Final

import maxminddb

from conntrackd import resources
from conntrackd.errors import ConfigError
from conntrackd.flow import Location
from conntrackd.geoip import geofile
from conntrackd.logs import Repeats
from conntrackd.stats import Stats
from conntrackd.text import quote

logger = logging.getLogger(__name__)

IPV4_BYTES: Final = 4
# A tenth of it is what the largest known database takes.
REWRITE_SECONDS: Final = 120.0
OLD: Final = "the old one is in use until a restart, which would fail"
AGAIN: Final = "put a whole file there, such as with geoipupdate: it is read at once"
DatabaseRecord = dict[str, Any]
Identity = tuple[int, int, int]


class GeoIP:
    """Looks addresses up, for all readers of events. refresh() belongs to one other thread."""

    def __init__(
        self,
        paths: Sequence[Path],
        locale: str,
        cache: int,
        stats: Stats,
        directory: Path | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        """`cache` is in addresses; what was made of a file is kept in `directory` for the next start.

        `origins`: where each path is set.

        Raises ConfigError for a file that cannot be used.
        """
        self._paths = tuple(paths)
        self._origins = [*origins, *["geoip.database"] * (len(self._paths) - len(origins))]
        self._faults: dict[Path, ConfigError] = {}
        self._locale = locale
        self._directory = directory
        self.cache = cache
        self.generation = 0
        """Changes when a database was replaced: what was looked up before is no longer true."""
        self._stats = stats
        self._lock = threading.Lock()
        self._complaints = [Repeats(time.monotonic) for _ in self._paths]
        self._identities = self._seen = [_identify(path) for path in self._paths]
        self._databases = []
        for number, path in enumerate(self._paths):
            try:
                self._databases.append(_Database(path, locale, directory))
            except ConfigError as error:
                error.origin = self._origins[number]
                raise
            except OSError as error:
                resources.raise_descriptors(error)
                raise _explain(path, f"cannot be read: {error.strerror}") from error

    @property
    def faults(self) -> dict[Path, ConfigError]:
        """Of files that changed and cannot be used, until they can."""
        return self._faults.copy()

    @property
    def countries(self) -> frozenset[str]:
        """The names that countries have in the databases; empty where these do not say."""
        return frozenset().union(*(database.countries for database in self._databases))

    def look_up(self, address: bytes) -> Location | None:
        """Where a 4 or 16 bytes address is; None where no database knows it."""
        text = inet_ntop(AF_INET if len(address) == IPV4_BYTES else AF_INET6, address)
        with self._lock:
            self._stats.geoip_lookups_total += 1
        found: DatabaseRecord | None = None
        for database in self._databases:
            record = database.find(text)
            if record is not None:
                found = record if found is None else {**found, **record}
        return None if found is None else Location(**found)

    def refresh(self) -> bool:
        """Take over files that have changed since they were read; True where there were some.

        To be called now and then: a file is read when it is found the same twice, so that one that is being
        written is left alone. One that cannot be used is counted and logged, and the old one stays.
        Takes seconds for a large file. Where the system does not let it be read now it is tried again.
        """
        seen, self._seen = self._seen, [_identify(path) for path in self._paths]
        if self._seen != seen or self._seen == self._identities:
            return False
        fresh = False
        for index, path in enumerate(self._paths):
            if self._seen[index] == self._identities[index]:
                continue
            try:
                self._databases[index] = _Database(path, self._locale, self._directory)
                fresh = True
                self._faults.pop(path, None)
            except ConfigError as error:
                self._stats.geoip_errors_total += 1
                logger.warning("geoip: %s, keeping the old one", error.message)
                message = f"{error.message}; {OLD}"
                self._faults[path] = ConfigError(message, hint=AGAIN, origin=self._origins[index])
            except OSError as error:  # no process or no memory to read it with: nothing is wrong with it
                complaints = self._complaints[index]
                complaints.warn(logger, "geoip: %s cannot be read: %s, retrying", path, error.strerror)
                self._seen[index] = self._identities[index]
        self._identities = self._seen
        if fresh:
            self.generation += 1
        return fresh


class _Database:
    """One file, rewritten by a process of its own (geofile.py) into memory that nobody else can reach.

    Measured with a City database of the real one's size and shape (4.2 million nodes, 250,000 records in
    eight languages) and random addresses: a first look-up takes 6 us, 2 of them in the C extension, a cached
    one 0.1 us. With the original file it was 16 us, 10 of them in the extension; geoip2's model objects over
    the same extension take 22 us. Rewriting takes 9 s, 0.3 s where it was kept, and a small file 0.03 s.
    """

    def __init__(self, path: Path, locale: str, directory: Path | None) -> None:
        """Raises ConfigError for a file that cannot be read, is damaged or knows other things.

        OSError for what the system does not give to read it with.
        """
        memory = os.memfd_create("geoip", os.MFD_CLOEXEC)
        try:
            _rewrite(path, locale, memory, directory)
            # The C extension only takes a path, and maps it; the mapping stays.
            self._reader = maxminddb.open_database(f"/proc/self/fd/{memory}")
            about = self._reader.metadata()
            self._only_ipv4 = about.ip_version == 4
            self.countries = frozenset[str](about.languages)
        finally:
            os.close(memory)

    def find(self, text: str) -> DatabaseRecord | None:
        """Arguments of the address's Location, as far as they are known."""
        if self._only_ipv4 and ":" in text:
            return None
        record = self._reader.get(text)
        return record if isinstance(record, dict) else None


def _rewrite(path: Path, locale: str, memory: int, directory: Path | None) -> None:
    command = [sys.executable, "-I", "-S", geofile.__file__, os.fspath(path), locale, str(memory)]
    command += [] if directory is None else [os.fspath(directory)]
    try:
        done = subprocess.run(
            command,
            pass_fds=[memory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=REWRITE_SECONDS,
        )
    except ValueError as error:  # a path with a NUL in it
        raise _explain(path, f"cannot be read: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise _explain(path, f"is not a usable database: not read within {REWRITE_SECONDS:.0f} s") from error
    if done.stdout:
        raise _explain(path, done.stdout.decode(errors="replace"))
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = (
            quote(last[0])[1:-1] if last else f"the process that reads it ended with status {done.returncode}"
        )
        raise _explain(path, f"is not a usable database: {reason}")


def _identify(path: Path) -> Identity:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _explain(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} {reason}", hint="a file such as GeoLite2-City.mmdb")
