"""Address -> Location, from MaxMind-format databases; bounded cache; reopened when a file changes."""

import logging
import os
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

logger = logging.getLogger(__name__)

# A combined database of the whole Internet has some 200 MB.
MAX_BYTES: Final = 2 << 30
# Words in the type of a database of which something can be used (`GeoLite2-City`, `DBIP-ASN-Lite`, ...).
TYPES: Final = ("city", "country", "asn", "isp", "enterprise", "location", "geo")
PROBES: Final = ("1.1.1.1", "8.8.8.8", "192.0.2.1")
Record = dict[str, Any]
Identity = tuple[int, int, int]


class GeoIP:
    """Gives events their Locations. locate() belongs to the reader's thread, refresh() to one other."""

    def __init__(self, paths: Sequence[Path], locale: str, cache: int, stats: Stats) -> None:
        """`cache` is in addresses. Raises ConfigError for a file that cannot be used."""
        self._paths = tuple(paths)
        self._locale = locale
        self._size = cache
        self._stats = stats
        self._identities = [_identify(path) for path in self._paths]
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

        One that cannot be used is told in the log, and the old one stays.
        """
        identities = [_identify(path) for path in self._paths]
        if identities == self._identities:
            return False
        for index, path in enumerate(self._paths):
            if identities[index] != self._identities[index]:
                try:
                    self._databases[index] = _Database(path)
                except ConfigError as error:
                    logger.warning("geoip: %s, using the old one", error)
        self._identities = identities
        self._locations = self._make_cache()
        return True

    def _make_cache(self) -> Cache[bytes, Location | None]:
        # At least one: an address that is looked up twice in one event is found once.
        return Cache(partial(self._look_up, tuple(self._databases)), max(1, self._size))

    def _look_up(self, databases: "tuple[_Database, ...]", address: bytes) -> Location | None:
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
                found = {**found, **record}
        return to_location(found, self._locale) if found else None


class _Database:
    """One file, read into memory: a mapped file that is truncated in place kills the process (SIGBUS).

    The C extension only takes a path, so that the memory is a file of its own that nobody else can reach. An
    address takes it 2 us, where the reader in pure Python takes 40.
    """

    def __init__(self, path: Path) -> None:
        content = _read(path)
        memory = os.memfd_create("geoip", os.MFD_CLOEXEC)
        try:
            with os.fdopen(memory, "wb", closefd=False) as file:
                file.write(content)
            self._reader = maxminddb.open_database(f"/proc/self/fd/{memory}")
            metadata = self._reader.metadata()
            for probe in PROBES:
                self._reader.get(probe)
        except Exception as error:  # maxminddb raises its own, ValueError, TypeError and more
            raise _explain(path, f"is no usable database: {error}") from error
        finally:
            os.close(memory)  # the mapping stays
        self._only_ipv4 = metadata.ip_version == 4
        if not any(word in metadata.database_type.lower() for word in TYPES):
            kind = metadata.database_type
            raise _explain(path, f"is a database of {kind!r}, which says nothing of places or networks")

    def find(self, text: str) -> Record | None:
        if self._only_ipv4 and ":" in text:
            return None
        record = self._reader.get(text)
        return record if isinstance(record, dict) else None


def to_location(record: Record, locale: str) -> Location:
    """What is known of an address in any of MaxMind's layouts; what has another type is left out."""
    return Location(
        city=_find_name(record.get("city"), locale),
        country=_take(_take(record, "country", dict) or {}, "iso_code", str) or "",
        lat=_take(_take(record, "location", dict) or {}, "latitude", float),
        lon=_take(_take(record, "location", dict) or {}, "longitude", float),
        asn=_take(record, "autonomous_system_number", int) or 0,
        as_org=_take(record, "autonomous_system_organization", str) or "",
    )


def _take(record: Record, key: str, kind: type) -> Any:  # noqa: ANN401  # of `kind`, or None
    value = record.get(key)
    return value if isinstance(value, kind) else None


def _find_name(city: object, locale: str) -> str:
    """In the language, else in English; some databases have one name and no languages."""
    if isinstance(city, str):
        return city
    names = _take(city, "names", dict) if isinstance(city, dict) else None
    return next((text for each in (locale, "en") if isinstance(text := (names or {}).get(each), str)), "")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _explain(path, f"has more than {MAX_BYTES >> 30} GiB")
        return path.read_bytes()
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
