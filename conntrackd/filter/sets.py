"""Named sets: files of addresses and networks, a line each, for `source address @NAME`.

A million lines take about a second. So they are kept as bytes, an address and its prefix length for each, and
no Python object is made for one; the core sorts them, and searches in the same bytes.
"""

import re
import stat
from bisect import bisect_left
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from ipaddress import ip_network
from itertools import chain
from os import fstat
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from types import MappingProxyType
from typing import BinaryIO, Final

from conntrackd import files
from conntrackd.errors import ConfigError, ManyErrors
from conntrackd.text import quote
from conntrackd.units import render_limit

# In all sets together. An address of IPv4 takes 5 bytes, one of IPv6 17.
MAX_ENTRIES: Final = 1_000_000
MAX_BYTES: Final = 64 << 20  # of a file: so many of the longest networks, with some comment
MAX_MISTAKES: Final = 10  # that are shown of one file
CHUNK: Final = 1 << 16  # bytes that are looked at together
ENTRY: Final = re.compile(r"[0-9a-fA-F:.]+(/[0-9]{1,3})?", re.ASCII)
# Of a text that is not an address, of a wrong prefix length, and of what may not be in a set.
FAULTS: Final = (OSError, KeyError, ValueError)
COMMENT: Final = re.compile(r"[#;][^\n]*")
MAPPED: Final = bytes(10) + b"\xff\xff"


def _list_lengths(bits: int) -> dict[str, tuple[bytes, int]]:
    """Of each prefix length as it is written its byte, and the bits of the host."""
    return {str(length): (bytes([length]), (1 << bits - length) - 1) for length in range(bits + 1)}


LENGTHS: Final = {4: _list_lengths(32), 16: _list_lengths(128)}
WHOLE: Final = {4: (b"\x20", 0), 16: (b"\x80", 0)}


Entries = Mapping[int, bytearray]
"""By the bytes of an address, 4 or 16: addresses and prefix lengths, one behind the other, sorted."""
NO_ENTRIES: Final[Entries] = MappingProxyType({4: bytearray(), 16: bytearray()})


@dataclass(frozen=True, eq=False, slots=True)
class AddressSet:
    """One set. Its networks are sorted, none of them is within another, and they are not changed any more."""

    name: str
    path: Path
    entries: int
    """Lines that hold something."""
    networks: Entries = field(repr=False)
    covered: Entries = field(default_factory=lambda: NO_ENTRIES, repr=False)
    """What is within one of the networks, or there twice: it decides nothing until that is removed."""

    def __contains__(self, address: bytes) -> bool:
        """The reference, as plainly as can be: the core has the same search."""
        networks, size = self.networks[len(address)], len(address)
        low, high = 0, len(networks) // (size + 1)
        while low < high:
            middle = (low + high) // 2
            start = middle * (size + 1)
            if networks[start : start + size] <= address:
                low = middle + 1
            else:
                high = middle
        start = (low - 1) * (size + 1)
        return low > 0 and _is_within(address, networks[start : start + size + 1])

    def has_same(self, other: "AddressSet") -> bool:
        """Whether both hold the same addresses and networks."""
        return dict(self.networks) == dict(other.networks)

    def has_entry(self, entry: bytes) -> bool:
        """Whether there is this very address or network."""
        size = len(entry) - 1
        return any(_locate(found[size], entry)[1] for found in (self.networks, self.covered))

    def find_network(self, entry: bytes) -> bytes | None:
        """The network that this one is within, or is."""
        networks, size = self.networks[len(entry) - 1], len(entry)
        start = _locate(networks, entry[:-1] + b"\xff")[0] - size
        found = bytes(networks[start : start + size]) if start >= 0 else b""
        is_within = found and found[-1] <= entry[-1] and _is_within(entry[:-1], found)
        return found if is_within else None

    def list_entries(self, after: bytes = b"") -> Iterator[bytes]:
        """All that come behind this one, in the order of their addresses, IPv4 first."""
        for size in (4, 16):
            if size + 1 < len(after):
                continue
            least = after if size + 1 == len(after) else b""
            yield from merge(
                *(_list_from(found[size], size, least) for found in (self.networks, self.covered))
            )

    def change(self, added: Iterable[bytes], removed: Iterable[bytes]) -> "AddressSet":
        """Another one, without those that are removed, and with those that are added, which are not in it."""
        networks, covered = dict(self.networks), dict(self.covered)
        by_size = {size: [entry for entry in added if len(entry) == size + 1] for size in (4, 16)}
        gone = {size: {entry for entry in removed if len(entry) == size + 1} for size in (4, 16)}
        for size in (4, 16):
            if by_size[size] or gone[size]:
                parts = (_cut(found[size], gone[size]) for found in (self.networks, self.covered))
                found = bytearray().join((*chain(*parts), *by_size[size]))
                networks[size], covered[size] = sort_entries(found, size)
        return AddressSet(self.name, self.path, _count(networks) + _count(covered), networks, covered)


Sets = Mapping[str, AddressSet]
"""By their names."""
NO_SETS: Final[Sets] = MappingProxyType({})


def make_empty_set(name: str, path: Path) -> AddressSet:
    """One that holds nothing."""
    return AddressSet(name, path, 0, NO_ENTRIES)


def read_set(name: str, path: Path, room: int = MAX_ENTRIES) -> AddressSet:
    """The set of a file. Raises ConfigError where it cannot be read, ManyErrors for what is wrong in it.

    As with the configuration, who may write it decides what is logged: it is not for every user to change.
    """
    try:
        with files.open_file(path, MAX_BYTES) as file:
            if fstat(file.fileno()).st_mode & stat.S_IWOTH:
                hint = f"chmod o-w '{path}'"
                raise ConfigError("every user may change this file", hint=hint, origin=str(path))
            return read_lines(name, path, file, room)
    except files.KindError as error:
        raise ConfigError(f"{path} {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def read_lines(name: str, path: Path, file: BinaryIO, room: int = MAX_ENTRIES) -> AddressSet:
    """The set of an open file, which `path` names."""
    if file.read(len(BOM_UTF8)) != BOM_UTF8:
        file.seek(0)
    networks = {4: bytearray(), 16: bytearray()}
    mistakes: list[ConfigError] = []
    entries = failed = 0
    for number, line in _list_lines(file):
        entries += 1
        if entries > room:
            message = f"more than {MAX_ENTRIES:,} addresses and networks in all sets"
            raise ConfigError(message, origin=f"{path}:{number}")
        try:
            entry = pack_entry(line)
        except FAULTS:
            failed += 1
            if failed <= MAX_MISTAKES:
                message, hint = explain(line)
                mistakes.append(ConfigError(message, hint=hint, origin=f"{path}:{number}"))
            continue
        networks[len(entry) - 1] += entry
    if failed > MAX_MISTAKES:
        more = f"{failed - MAX_MISTAKES:,} more lines are not valid"
        mistakes.append(ConfigError(more, origin=str(path)))
    if mistakes:
        raise ManyErrors(mistakes)
    covered = {}
    for size, found in networks.items():
        networks[size], covered[size] = sort_entries(found, size)
    return AddressSet(name, path, entries, MappingProxyType(networks), MappingProxyType(covered))


def _list_lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines that hold something, without comments, and their numbers."""
    number = total = 0
    while read := file.read(CHUNK) + file.readline(MAX_BYTES):
        total += len(read)
        if total > MAX_BYTES:  # it grew, or does not know its size, as those in /proc
            raise files.KindError(f"is larger than {render_limit(MAX_BYTES)}")
        # No byte is a mistake in a comment; in an address each beyond ASCII is.
        chunk = read.decode("latin-1")
        if "#" in chunk or ";" in chunk:
            chunk = COMMENT.sub("", chunk)
        for number, line in enumerate(chunk.removesuffix("\n").split("\n"), number + 1):  # noqa: B020
            if line and (found := line.strip()):
                yield number, found


def pack_entry(text: str) -> bytes:
    """An address, or a network with its prefix length, as 5 or 17 bytes. Raises one of FAULTS."""
    address, slash, length = text.partition("/")
    packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    byte, host_bits = LENGTHS[len(packed)][length] if slash else WHOLE[len(packed)]
    if host_bits and int.from_bytes(packed, "big") & host_bits:
        raise ValueError("host bits")
    if packed.startswith(MAPPED):
        raise ValueError("IPv4-mapped")
    return packed + byte


def explain(text: str) -> tuple[str, str]:
    """What is wrong with an entry that cannot be packed, and a hint."""
    try:
        network = ip_network(text, strict=False) if ENTRY.fullmatch(text) else None
    except ValueError:
        network = None
    _, slash, length = text.partition("/")
    if network is None or (slash and length != str(network.prefixlen)):
        hint = "IPv4 or IPv6, with or without a prefix length, one a line"
        return f"{quote(text)} is not a valid address", hint
    if network.network_address.packed.startswith(MAPPED):
        return f"{quote(text)} is IPv4-mapped, and never matches", "write it as one of IPv4"
    return f"{quote(text)} has host bits set under its prefix length", f"did you mean {network}?"


def unpack_entry(entry: bytes) -> str:
    """As people write it: an address, or a network with its prefix length."""
    address, length = entry[:-1], entry[-1]
    text = inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)
    return text if length == len(address) * 8 else f"{text}/{length}"


def sort_entries(entries: bytearray, size: int) -> tuple[bytearray, bytearray]:
    """Those that are within no other one, and the others. The core does it in place."""
    left = choose_sort()(entries, size)
    covered = entries[left:]
    del entries[left:]
    return entries, covered


def _count(entries: Entries) -> int:
    return sum(len(found) // (size + 1) for size, found in entries.items())


def _locate(entries: bytearray, entry: bytes) -> tuple[int, bool]:
    """Where an entry is, or would be, and whether it is there."""
    size = len(entry)
    positions = range(0, len(entries), size)
    number = bisect_left(positions, entry, key=lambda at: bytes(entries[at : at + size]))
    start = number * size
    return start, entries[start : start + size] == entry


def _list_from(entries: bytearray, size: int, after: bytes) -> Iterator[bytes]:
    start, is_there = _locate(entries, after) if after else (0, False)
    while is_there:  # one that is there twice
        start += size + 1
        is_there = entries[start : start + size + 1] == after
    for at in range(start, len(entries), size + 1):
        yield bytes(entries[at : at + size + 1])


def _cut(entries: bytearray, removed: Iterable[bytes]) -> Iterator[memoryview]:
    """The same in parts, without these, as often as they are there."""
    whole, begin = memoryview(entries), 0
    for entry in sorted(removed):
        start, is_there = _locate(entries, entry)
        yield whole[begin:start]
        while is_there:
            start += len(entry)
            is_there = entries[start : start + len(entry)] == entry
        begin = start
    yield whole[begin:]


def choose_sort() -> Callable[[bytearray, int], int]:
    """The core's sort_prefixes(), or the reference where there is no core."""
    try:
        from conntrackd.core._core import sort_prefixes  # noqa: PLC0415  # it may not be there
    except ImportError:
        return sort_plainly
    return sort_prefixes


def sort_plainly(networks: bytearray, size: int) -> int:
    """Sort in place: first those that are within no other one, how many bytes these have; then the rest."""
    left: list[bytes] = []
    rest: list[bytes] = []
    for entry in sorted(bytes(networks[at : at + size + 1]) for at in range(0, len(networks), size + 1)):
        is_covered = left and _is_within(entry[:size], left[-1])
        (rest if is_covered else left).append(entry)
    networks[:] = b"".join((*left, *rest))
    return len(left) * (size + 1)


def _is_within(address: bytes, entry: bytes | bytearray) -> bool:
    """Whether its leading bits are those of an entry of the same family."""
    shift = len(address) * 8 - entry[-1]
    return int.from_bytes(address, "big") >> shift == int.from_bytes(entry[:-1], "big") >> shift
