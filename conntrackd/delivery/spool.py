"""Batches on disk for a sink that can be away: at least once, in order, bounded, past kill -9.

SQLite in WAL mode. What the bytes of a row mean knows batch.py.
Rows are written with synchronous=FULL: each batch is on the disk itself before append() returns, which costs
an fsync a batch (and a batch is some thousand events), but lets a power failure take no more than the one
batch that was being written. Rows are deleted with synchronous=NORMAL: an acknowledgement that a power
failure undoes only means that a batch is sent twice. SIGKILL undoes neither.
"""

import errno
import fcntl
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from conntrackd.errors import ConfigError

T = TypeVar("T")

FORMAT: Final = 2
OLD_FORMATS: Final = (0, 1)  # a new file; that of 2.0, of which disk_buffer.py can read the rows
MAX_SET_ASIDE: Final = 10  # damaged files that are kept: a disk that rots must not fill itself
# An empty spool whose file has grown beyond this is made anew, so that an outage does not cost disk for ever.
SHRINK_ABOVE: Final = 1 << 20
# A disk in this condition may mend while the daemon runs; everything else is a mistake in the configuration.
PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})
# What SQLite says of a disk; all else it can say of statements that never change is about what is on it.
DISK: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)

# A damaged number must not turn the sums upside down: no batch has more events than the largest queue.
# Text of ours, so that no statement below is built from anything else (S608).
EVENTS: Final = "max(0, min(events, 10000000))"
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS parcels (
    number INTEGER PRIMARY KEY,
    events INTEGER NOT NULL,
    oldest INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    payload BLOB NOT NULL
)"""


class SpoolError(Exception):
    """The disk does not take it: full, read-only, broken."""


class SpoolDamagedError(SpoolError):
    """What is on the disk cannot be read any more."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch as bytes, how many events are in it, and the time of its first record."""

    payload: bytes
    events: int
    oldest: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A parcel on disk."""

    number: int
    parcel: Parcel
    intact: bool = True
    """Whether it is what was stored. If not, nothing in it can be trusted."""


class Store(Protocol):
    """Parcels on disk, oldest first. Used by one thread at a time. Its methods raise SpoolError."""

    @property
    def rows(self) -> int:
        """Parcels in it."""

    @property
    def events(self) -> int:
        """Events in it."""

    @property
    def oldest(self) -> int:
        """Time of its oldest record, 0 for none."""

    @property
    def damage(self) -> str:
        """What had to be put aside when it was opened, empty for nothing."""

    def append(self, parcels: Sequence[Parcel], *, keep: int | None = None) -> list[Row]:
        """Stores all or none of them behind the others.

        Returns the oldest rows, which had to go for them; never the one numbered `keep`.
        """

    def first(self) -> Row | None:
        """The oldest row."""

    def remove(self, row: Row) -> None:
        """The row has been delivered or refused: first() never gives it again."""

    def holds(self, number: int) -> bool:
        """Whether the row is in it."""

    def set_aside(self) -> str:
        """Keeps the damaged file, returns its new name, and starts anew and empty."""

    def close(self) -> None:
        """Lets another process open it."""


class Spool:
    """A Store of bytes in `directory`, which belongs to one process at a time.

    The database has no more than `limit` bytes, but always room for one parcel; the write-ahead log beside it
    has some 4 MiB more.
    """

    def __init__(self, directory: Path, name: str, limit: int) -> None:
        """ConfigError when the directory cannot be used, or another process uses it."""
        self.rows = 0
        self.events = 0
        self.damage = ""
        self._path = directory / f"{name}.sqlite"
        self._limit = limit
        self._lock: int | None = None
        self._database: sqlite3.Connection | None = None
        self._next = 1
        self._done = 0  # rows up to this one are delivered; a full disk may keep them from being deleted
        with suppress(SpoolError):  # every append tries again, and says what is wrong
            try:
                self._open()
            except SpoolDamagedError as error:
                self.damage = str(error)
                self.damage = f"{error}, keeping it as {self.set_aside()}"
            except ConfigError:
                self.close()  # or a reload with a better directory would find it in use
                raise

    # ---- opening --------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if error.errno in PASSING:
                raise SpoolError(f"cannot open the spool {self._path}: {error.strerror}") from error
            raise ConfigError(
                f"cannot use the spool {self._path}: {error.strerror}",
                hint="name a directory in which conntrackd may write",
            ) from error
        with self._translated():
            self._database = sqlite3.connect(
                self._path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._prepare(self._database)
        return self._database

    def _take_lock(self) -> None:
        """flock: it goes with the process, however that ends."""
        if self._lock is not None:
            return
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                f"the spool {self._path} is in use by another process",
                hint="each conntrackd needs a spool directory of its own",
            ) from error
        self._lock = lock

    def _prepare(self, database: sqlite3.Connection) -> None:
        # EXCLUSIVE: nobody else has it, so the index of the log needs no shared memory file.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "cache_size=-1024"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (*OLD_FORMATS, FORMAT):
            raise SpoolDamagedError(f"the spool {self._path} has the unknown format {version}")
        if version != FORMAT:
            database.execute(SCHEMA)
            database.execute(f"PRAGMA user_version={FORMAT}")
        totals = f"SELECT count(*), sum({EVENTS}), max(number) FROM parcels WHERE number > ?"  # noqa: S608
        rows, events, last = database.execute(totals, (self._done,)).fetchone()
        self.rows, self.events = rows, int(events or 0)
        self._next = max(self._next, (last or 0) + 1)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the extended codes have more above
            kind = SpoolError if code in DISK else SpoolDamagedError
            text = " ".join("".join(char if char.isprintable() else " " for char in str(error)).split())
            raise kind(f"the spool {self._path}: {text}") from error
        except (ArithmeticError, ValueError) as error:  # UnicodeDecodeError: SQLite repeats bytes of the file
            raise SpoolDamagedError(f"the spool {self._path}: {type(error).__name__}") from error

    def _use(self, action: Callable[[sqlite3.Connection], T]) -> T:
        database = self._database or self._reopen()
        with self._translated():
            return action(database)

    def _reopen(self) -> sqlite3.Connection:
        try:
            return self._open()
        except ConfigError as error:  # it was right when the daemon started
            raise SpoolError(error.message) from error

    # ---- rows -----------------------------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """Time of the oldest record, 0 for none."""
        if not self.rows or self._database is None:
            return 0
        query = "SELECT oldest FROM parcels WHERE number > ? ORDER BY number LIMIT 1"
        with suppress(sqlite3.Error):
            found = self._database.execute(query, (self._done,)).fetchone()
            return int(found[0]) if found else 0
        return 0

    def append(self, parcels: Sequence[Parcel], *, keep: int | None = None) -> list[Row]:
        """See Store. In one transaction: also when the process is killed, it is all of it or nothing."""
        return self._use(lambda database: self._append(database, parcels, keep))

    def _append(self, database: sqlite3.Connection, parcels: Sequence[Parcel], keep: int | None) -> list[Row]:
        rows = [
            (number, parcel.events, parcel.oldest, _sum(number, parcel), parcel.payload)
            for number, parcel in enumerate(parcels, self._next)
        ]
        with _transaction(database, "FULL"):
            database.executemany("INSERT INTO parcels VALUES (?, ?, ?, ?, ?)", rows)
            gone = self._make_room(database, keep)
        self._next += len(rows)
        self.rows += len(rows) - len(gone)
        self.events += sum(row[1] for row in rows) - sum(row.parcel.events for row in gone)
        return gone

    def _make_room(self, database: sqlite3.Connection, keep: int | None) -> list[Row]:
        """Deletes the oldest rows until the limit holds, but never the newest."""
        gone: list[Row] = []
        oldest = (
            f"SELECT number, {EVENTS}, oldest FROM parcels"  # noqa: S608
            " WHERE number < ? AND number IS NOT ? ORDER BY number LIMIT 1"
        )
        while _measure(database) > self._limit:
            found = database.execute(oldest, (self._next, keep)).fetchone()
            if found is None:
                break
            number, events, time = found
            database.execute("DELETE FROM parcels WHERE number = ?", (number,))
            if number > self._done:
                gone.append(Row(number, Parcel(b"", events, time)))
        return gone

    def first(self) -> Row | None:
        """See Store."""
        if not self.rows:
            return None
        return self._use(self._first)

    def _first(self, database: sqlite3.Connection) -> Row | None:
        query = (
            f"SELECT number, {EVENTS}, oldest, checksum, payload FROM parcels"  # noqa: S608
            " WHERE number > ? ORDER BY number LIMIT 1"
        )
        found = database.execute(query, (self._done,)).fetchone()
        if found is None:
            raise SpoolDamagedError(f"the spool {self._path}: {self.rows} rows have disappeared")
        number, events, oldest, checksum, payload = found
        if not (isinstance(events, int) and isinstance(oldest, int) and isinstance(payload, bytes)):
            raise SpoolDamagedError(
                f"the spool {self._path}: row {number} holds other types than were stored"
            )
        parcel = Parcel(payload, events, oldest)
        return Row(number, parcel, checksum == _sum(number, parcel))

    def remove(self, row: Row) -> None:
        """See Store. It was the oldest; what a full disk kept from being deleted before goes with it."""
        self._done = max(self._done, row.number)
        self.rows -= 1
        self.events -= row.parcel.events
        try:
            self._use(self._delete_done)
        except SpoolDamagedError:
            raise
        except SpoolError:
            if not self.rows:
                self._start_anew()

    def _delete_done(self, database: sqlite3.Connection) -> None:
        with _transaction(database, "NORMAL"):
            database.execute("DELETE FROM parcels WHERE number <= ?", (self._done,))
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        if not self.rows and pages * 4096 > SHRINK_ABOVE:
            self._start_anew()

    def holds(self, number: int) -> bool:
        """See Store. Numbers only grow, also over set_aside()."""
        return number > self._done

    # ---- files ----------------------------------------------------------------------------------------

    def _start_anew(self) -> None:
        """Everything has been delivered: gives the disk back."""
        self._disconnect()
        for path in self._list_files():
            path.unlink(missing_ok=True)

    def set_aside(self) -> str:
        """See Store. The log goes with the database: `sqlite3 FILE .recover` can use both."""
        self._disconnect()
        names = [self._path.with_suffix(f".damaged-{number}") for number in range(1, MAX_SET_ASIDE + 1)]
        target = next((name for name in names if not name.exists()), names[-1])
        try:
            for path in self._list_files():
                if path.exists():
                    path.replace(str(path).replace(str(self._path), str(target)))
        except OSError as error:
            raise SpoolError(f"the spool {self._path} cannot be put aside: {error.strerror}") from error
        finally:
            self.rows = self.events = 0
            self._done = self._next - 1
        self._reopen()
        return str(target)

    def _list_files(self) -> list[Path]:
        """The log first: without it the database is older, but whole; the other way round it is not."""
        return [self._path.with_name(self._path.name + suffix) for suffix in ("-wal", "-shm", "")]

    def _disconnect(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def close(self) -> None:
        """Lets another process have it."""
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def _transaction(database: sqlite3.Connection, synchronous: str) -> Iterator[None]:
    database.execute(f"PRAGMA synchronous={synchronous}")
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled back by itself
            database.execute("ROLLBACK")
        raise


def _measure(database: sqlite3.Connection) -> int:
    """Bytes of the database that are in use."""
    (pages,), (free,), (size,) = (
        database.execute(f"PRAGMA {name}").fetchone()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _sum(number: int, parcel: Parcel) -> int:
    """SQLite checks its log, but not its pages: a flipped bit in a payload would go unnoticed."""
    return zlib.crc32(parcel.payload, zlib.crc32(b"%d %d %d" % (number, parcel.events, parcel.oldest)))
