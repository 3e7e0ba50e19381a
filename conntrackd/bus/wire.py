"""The D-Bus wire format: a header without its body for the service, whole messages for conntrackctl.

The service talks through dbus-fast. It needs the header alone before it lets dbus-fast parse anything, and
conntrackctl needs an answer in less time than it takes to import dbus-fast (80 ms).
Numbers: https://dbus.freedesktop.org/doc/dbus-specification.html, "Message Protocol".
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
SIGNAL: Final = 4

NO_REPLY_EXPECTED: Final = 0x1
NO_AUTO_START: Final = 0x2
ALLOW_INTERACTIVE_AUTHORIZATION: Final = 0x4

FIXED: Final = 16
"""Bytes from the start of a message to the end of the length of its header fields."""
MAX_HEADER: Final = 16384  # names are at most 255 bytes, a path is refused by the bus only at its own limit
MAX_BODY: Final = 128 << 20  # "the maximum length of a message ... is 128 MiB"
MAX_DEPTH: Final = 64

# Code of a header field -> attribute and type
FIELDS: Final = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    5: ("reply_serial", "u"),
    6: ("destination", "s"),
    7: ("sender", "s"),
    8: ("signature", "g"),
    9: ("unix_fds", "u"),
}
CODES: Final = {name: (code, kind) for code, (name, kind) in FIELDS.items()}
NUMBERS: Final = {
    "y": "B",
    "b": "I",
    "n": "h",
    "q": "H",
    "i": "i",
    "u": "I",
    "x": "q",
    "t": "Q",
    "d": "d",
    "h": "I",
}
ALIGNMENTS: Final = {
    **{kind: struct.calcsize(code) for kind, code in NUMBERS.items()},
    "s": 4,
    "o": 4,
    "g": 1,
    "v": 1,
    "a": 4,
    "(": 8,
    "{": 8,
}


class WireError(ValueError):
    """These bytes are not a D-Bus message."""


@dataclass(slots=True)
class Header:
    """What is known of a message before its body is looked at. Empty and 0 for what it does not carry."""

    type: int
    flags: int = 0
    serial: int = 0
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    destination: str = ""
    sender: str = ""
    signature: str = ""
    unix_fds: int = 0


def measure(data: bytes | bytearray) -> tuple[int, int]:
    """Length of the header, padding included, and of the body. Needs the first FIXED bytes."""
    order = _read_byte_order(data)
    body, _, fields = struct.unpack_from(f"{order}III", data, 4)
    if fields > MAX_BODY or body > MAX_BODY:
        raise WireError("is longer than a message can be")
    return FIXED + (fields + 7) // 8 * 8, body


def parse_header(data: bytes | bytearray) -> Header:
    """The header of a message, from at least as many bytes as measure() says it has. Raises WireError."""
    reader = _Decoder(data, _read_byte_order(data))
    header = Header(data[1], data[2], struct.unpack_from(f"{reader.order}I", data, 8)[0])
    reader.position = 12
    end = FIXED + struct.unpack_from(f"{reader.order}I", data, 12)[0]
    reader.position = FIXED
    try:
        while reader.position < end:
            reader.align(8)
            code = reader.read("y")
            name, kind = FIELDS.get(code, ("", ""))
            value = reader.read_variant(kind)
            if name:
                setattr(header, name, value)
    except (struct.error, LookupError, TypeError, ValueError, RecursionError) as error:
        raise WireError("has a damaged header") from error
    return header


def parse_body(data: bytes | bytearray, header: Header) -> list[Any]:
    """The values of a whole message's body. A file descriptor is its index. Raises WireError."""
    reader = _Decoder(data, _read_byte_order(data))
    reader.position = measure(data)[0]
    try:
        return [reader.read(kind) for kind in split_signature(header.signature)]
    except (struct.error, LookupError, TypeError, ValueError, RecursionError) as error:
        raise WireError("has a damaged body") from error


def _read_byte_order(data: bytes | bytearray) -> str:
    order = {0x6C: "<", 0x42: ">"}.get(data[0])
    if order is None or data[3] != 1:
        raise WireError("is not a D-Bus message")
    return order


def split_signature(signature: str) -> list[str]:
    """The complete types one after the other: `a{st}as` -> `a{st}`, `as`."""
    found, position = [], 0
    while position < len(signature):
        end = _find_end(signature, position)
        found.append(signature[position:end])
        position = end
    return found


def _find_end(signature: str, position: int) -> int:
    while position < len(signature) and signature[position] == "a":
        position += 1
    depth = 0
    for index in range(position, len(signature)):
        depth += (signature[index] in "({") - (signature[index] in ")}")
        if depth == 0:
            return index + 1
    raise WireError("has an incomplete signature")


class _Decoder:
    """A position in a message. Text is UTF-8, everything is aligned to its size."""

    def __init__(self, data: bytes | bytearray, order: str) -> None:
        self.data = data
        self.order = order
        self.position = 0
        self._depth = 0

    def align(self, size: int) -> None:
        self.position = (self.position + size - 1) // size * size

    def read(self, kind: str) -> Any:  # noqa: ANN401  # whatever the signature says
        first = kind[0]
        if first in NUMBERS:
            return self._read_number(first)
        if first in "sog":
            return self._read_text(first)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise WireError("is nested too deeply")
        value = self._read_container(kind)
        self._depth -= 1
        return value

    def read_variant(self, wanted: str = "") -> Any:  # noqa: ANN401
        """Of one type, where only that is wanted."""
        kinds = split_signature(self._read_text("g"))
        if len(kinds) != 1 or kinds[0] != (wanted or kinds[0]):
            raise WireError("has a variant that is not one value of its type")
        return self.read(kinds[0])

    def _read_container(self, kind: str) -> Any:  # noqa: ANN401
        if kind == "v":
            return self.read_variant()
        if kind[0] == "a":
            return self._read_array(kind[1:])
        if kind[0] in "({":
            self.align(8)
            return tuple(self.read(part) for part in split_signature(kind[1:-1]))
        raise WireError("has an unknown type")

    def _read_number(self, kind: str) -> int | float | bool:
        code = self.order + NUMBERS[kind]
        size = struct.calcsize(code)
        self.align(size)
        value: int | float = struct.unpack_from(code, self.data, self.position)[0]
        self.position += size
        return bool(value) if kind == "b" else value

    def _read_text(self, kind: str) -> str:
        size = int(self._read_number("y" if kind == "g" else "u"))
        if self.position + size >= len(self.data):
            raise WireError("is cut short")
        text = bytes(self.data[self.position : self.position + size]).decode()
        self.position += size + 1
        return text

    def _read_array(self, kind: str) -> Any:  # noqa: ANN401
        size = int(self._read_number("u"))
        if kind[:1] not in ALIGNMENTS:
            raise WireError("has an unknown type")
        self.align(ALIGNMENTS[kind[0]])
        end = self.position + size
        if end > len(self.data):
            raise WireError("is cut short")
        found = []
        while self.position < end:
            before = self.position
            found.append(self.read(kind))
            if self.position == before:  # an empty struct would be read for ever
                raise WireError("has an array of nothing")
        return dict(found) if kind[0] == "{" else found


def encode_call(header: Header, values: list[Any], *, order: str = "<") -> bytes:
    """A message with this header and the values of its signature. Variants are pairs of type and value."""
    body = _Encoder(order)
    for kind, value in zip(split_signature(header.signature), values, strict=True):
        body.write(kind, value)
    head = _Encoder(order)
    head.data += bytes([0x6C if order == "<" else 0x42, header.type, header.flags, 1])
    head.write("u", len(body.data))
    head.write("u", header.serial)
    fields = []
    for name, (code, kind) in CODES.items():
        if value := getattr(header, name):
            fields.append((code, (kind, value)))
    head.write("a(yv)", fields)
    head.align(8)
    return bytes(head.data + body.data)


class _Encoder:
    """The counterpart of _Decoder."""

    def __init__(self, order: str) -> None:
        self.data = bytearray()
        self._order = order

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def write(self, kind: str, value: Any) -> None:  # noqa: ANN401
        first = kind[0]
        if first in NUMBERS:
            self.align(ALIGNMENTS[first])
            self.data += struct.pack(self._order + NUMBERS[first], value)
        elif first in "sog":
            text = value.encode()
            self.write("y" if first == "g" else "u", len(text))
            self.data += text + b"\0"
        elif first == "v":
            self.write("g", value[0])
            self.write(value[0], value[1])
        elif first == "a":
            self._write_array(kind[1:], value)
        else:
            self.align(8)
            for part_kind, part in zip(split_signature(kind[1:-1]), value, strict=True):
                self.write(part_kind, part)

    def _write_array(self, kind: str, values: Any) -> None:  # noqa: ANN401
        self.write("u", 0)
        offset = len(self.data) - 4
        self.align(ALIGNMENTS[kind[0]])
        start = len(self.data)
        for value in values.items() if kind[0] == "{" else values:
            self.write(kind, value)
        struct.pack_into(f"{self._order}I", self.data, offset, len(self.data) - start)
