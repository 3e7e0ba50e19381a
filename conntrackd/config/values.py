"""The types that settings can have: text -> value and back, each with its limits and its mistakes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from conntrackd.flow import ALL_EVENTS, EventType, Protocol
from conntrackd.text import suggest
from conntrackd.units import DURATION_UNITS, SIZE_UNITS, render_duration, render_size

T_co = TypeVar("T_co", covariant=True)

MAX_ITEMS: Final = 1000  # as many as a filter has rules at most; nothing else comes near it
MAX_TEXT: Final = 4096  # PATH_MAX, and as long as a rule may be
MAX_METAVAR: Final = 4  # words that help can list in place of a name
# Words for "not set", in every format: a drop-in can take back what a file before it says.
OFF_WORDS: Final = frozenset({"", "off", "none", "null"})
MAX_SETS: Final = 64  # each is open for a moment, and named where one is misspelt
SET_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_HOST: Final = 255  # RFC 5424, 6
MAX_ZONE: Final = 15  # an interface's name has IFNAMSIZ - 1 bytes at most


class BadValueError(ValueError):
    """A value that does not fit: `text` is the wrong part, empty where nothing is to be shown."""

    def __init__(self, text: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.text = text
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class ValueType(Generic[T_co]):
    """A type of value: how it is called, read and written.

    `parse` gets the items of a list, or exactly one text, and raises BadValueError. `render` gives the
    text back that parses to the same value. `scalars` are the types that a file may give it beside text.
    """

    metavar: str
    expected: str
    parse: Callable[[Sequence[str]], T_co]
    render: Callable[[Any], str] = str
    scalars: frozenset[str] = frozenset()
    separator: str = ""
    words: tuple[str, ...] = ()
    is_path: bool = False
    off: object = None
    """What stands for "not set", where the setting is optional."""
    is_table: bool = False
    """Whether the items are NAME=VALUE, and a file may say them as a section, too."""
    max_items: int = MAX_ITEMS
    max_section: int = 0
    """Of a type whose items are sections in a file: characters that one may have, written in one line."""

    def split(self, text: str) -> list[str]:
        """The items of a list that came as one text; the text itself where the type is not a list."""
        if not self.separator:
            return [text]
        return [item.strip() for item in text.split(self.separator) if item.strip()]

    def list_faults(self, items: Sequence[str]) -> list[tuple[int, BadValueError]]:
        """Each item that is wrong, with its number; -1 for what is wrong with the others together."""
        faults: list[tuple[int, BadValueError]] = []
        good = []
        for number, item in enumerate(items):
            try:
                check_characters(item)
                self.parse([item])
                good.append(item)
            except BadValueError as error:
                faults.append((number, error))
        try:
            if good or not items:
                self.parse(good)
        except BadValueError as error:
            faults.append((-1, error))
        return faults

    def resolve_path(self, folder: Path, item: str) -> str:
        """An item that is a path, or names one, of a file in this folder."""
        name, equals, path = item.partition("=") if self.is_table else ("", "", item)
        return f"{name}{equals}{folder / path.strip()}" if path.strip() else item


def check_characters(text: str) -> None:
    """Raise BadValueError for what is no UTF-8: bytes of the command line, or a lone surrogate in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(text, "is not UTF-8 text") from error


def parse_flag(text: str) -> bool:
    """Yes or no, in all the words that YAML 1.1 has for it, and 1 and 0."""
    word = text.lower()
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise BadValueError(text, "is neither true nor false")


def parse_text(text: str) -> str:
    """Any text on one line."""
    if not text:
        raise BadValueError("", "is empty", "remove it if it is not wanted")
    if len(text) > MAX_TEXT:
        raise BadValueError(text, f"has more than {MAX_TEXT} characters")
    if not text.isprintable():
        raise BadValueError(text, "has control characters")
    return text


def parse_path(text: str) -> Path:
    """A path; that something is there is for those to find who open it."""
    return Path(parse_text(text))


def parse_namespace(text: str) -> str:
    """The name of a network namespace, or the path of one such as Docker's."""
    if parse_text(text).startswith("/") and len(text) > 1:
        return text
    if "/" in text or text in {".", ".."} or len(text) > 255:
        raise BadValueError(text, "is not a valid name of a network namespace", "'ip netns list' shows them")
    return text


def parse_host(text: str) -> str:
    """A host's name, as records carry it."""
    if " " in parse_text(text) or len(text) > MAX_HOST:
        raise BadValueError(text, "is not a valid host name", f"up to {MAX_HOST} characters without a space")
    return text


def parse_tenant(text: str) -> str:
    """What a header can carry, and Loki takes for a directory's name."""
    if not parse_text(text).isascii() or text != text.strip():
        raise BadValueError(text, "cannot be sent in a header", "use ASCII letters, digits and symbols")
    if text in {".", ".."} or set(text) & {"/", "\\"}:
        raise BadValueError(text, "is refused by Loki: a tenant is the name of a directory")
    return text


def parse_user(text: str) -> str:
    """RFC 7617: what stands before the first colon."""
    if ":" in parse_text(text):
        raise BadValueError(text, "has a colon, which would begin the password")
    return text


def parse_bus(text: str) -> str:
    """Addresses as D-Bus writes them, one of which is tried after the other."""
    for part in parse_text(text).split(";"):
        if not re.fullmatch(r"[a-z-]+:([a-z_]+=[^,;=]+(,|$))+", part):
            raise BadValueError(
                text, "is not a valid bus address", "such as unix:path=/run/dbus/system_bus_socket"
            )
    return text


def parse_spool(text: str) -> Path | Literal[False]:
    """A path, or False for none at all."""
    if text.lower() in OFF_WORDS:
        return False
    return parse_path(text)


def parse_locale(text: str) -> str:
    """A language as MaxMind's databases call it."""
    if not re.fullmatch(r"[a-z]{2}(-[A-Z]{2})?", text):
        raise BadValueError(text, "is not a valid language", "such as en, de or pt-BR")
    return text


def parse_writer(text: str) -> str:
    """stdout, stderr, discard, or an absolute path as file:///PATH."""
    if text.startswith("file:///") and len(text) > len("file:///"):
        return parse_text(text)
    words = ("stdout", "stderr", "discard", "file:///PATH")
    if "/" in text or "." in text:
        hint = "a file is file:// with its absolute path behind it"
        hint = f"did you mean file://{parse_text(text)}?" if text.startswith("/") else hint
        raise BadValueError(text, f"is not one of {', '.join(words)}", hint)
    return _parse_word(text, words)


def _parse_word(text: str, words: tuple[str, ...]) -> str:
    if text.lower() in words:
        return text.lower()
    raise BadValueError(text, f"is not one of {', '.join(words)}", suggest(text, words))


def _check_range(
    text: str, value: float, minimum: float, maximum: float, render: Callable[[Any], str]
) -> None:
    if not minimum <= value <= maximum:
        raise BadValueError(text, f"is not from {render(minimum)} to {render(maximum)}")


def _parse_number(text: str, units: dict[str, float], fault: str, hint: str) -> float:
    # Fifteen digits hold every limit, and a float holds them exactly.
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([a-z]*)", text.lower())
    if match is None or match[2] not in units:
        raise BadValueError(text, fault, hint)
    return float(match[1]) * units[match[2]]


SIZES: Final[dict[str, float]] = {
    "": 1,
    "b": 1,
    **{f"{unit.lower()}{suffix}": size for unit, size in SIZE_UNITS.items() for suffix in ("", "b", "ib")},
}
DURATIONS: Final[dict[str, float]] = {"": 1, **{unit: ms / 1000 for unit, ms in DURATION_UNITS.items()}}


def parse_protocols(items: Sequence[str]) -> frozenset[int]:
    """IANA numbers of protocols given by name or number, or all of them."""
    if [item.lower() for item in items] == ["all"]:
        return frozenset(range(256))
    if not items:
        raise BadValueError("", "names no protocol", "write 'all' for every protocol")
    return frozenset(_parse_protocol(item) for item in items)


def _parse_protocol(text: str) -> int:
    if text.upper() in Protocol.__members__:
        return Protocol[text.upper()]
    if re.fullmatch(r"[0-9]{1,3}", text) and int(text) < 256:
        return int(text)
    names = [name.lower() for name in Protocol.__members__]
    hint = suggest(text, [*names, "all"]) or f"a number from 0 to 255, all, or of: {', '.join(names)}"
    raise BadValueError(text, "is not a valid protocol", hint)


def render_protocols(value: frozenset[int]) -> str:
    """Names where there are some, in the order of the numbers."""
    if len(value) == 256:
        return "all"
    names = {int(protocol): protocol.name.lower() for protocol in Protocol}
    return ", ".join(names.get(number, str(number)) for number in sorted(value))


EVENT_NAMES: Final = {"new": EventType.NEW, "update": EventType.UPDATE, "destroy": EventType.DESTROY}


def parse_events(items: Sequence[str]) -> EventType:
    """Event types as a set of bits."""
    if [item.lower() for item in items] == ["all"]:
        return EventType(ALL_EVENTS)
    value = EventType(0)
    for item in items:
        value |= EVENT_NAMES[_parse_word(item, tuple(EVENT_NAMES))]
    if not value:
        raise BadValueError("", "names no event type", "write 'all' for every type")
    return value


def render_events(value: EventType) -> str:
    """Event types in the order of a flow's life."""
    return ", ".join(name for name, bit in EVENT_NAMES.items() if value & bit)


def parse_rules(items: Sequence[str]) -> tuple[str, ...]:
    """Rules as text: filter/grammar.py says what they mean, and what is wrong with them."""
    for item in items:
        if len(item) > MAX_TEXT:
            raise BadValueError(item, f"has more than {MAX_TEXT} characters")
    return tuple(items)


def parse_sets(items: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """Names of sets and their files: what is in them is read with the rules."""
    found: dict[str, Path] = {}
    for item in items:
        name, equals, path = (part.strip() for part in item.partition("="))
        if not equals or not path:
            raise BadValueError(item, "names no file", "NAME=PATH, such as bad=/etc/conntrackd/bad.txt")
        if not SET_NAME.fullmatch(name.lower()):
            hint = "up to 32 letters, digits, - and _, a letter in front"
            raise BadValueError(item, "does not begin with a valid name of a set", hint)
        if name.lower() in found:
            raise BadValueError(item, "has the name of another set")
        found[name.lower()] = parse_path(path)
    if len(found) > MAX_SETS:
        raise BadValueError("", f"has {len(found)} sets, {MAX_SETS} are possible")
    return tuple(found.items())


def _one(parse: Callable[[str], T_co]) -> Callable[[Sequence[str]], T_co]:
    return lambda items: parse(items[0])


NUMBER: Final = frozenset({"number"})


def one_of(*words: str) -> ValueType[str]:
    """One of some words. A file may give any scalar: YAML takes an unquoted `off` for a boolean."""
    expected = f"one of {', '.join(words)}"
    return ValueType(
        "|".join(words) if len(words) <= MAX_METAVAR else "WORD",
        expected,
        _one(lambda text: _parse_word(text, words)),
        scalars=frozenset({"number", "flag"}),
        words=words,
    )


def count(minimum: int, maximum: int) -> ValueType[int]:
    """A whole number within limits."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text):
            raise BadValueError(text, "is not a whole number")
        _check_range(text, int(text), minimum, maximum, str)
        return int(text)

    return ValueType("NUMBER", f"a whole number from {minimum} to {maximum}", _one(parse), scalars=NUMBER)


def size(minimum: int, maximum: int) -> ValueType[int]:
    """A number of bytes within limits."""

    def parse(text: str) -> int:
        value = _parse_number(text, SIZES, "is not a valid size", "bytes, or with a unit: 512K, 64M, 1G")
        _check_range(text, value, minimum, maximum, render_size)
        return int(value)

    expected = f"a size from {render_size(minimum)} to {render_size(maximum)}, such as 64M"
    return ValueType("SIZE", expected, _one(parse), render_size, scalars=NUMBER)


def duration(minimum: float, maximum: float) -> ValueType[float]:
    """A time in seconds within limits."""

    def parse(text: str) -> float:
        value = _parse_number(
            text, DURATIONS, "is not a valid duration", "seconds, or with a unit: 500ms, 10s, 5m, 1h"
        )
        _check_range(text, value, minimum, maximum, render_duration)
        return value

    expected = f"a duration from {render_duration(minimum)} to {render_duration(maximum)}, such as 10s"
    return ValueType("TIME", expected, _one(parse), render_duration, scalars=NUMBER)


def url(*schemes: str, endpoints: tuple[str, ...] = ()) -> ValueType[str]:
    """An address with one of the schemes, without credentials and query. `unix` ones have a path only.

    `endpoints` are paths below the base address that people copy with it.
    """

    def parse(text: str) -> str:
        if "@" in text:  # what stands before it may be a password, so the text is not shown
            raise BadValueError("", "must not contain a user name or password", "secrets come from files")
        try:
            address = _decode_zone(parse_text(text))
            parts = urlsplit(address)
            port = parts.port
        except BadValueError:
            raise
        except ValueError as error:
            raise BadValueError(
                text, "is not a valid address", f"such as {schemes[0]}://localhost"
            ) from error
        if parts.scheme not in schemes:
            hint = suggest(parts.scheme, schemes) or _suggest_scheme(text, schemes)
            raise BadValueError(text, f"does not begin with {_list_schemes(schemes)}", hint)
        if port == 0 or _describe_url_fault(parts):
            raise BadValueError(text, _describe_url_fault(parts) or "has port 0")
        if not parts.scheme.startswith("unix"):
            _check_host(text, parts.hostname or "")
        base = address.removesuffix(parts.path).removeprefix(text[: len(parts.scheme)])
        return f"{parts.scheme}{base}{_remove_endpoints(parts.path, endpoints)}"

    return ValueType("URL", f"an address that begins with {_list_schemes(schemes)}", _one(parse))


def _suggest_scheme(text: str, schemes: Sequence[str]) -> str:
    """For a host or the path of a socket alone."""
    scheme = "unix" if text.startswith("/") else schemes[0]
    return f"did you mean {scheme}://{text}?" if scheme in schemes and "://" not in text else ""


def _remove_endpoints(path: str, endpoints: tuple[str, ...]) -> str:
    path = path.rstrip("/")
    while end := next((end for end in endpoints if path.endswith(end)), ""):
        path = path.removesuffix(end).rstrip("/")
    return path


def _decode_zone(text: str) -> str:
    """`[fe80::1%25eth0]` (RFC 6874) as the system's own functions write it: `[fe80::1%eth0]`."""
    return re.sub(r"^([a-zA-Z]+://\[[0-9a-fA-F:.]+%)25(?=[^\]])", r"\1", text)


def _check_host(text: str, host: str) -> None:
    address, percent, zone = host.partition("%")
    if percent and (":" not in address or not re.fullmatch(rf"[\w.:~-]{{1,{MAX_ZONE}}}", zone, re.ASCII)):
        raise BadValueError(text, "has no interface name after the %", "such as [fe80::1%25eth0]")
    try:
        host.encode() if ":" in address else host.encode("idna")  # what is looked up (getaddrinfo(3))
    except UnicodeError as error:
        raise BadValueError(text, "has a host that cannot be looked up") from error


def _list_schemes(schemes: tuple[str, ...]) -> str:
    return " or ".join(f"{scheme}://" for scheme in schemes)


def _describe_url_fault(parts: SplitResult) -> str:
    """What is wrong with a split address, empty for nothing."""
    if " " in parts.geturl() or parts.query or parts.fragment or "?" in parts.geturl():
        return "has a space, query or fragment"
    if parts.scheme.startswith("unix"):
        return (
            "" if not parts.netloc and len(parts.path) > 1 else f"has no path: write {parts.scheme}:///PATH"
        )
    if not parts.hostname:
        return "has no host"
    if not parts.scheme.startswith("http") and parts.path.strip("/"):
        return "has a path after the host"
    return ""


FLAG: Final = ValueType(
    "BOOL",
    "true or false",
    _one(parse_flag),
    lambda value: str(value).lower(),
    frozenset({"flag", "number"}),
    words=("true", "false"),
)
NAMESPACE: Final = ValueType("NAME", "the name or path of a network namespace", _one(parse_namespace))
HOSTNAME: Final = ValueType("NAME", "the name of a host", _one(parse_host))
TENANT: Final = ValueType("TEXT", "a tenant's name", _one(parse_tenant))
BUS: Final = ValueType("ADDRESS", "the address of a bus", _one(parse_bus))
USER: Final = ValueType("TEXT", "a user's name", _one(parse_user))
LOCALE: Final = ValueType("LANGUAGE", "a language such as en or pt-BR", _one(parse_locale))
PATH: Final = ValueType("PATH", "a path", _one(parse_path), is_path=True)
PATHS: Final = ValueType(
    "PATH,...",
    "paths",
    lambda items: tuple(map(parse_path, items)),
    lambda value: ", ".join(map(str, value)),
    separator=",",
    is_path=True,
    off=(),
)
SPOOL: Final = ValueType(
    "PATH",
    "a path, or off",
    _one(parse_spool),
    lambda value: str(value) if value else "off",
    is_path=True,
    off=False,
)
WRITER: Final = ValueType(
    "WRITER",
    "stdout, stderr, discard or file:///PATH",
    _one(parse_writer),
    words=("stdout", "stderr", "discard", "file:///"),
)
PROTOCOLS: Final = ValueType(
    "NAME,...",
    "names or numbers of protocols, or all",
    parse_protocols,
    render_protocols,
    NUMBER,
    ",",
    (*(name.lower() for name in Protocol.__members__), "all"),
)
EVENTS: Final = ValueType(
    "TYPE,...",
    "some of new, update, destroy, or all",
    parse_events,
    render_events,
    separator=",",
    words=(*EVENT_NAMES, "all"),
)
SETS: Final = ValueType(
    "NAME=PATH,...",
    "names and files of sets, such as bad=/etc/conntrackd/bad.txt",
    parse_sets,
    lambda value: ", ".join(f"{name}={path}" for name, path in value),
    separator=",",
    is_path=True,
    off=(),
    is_table=True,
)
RULES: Final = ValueType("RULE", "filter rules", parse_rules, "\n".join, separator="\n", off=())
