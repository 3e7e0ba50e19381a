"""Rows of a spool as it was once, an SQLite database: read when a newer daemon finds it, and then gone."""

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conntrackd.delivery.store import PackedBatch
from conntrackd.flow import ABSENT

MAX_EVENTS: Final = 10_000_000  # of a row: a damaged number must not turn the sums upside down
QUERY: Final = "SELECT number, events, oldest, checksum, payload FROM parcels ORDER BY number"


def read_database(path: Path) -> Iterator[tuple[PackedBatch, bool]]:
    """Each packed and whether it is what was stored. The last has ABSENT events where no more can be read."""
    try:
        database = sqlite3.connect(path, isolation_level=None)
        try:
            for number, events, oldest, checksum, payload in database.execute(QUERY):
                if not (isinstance(events, int) and isinstance(oldest, int) and isinstance(payload, bytes)):
                    yield PackedBatch(b"", ABSENT), False
                    continue
                head = b"%d %d %d" % (number, events, oldest)
                is_whole = zlib.crc32(payload, zlib.crc32(head)) == checksum
                yield PackedBatch(payload, max(0, min(events, MAX_EVENTS)), oldest), is_whole
        finally:
            database.close()
    except (sqlite3.Error, ValueError, ArithmeticError):  # UnicodeDecodeError: SQLite repeats what is there
        yield PackedBatch(b"", ABSENT), False
