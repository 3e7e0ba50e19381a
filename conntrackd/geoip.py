"""Address -> Location, from MaxMind-format databases; bounded cache; reopened when a file changes."""

import logging
import os
import shutil
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, Final

import maxminddb

from conntrackd.cache import Cache
from conntrackd.errors import ConfigError
from conntrackd.flow import Flow, Location
from conntrackd.stats import Stats
from conntrackd.values import quote

logger = logging.getLogger(__name__)

# A combined database of the whole Internet has some 200 MB.
MAX_BYTES: Final = 2 << 30
CHUNK_BYTES: Final = 1 << 20
# Names are shown and sent with each event: the longest true one of a place has 168 characters.
MAX_NAME: Final = 256
# Words in the type of a database of which something can be used (`GeoLite2-City`, `DBIP-ASN-Lite`, ...).
TYPES: Final = ("city", "country", "asn", "isp", "enterprise", "location")
PROBES: Final = ("1.1.1.1", "8.8.8.8", "192.0.2.1")
Record = dict[str, Any]
Identity = tuple[int, int, int]


NOWHERE: Final = Location()


class GeoIP:
    """Gives events their Locations. locate() belongs to the reader's thread, refresh() to one other."""

    def __init__(self, paths: Sequence[Path], locale: str, cache: int, stats: Stats) -> None:
        """`cache` is in addresses. Raises ConfigError for a file that cannot be used."""
        self._paths = tuple(paths)
        self._locale = locale
        self._size = cache
        self._stats = stats
        self._identities = self._seen = [_identify(path) for path in self._paths]
        self._databases = [_Database(path) for path in self._paths]
        self._locations = self._make_cache()

    def locate(self, flows: list[Flow]) -> None:
        """Set both Locations of each event, None for an address that no database knows."""
        locations = self._locations
        for flow in flows:
            flow.src_location = locations[flow.src]
            flow.dst_location = locations[flow.dst]

    def refresh(self) -> bool:
        """Take over files that have changed since they were read; True where there were some.

        To be called now and then: a file is read when it is found the same twice, so that one that is being
        written is left alone. One that cannot be used is told in the log, and the old one stays.
        """
        seen, self._seen = self._seen, [_identify(path) for path in self._paths]
        if self._seen != seen or self._seen == self._identities:
            return False
        fresh = False
        for index, path in enumerate(self._paths):
            if self._seen[index] == self._identities[index]:
                continue
            try:
                self._databases[index] = _Database(path)
                fresh = True
            except ConfigError as error:
                logger.warning("geoip: %s, using the old one", error.message)
        self._identities = self._seen
        if fresh:
            self._locations = self._make_cache()
        return fresh

    def _make_cache(self) -> Cache[bytes, Location | None]:
        # At least one: an address that is looked up twice in one event is found once.
        size = max(1, self._size)
        # Addresses of one place share its Location: encoders remember the text of those they have seen.
        shared = Cache[Location, Location](lambda location: location, size)
        return Cache(partial(self._look_up, tuple(self._databases), shared), size)

    def _look_up(
        self, databases: "tuple[_Database, ...]", shared: Cache[Location, Location], address: bytes
    ) -> Location | None:
        text = inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)
        self._stats.geoip_lookups_total += 1
        found: Record = {}
        for database in databases:
            try:
                record = database.find(text)
            except Exception:  # whatever a damaged file makes of a look-up costs this one address
                self._stats.geoip_errors_total += 1
                continue
            if record is not None:
                found = {**found, **record} if found else record
        location = to_location(found, self._locale)
        return None if location == NOWHERE else shared[location]


class _Database:
    """One file, read into memory: a mapped file that is truncated in place kills the process (SIGBUS).

    The C extension only takes a path, so that the memory is a file of its own that nobody else can reach.
    Measured with 20,000 places in nine languages: it takes 4.8 us an address, and geoip2's model objects,
    which use the same reader, 15 to 20 us.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that cannot be read, is damaged or knows other things."""
        memory = os.memfd_create("geoip", os.MFD_CLOEXEC)
        try:
            _copy(path, memory)
            self._reader = maxminddb.open_database(f"/proc/self/fd/{memory}")
            metadata = self._reader.metadata()
            for probe in PROBES:
                self._reader.get(probe)
            kind, self._only_ipv4 = str(metadata.database_type), metadata.ip_version == 4
        except ConfigError:
            raise
        except Exception as error:  # maxminddb raises its own, ValueError, TypeError and more
            raise _explain(path, f"is no usable database: {_describe(error)}") from error
        finally:
            os.close(memory)  # the mapping stays
        if not any(word in kind.lower() for word in TYPES):
            raise _explain(path, f"is a database of {quote(kind)}, which says nothing of places or networks")

    def find(self, text: str) -> Record | None:
        """What stands there for the address. Raises whatever a damaged file makes of it."""
        if self._only_ipv4 and ":" in text:
            return None
        record = self._reader.get(text)
        return record if isinstance(record, dict) else None


def to_location(record: Record, locale: str) -> Location:
    """What is known of an address in any of MaxMind's layouts; what has another type is left out."""
    country, place = _take(record, "country", dict) or {}, _take(record, "location", dict) or {}
    traits = _take(record, "traits", dict)  # a combined database has the network there
    traits = {**traits, **record} if traits else record
    lat, lon = _find_degrees(place, "latitude", 90), _find_degrees(place, "longitude", 180)
    number = _take(traits, "autonomous_system_number", int) or 0
    return Location(
        city=_find_name(record.get("city"), locale)[:MAX_NAME],
        country=(_take(country, "iso_code", str) or "")[:MAX_NAME],
        lat=None if lon is None else lat,
        lon=None if lat is None else lon,
        asn=number if 0 < number < 1 << 32 else 0,
        as_org=(_take(traits, "autonomous_system_organization", str) or "")[:MAX_NAME],
    )


def _take(record: Record, key: str, kind: type) -> Any:  # noqa: ANN401  # of `kind`, or None
    value = record.get(key)
    return value if isinstance(value, kind) else None


def _find_degrees(place: Record, key: str, limit: int) -> float | None:
    """NaN is within no limits."""
    value = place.get(key)
    return float(value) if isinstance(value, (int, float)) and -limit <= value <= limit else None


def _find_name(city: object, locale: str) -> str:
    """In the language, else in English; some databases have one name and no languages."""
    if isinstance(city, str):
        return city
    names = city.get("names") if isinstance(city, dict) else None
    if not isinstance(names, dict):
        return ""
    return _take(names, locale, str) or _take(names, "en", str) or ""


def _copy(path: Path, memory: int) -> None:
    """Not waiting for anything: a path may lead to a named pipe."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _explain(path, "is no file")
            if status.st_size > MAX_BYTES:
                raise _explain(path, f"has more than {MAX_BYTES >> 30} GiB")
            with os.fdopen(memory, "wb", closefd=False) as copy:
                shutil.copyfileobj(file, copy, CHUNK_BYTES)
    except OSError as error:
        raise _explain(path, f"cannot be read: {error.strerror}") from error


def _identify(path: Path) -> Identity:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _explain(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} {reason}", place="geoip.database", hint="a file such as GeoLite2-City.mmdb")


def _describe(error: Exception) -> str:
    """In one line; the path that maxminddb names is the copy's."""
    return type(error).__name__ if "/proc/self/fd" in str(error) else quote(str(error))[1:-1]
