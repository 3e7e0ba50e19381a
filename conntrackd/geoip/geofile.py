"""A MaxMind-format database -> the same tree over a small, sound data section. A program of its own.

What a record has to give an event (flow.Location) is read here, checked, in one language, and written anew:
places that look alike to an event share a record of some 60 bytes. Two things are gained by that:

- maxminddb's C extension never sees a file that somebody else wrote. Version 3.2.0 crashes where a key of a
  map is not a string, though it is read as one: 25 of the 10,952 single bits of a small database make that.
- A look-up decodes six values and not eight languages of six things (figures in databases.py).

It runs apart because it takes seconds for a whole Internet, in which the daemon's reader needs the
interpreter. Standard library only: the process is started without site-packages.
"""

import hashlib
import os
import stat
import struct
import sys
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Of what is written; another one makes what was kept by an older version unknown.
FORMAT: Final = 3
# A combined database of the whole Internet has some 200 MB.
MAX_BYTES: Final = 2 << 30
# Names are shown and sent with each event: the longest true one of a place has 168 characters.
MAX_NAME: Final = 256
# Of more countries than the world has four times, no list is kept.
MAX_COUNTRIES: Final = 1000
# Values within values; true records have four.
MAX_DEPTH: Final = 16
# Words in the type of a database of which something can be used (`GeoLite2-City`, `DBIP-ASN-Lite`, ...).
TYPES: Final = ("city", "country", "asn", "isp", "enterprise", "location")

# https://maxmind.github.io/MaxMind-DB/
MARK: Final = b"\xab\xcd\xefMaxMind.com"
MARK_WITHIN: Final = 128 << 10
SEPARATOR: Final = 16
POINTER, STRING, DOUBLE, BYTES, UINT16, UINT32, MAP, INT32 = range(1, 9)
UINT64, UINT128, ARRAY, _, _, BOOLEAN, FLOAT = range(9, 16)
UNSIGNED: Final = {UINT16: 2, UINT32: 4, UINT64: 8, UINT128: 16}
POINTER_BASES: Final = (0, 2048, 526_336, 0)

HIGH: Final = bytes(byte >> 4 for byte in range(256))
LOW: Final = bytes(byte & 15 for byte in range(256))

Wanted = dict[str, Any]
"""Keys of a map to read: None for a plain value, another of these for a map."""
NETWORK: Final[Wanted] = {"autonomous_system_number": None, "autonomous_system_organization": None}
METADATA: Final[Wanted] = {"database_type": None, "ip_version": None, "node_count": None, "record_size": None}


class DamagedError(Exception):
    """The file is not what it has to be; the text completes `FILE is not a usable database: `."""


class DataSection:
    """Values one behind the other, with pointers between them. Its methods raise DamagedError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._keys: dict[bytes, str] = {}
        self._shared: dict[tuple[int, int], Any] = {}

    def read(self, offset: int, wanted: Wanted) -> dict[str, Any]:
        """The wanted values of the map that starts there."""
        try:
            value, _ = self._read(offset, wanted, 0)
        except (IndexError, struct.error, UnicodeDecodeError) as error:
            raise DamagedError(f"damaged at byte {offset} of its data") from error
        if not isinstance(value, dict):
            raise DamagedError(f"no map at byte {offset} of its data")
        return value

    def _head(self, at: int) -> tuple[int, int, int]:
        """Kind, size (of a pointer: where it points to) and where the content starts."""
        data = self._data
        control = data[at]
        at += 1
        kind, size = control >> 5, control & 31
        if kind == POINTER:
            width = size >> 3
            high = 0 if width == 3 else size & 7  # four bytes need no bits of the first
            content = data[at : at + width + 1]
            target = (high << 8 * (width + 1)) + int.from_bytes(content, "big") + POINTER_BASES[width]
            return kind, target, at + width + 1
        if kind == 0:
            kind = 7 + data[at]
            at += 1
        if size > 28:  # 29, 30, 31: so many bytes more of size follow
            more = size - 28
            size = (29, 285, 65_821)[more - 1] + int.from_bytes(data[at : at + more], "big")
            at += more
        return kind, size, at

    def _read(self, at: int, wanted: Wanted | None, depth: int) -> tuple[Any, int]:
        kind, size, start = self._head(at)
        if kind == POINTER:
            key = (size, id(wanted))
            if key not in self._shared:
                if self._head(size)[0] == POINTER:
                    raise DamagedError(f"a pointer to a pointer at byte {at} of its data")
                self._shared[key] = self._read(size, wanted, depth + 1)[0]
            return self._shared[key], start
        if kind == MAP:
            return self._read_map(start, size, wanted or {}, depth + 1)
        if kind == ARRAY:
            return None, self._skip(at, depth)
        return self._read_plain(kind, start, size), start if kind == BOOLEAN else start + size

    def _read_map(self, at: int, size: int, wanted: Wanted, depth: int) -> tuple[dict[str, Any], int]:
        """Most of what takes time: pointers are followed once, and stepped over where nothing is wanted."""
        data, keys, found = self._data, self._keys, {}
        for _ in range(size):
            control = data[at]
            if control >> 5 == POINTER:
                end = at + 2 + (control >> 3 & 3)
                pointer = data[at:end]
                key = keys.get(pointer)
                if key is None:
                    key = keys[pointer] = self._read_key(*self._head(self._head(at)[1]))
                at = end
            else:
                kind, length, start = self._head(at)
                key, at = self._read_key(kind, length, start), start + length
            if key in wanted:
                found[key], at = self._read(at, wanted[key], depth)
            elif (control := data[at]) >> 5 == POINTER:
                at += 2 + (control >> 3 & 3)
            else:
                at = self._skip(at, depth)
        return found, at

    def _read_key(self, kind: int, size: int, start: int) -> str:
        if kind != STRING:
            raise DamagedError("a key in its data is not a string")
        return self._cut(start, size).decode()

    def _read_plain(self, kind: int, start: int, size: int) -> Any:  # noqa: ANN401  # or None
        if kind == BOOLEAN:
            return bool(size)
        content = self._cut(start, size)
        if kind == STRING:
            return content.decode()
        if kind == DOUBLE:
            return struct.unpack(">d", content)[0]
        if kind == FLOAT:
            return struct.unpack(">f", content)[0]
        if kind in UNSIGNED or kind == INT32:
            if size > UNSIGNED.get(kind, 4):
                raise DamagedError("a number in its data is too long")
            return int.from_bytes(content, "big", signed=kind == INT32 and size == UNSIGNED[UINT32])
        if kind == BYTES:
            return None
        raise DamagedError(f"a value of unknown type {kind} in its data")

    def _cut(self, start: int, size: int) -> bytes:
        content = self._data[start : start + size]
        if len(content) != size:
            raise DamagedError("its data ends within a value")
        return content

    def _skip(self, at: int, depth: int) -> int:
        """Where the next value starts. What is passed over is never used, and so may be what it likes."""
        if depth > MAX_DEPTH:
            raise DamagedError("its data is nested too deeply")
        kind, size, start = self._head(at)
        if kind in (POINTER, BOOLEAN):
            return start
        if kind in (MAP, ARRAY):
            for _ in range(size * 2 if kind == MAP else size):
                start = self._skip(start, depth + 1)
            return start
        return start + size


def list_wanted(locale: str) -> Wanted:
    """What is read of a record."""
    return {
        "city": {"names": {locale: None, "en": None}},
        "country": {"iso_code": None, "names": {locale: None, "en": None}},
        "location": {"latitude": None, "longitude": None},
        "traits": NETWORK,  # a combined database has the network there
        **NETWORK,
    }


def read_location(record: dict[str, Any], locale: str) -> dict[str, Any]:
    """Arguments of a Location from any of MaxMind's layouts; what has another type is left out."""
    found: dict[str, Any] = {}
    if city := _read_name(record.get("city"), locale):
        found["city"] = city[:MAX_NAME]
    land = _get(record, "country", dict) or {}
    code = _get(land, "iso_code", str)
    if code:
        found["country_code"] = code[:MAX_NAME]
    if country := _read_name(land, locale) or code:
        found["country"] = country[:MAX_NAME]
    coordinates = _get(record, "location", dict) or {}
    lat, lon = _find_degrees(coordinates, "latitude", 90), _find_degrees(coordinates, "longitude", 180)
    if lat is not None and lon is not None:
        found["lat"], found["lon"] = lat, lon
    traits = {**(_get(record, "traits", dict) or {}), **record}
    number = _get(traits, "autonomous_system_number", int) or 0
    if 0 < number < 1 << 32:
        found["asn"] = number
    if organization := _get(traits, "autonomous_system_organization", str):
        found["as_org"] = organization[:MAX_NAME]
    return found


def _get(record: dict[str, Any], key: str, kind: type) -> Any:  # noqa: ANN401  # of `kind`, or None
    value = record.get(key)
    return value if isinstance(value, kind) else None


def _find_degrees(coordinates: dict[str, Any], key: str, limit: int) -> float | None:
    """NaN is within no limits."""
    value = coordinates.get(key)
    return float(value) if isinstance(value, (int, float)) and -limit <= value <= limit else None


def _read_name(entry: object, locale: str) -> str:
    """In the language, else in English; some databases have one name and no languages."""
    if isinstance(entry, str):
        return entry
    names = entry.get("names") if isinstance(entry, dict) else None
    if not isinstance(names, dict):
        return ""
    return _get(names, locale, str) or _get(names, "en", str) or ""


def rewrite(content: bytes, locale: str) -> "tuple[array[int], bytes, bytes]":
    """The database with the same locations, in its three sections. Raises DamagedError."""
    mark = content.rfind(MARK, max(0, len(content) - MARK_WITHIN))
    if mark < 0:
        raise DamagedError("its metadata is missing")
    metadata = DataSection(content[mark + len(MARK) :]).read(0, METADATA)
    nodes, bits, version, kind = (
        metadata.get(key) for key in ("node_count", "record_size", "ip_version", "database_type")
    )
    if not (isinstance(nodes, int) and nodes > 0 and bits in (24, 28, 32) and version in (4, 6)):
        raise DamagedError("its metadata is invalid")
    if not any(word in str(kind).lower() for word in TYPES):
        raise DamagedError(f"its type {kind!a} has neither locations nor networks")
    tree_bytes = nodes * bits // 4
    tree = _read_tree(content[: min(tree_bytes, mark)], nodes, bits)
    pointers, data, countries = _rewrite_data(content[tree_bytes + SEPARATOR : mark], tree, nodes, locale)
    tree = array("I", map(pointers.get, tree, tree))
    about = {
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1,  # 0 is taken for none
        "database_type": "conntrackd",
        "description": {},
        "ip_version": version,
        "languages": countries,  # the one list that metadata has room for; there is one language
        "node_count": nodes,
        "record_size": 32,
    }
    return tree, data, encode(about, {"node_count": UINT32, "build_epoch": UINT64})


def _read_tree(tree: bytes, nodes: int, bits: int) -> "array[int]":
    """Two numbers a node; without a loop over them."""
    if len(tree) != nodes * bits // 4:
        raise DamagedError("it is truncated")
    words = bytearray(tree) if bits == 32 else bytearray(nodes * 8)
    for byte in range(3):
        if bits == 24:
            words[1 + byte :: 4] = tree[byte::3]
        elif bits == 28:
            words[1 + byte :: 8], words[5 + byte :: 8] = tree[byte::7], tree[4 + byte :: 7]
    if bits == 28:  # the byte between the two has four bits of each
        words[0::8], words[4::8] = tree[3::7].translate(HIGH), tree[3::7].translate(LOW)
    values = array("I", bytes(words))
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _rewrite_data(
    data: bytes, tree: "array[int]", nodes: int, locale: str
) -> tuple[dict[int, int], bytes, list[str]]:
    """New numbers for those in the tree, what they stand for, and the names of countries in that."""
    section, wanted = DataSection(data), list_wanted(locale)
    written, countries = bytearray(), set[str]()
    pointers: dict[int, int] = {}
    known: dict[tuple[Any, ...], int] = {(): nodes}  # nothing is known there: as if it were not there
    for value in sorted({value for value in tree if value > nodes}):
        if value < nodes + SEPARATOR:
            raise DamagedError("its tree leads out of its data")
        found = read_location(section.read(value - nodes - SEPARATOR, wanted), locale)
        identity = tuple(found.items())
        pointer = known.get(identity)
        if pointer is None:
            pointer = known[identity] = nodes + SEPARATOR + len(written)
            written += encode(found, {"asn": UINT32})
            countries.add(found.get("country", ""))
        pointers[value] = pointer
    if not written:
        raise DamagedError("no record has a city, country, coordinates or network in MaxMind's layout")
    named = sorted(countries - {""})
    return pointers, bytes(written), named if len(named) <= MAX_COUNTRIES else []


def encode(value: object, kinds: dict[str, int], kind: int = UINT16) -> bytes:
    """A value as it stands in a section; `kinds` of the numbers under a key."""
    match value:
        case str():
            content = value.encode()
            return _encode_head(STRING, len(content)) + content
        case float():
            return _encode_head(DOUBLE, 8) + struct.pack(">d", value)
        case int():
            content = value.to_bytes(UNSIGNED[kind], "big").lstrip(b"\0")
            return _encode_head(kind, len(content)) + content
        case list():
            return _encode_head(ARRAY, len(value)) + b"".join(encode(item, kinds) for item in value)
        case dict():
            items = [
                encode(key, {}) + encode(item, kinds, kinds.get(key, UINT16)) for key, item in value.items()
            ]
            return _encode_head(MAP, len(value)) + b"".join(items)
    raise TypeError(type(value))


def _encode_head(kind: int, size: int) -> bytes:
    control, extended = (kind << 5, b"") if kind < 8 else (0, bytes([kind - 7]))
    if size < 29:
        return bytes([control | size]) + extended
    if size < 285:
        return bytes([control | 29]) + extended + bytes([size - 29])
    return bytes([control | 30]) + extended + (size - 285).to_bytes(2, "big")


def read(path: Path) -> bytes:
    """Into memory: a mapped file that is truncated in place kills the process (SIGBUS).

    Not waiting for anything: a path may lead to a named pipe. Raises OSError and DamagedError.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError("it is not a file")  # as files.py, which this process does not have
        if status.st_size > MAX_BYTES:
            raise DamagedError(f"it is larger than {MAX_BYTES >> 30} GiB")
        return file.read(MAX_BYTES)


def render(content: bytes, locale: str) -> bytes:
    """The new database as one file. Raises DamagedError."""
    tree, data, metadata = rewrite(content, locale)
    if sys.byteorder == "little":
        tree.byteswap()
    return b"".join((tree.tobytes(), bytes(SEPARATOR), data, MARK, metadata))


def render_kept(content: bytes, locale: str, kept: Path) -> bytes:
    """As render(), but from the file, which is written when it was not made from this content."""
    source = hashlib.sha256(b"%d %b " % (FORMAT, locale.encode()) + content).digest()
    with suppress(OSError):
        known = kept.read_bytes()
        made = known[2 * len(source) :]
        if known[: 2 * len(source)] == source + hashlib.sha256(made).digest():
            return made
    made = render(content, locale)
    fresh = kept.with_suffix(".new")
    try:
        fresh.write_bytes(source + hashlib.sha256(made).digest() + made)
        fresh.replace(kept)
    except OSError:  # a full disk costs the next start its seconds again
        with suppress(OSError):
            fresh.unlink()
    return made


def main(path: str, locale: str, descriptor: str, directory: str = "") -> str:
    """Writes the new database to the descriptor. Returns what is wrong with the old one, if anything is.

    `directory`: where it is kept for the next time, one for each path; empty for nowhere.
    """
    with suppress(OSError):  # the sandbox may refuse it
        os.nice(10)
    try:
        content = read(Path(path))
        if directory:
            name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
            made = render_kept(content, locale, Path(directory, f"geoip-{name}.mmdb"))
        else:
            made = render(content, locale)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except DamagedError as error:
        return f"is not a usable database: {error}"
    with os.fdopen(int(descriptor), "wb") as file:
        file.write(made)
    return ""


if __name__ == "__main__":
    sys.stdout.write(main(*sys.argv[1:]))
