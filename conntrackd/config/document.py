"""A configuration file (YAML, JSON, TOML) -> a tree of scalars that know their line; nothing is interpreted.

A file can be damaged or hostile and still costs little: its size and depth are bounded, no tag makes an
object, repeated keys are all kept for the caller to refuse, and an alias is the node it names, never a copy.
"""

import json
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NoReturn

from conntrackd.errors import ConfigError
from conntrackd.files import KindError, read_file

MAX_FILE: Final = 1 << 20  # bytes; 1,000 long rules and every setting need less than a third of it
# tomllib takes 4 us and 220 bytes for two characters, where the others stop at MAX_NODES.
MAX_TOML: Final = 384 << 10
MAX_DEPTH: Final = 32  # settings are nested four deep at most
# A hundred settings and a list of 1,000 rules are a tenth of it; PyYAML takes 17 us for each.
MAX_NODES: Final = 20_000
MAX_MESSAGE: Final = 200  # characters; a parser repeats a tag of a megabyte

ScalarType = Literal["text", "number", "flag", "null", "date"]

# tomllib takes memory and time with the square of the parts of a dotted key: 1 MiB of `a.a.a` took all of a
# machine's. Parts that are too long for this pattern are too few to matter.
TOML_PART: Final = r"""(?:[A-Za-z0-9_-]{1,256}+|"(?:[^"\\\n]|\\.){0,256}+"|'[^'\n]{0,256}+')"""
TOML_CHAIN: Final = re.compile(rf"(?:{TOML_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")


@dataclass(slots=True)
class Scalar:
    """A value as it was written, and the line where its text begins, from 1; 0 where it is not known."""

    text: str
    type: ScalarType
    line: int = 0


@dataclass(slots=True)
class Items:
    """A list."""

    items: list["Node"] = field(default_factory=list)
    line: int = 0


@dataclass(slots=True)
class Entry:
    """One key of a table."""

    key: str
    node: "Node"
    line: int = 0


@dataclass(slots=True)
class Section:
    """Keys and values in the order of the file, with all repetitions."""

    entries: list[Entry] = field(default_factory=list)
    line: int = 0


Node = Scalar | Items | Section


def is_null(node: Node) -> bool:
    """Whether nothing stands there, such as below a key whose own keys are all commented out."""
    return isinstance(node, Scalar) and node.type == "null"


def read_document(path: Path) -> Section:
    """The tree of a file; its name's ending says how it is written, YAML where it says nothing."""
    parsers: dict[str, Callable[[str], Node]] = {".json": parse_json, ".toml": parse_toml}
    parse = parsers.get(path.suffix, parse_yaml)
    text = read_text(path, MAX_TOML if parse is parse_toml else MAX_FILE)
    try:
        node = parse(text)
    except ConfigError as error:
        raise ConfigError(error.message, hint=error.hint, origin=f"{path}{error.origin}") from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply", origin=str(path)) from error
    if not isinstance(node, Section):
        raise ConfigError("holds no settings", hint="such as: sink.stream.enable: true", origin=str(path))
    return node


def read_text(path: Path, limit: int) -> str:
    """The text of a file that only its owner's side can change.

    Whoever may write the configuration decides what is logged, and where to. A file that others may write is
    therefore refused, for root and for the service's own user alike. Symbolic links are followed.
    """
    try:
        data, status = read_file(path, limit)
    except KindError as error:
        raise ConfigError(str(error), origin=str(path)) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", origin=str(path)) from error
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError("is writable by every user", hint=f"chmod o-w '{path}'", origin=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", origin=f"{path}:{line}") from error


def fail(line: int, message: str, hint: str = "") -> NoReturn:
    """The file's name is not known here: read_document puts it before the origin."""
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}..."
    raise ConfigError(message, hint=hint, origin=f":{line}" if line else "")


def parse_json(text: str) -> Node:
    """JSON -> tree. Lines are known for syntax errors only."""
    if not text.strip():
        return Section()
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: Section([Entry(key, _wrap(value)) for key, value in pairs]),
            parse_int=_number,
            parse_float=_number,
            parse_constant=_number,
        )
    except json.JSONDecodeError as error:
        fail(error.lineno, f"is not valid JSON: {error.msg}")
    return _wrap(value)


def parse_toml(text: str) -> Node:
    """TOML -> tree. Lines are known for syntax errors only."""
    import tomllib  # noqa: PLC0415  # memory; most files are YAML

    chain = TOML_CHAIN.search(text)
    if chain:
        fail(text.count("\n", 0, chain.start()) + 1, f"is nested more than {MAX_DEPTH} deep")
    try:
        return _wrap(tomllib.loads(text, parse_float=_number))
    except ValueError as error:  # also an integer of more than 4,300 digits
        message, _, where = str(error).partition(" (at ")
        number = re.match("line ([0-9]+)", where)
        line = int(number[1]) if number else text.count("\n") + 1 if where else 0
        fail(line, f"is not valid TOML: {message}")


def _number(text: str) -> Scalar:
    return Scalar(text, "number")


def _wrap(value: object) -> Node:
    match value:
        case Scalar() | Items() | Section():
            return value
        case list():
            return Items([_wrap(item) for item in value])
        case dict():
            return Section([Entry(str(key), _wrap(item)) for key, item in value.items()])
    return _wrap_scalar(value)


def _wrap_scalar(value: object) -> Scalar:
    match value:
        case None:
            return Scalar("", "null")
        case bool():
            return Scalar(str(value).lower(), "flag")
        case str():
            return Scalar(value, "text")
        case int():
            return Scalar(str(value), "number")
    return Scalar(str(value), "date")  # the types that are left are TOML's


def parse_yaml(text: str) -> Node:
    """One YAML document -> tree."""
    from conntrackd.config.yaml_tree import parse  # noqa: PLC0415  # memory; a container has variables alone

    return parse(text)


def write_line(node: Node, limit: int) -> str | None:
    """A node as YAML in one line; None for more than so many characters, which aliases may make of few."""
    text = ""
    with suppress(RecursionError):  # a level has four characters
        for piece in _list_pieces(node):
            text += piece
            if len(text) > limit:
                return None
        return text
    return None


def _list_pieces(node: Node) -> Iterator[str]:
    match node:
        case Section():
            yield "{"
            for entry in node.entries:
                yield f"{json.dumps(entry.key)}: "
                yield from _list_pieces(entry.node)
                yield ", "
            yield "}"
        case Items():
            yield "["
            for item in node.items:
                yield from _list_pieces(item)
                yield ", "
            yield "]"
        case Scalar(type="text" | "date"):
            yield json.dumps(node.text)
        case Scalar():
            yield node.text or "null"
