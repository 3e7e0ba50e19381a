"""What a file gives an option: the texts of its node with their lines, and what is wrong with its type."""

from collections.abc import Iterator
from typing import Final

from conntrackd.config.document import Items, Node, Scalar, Section, write_line
from conntrackd.config.option import Option
from conntrackd.config.values import OFF_WORDS, BadValueError, ValueType

NOUNS: Final = {"text": "text", "number": "number", "flag": "boolean", "date": "date"}


def list_items(option: Option[object], node: Node) -> Iterator[tuple[str | BadValueError, int]]:
    """Texts and their lines, or what is wrong with one: the items of a list or text, or the one value."""
    kind = option.kind
    match node:
        case Section() if kind.is_table:
            for entry in node.entries:
                if not isinstance(entry.node, Scalar):
                    raise BadValueError(entry.key, "is a name, and takes one value")
                yield f"{entry.key}={entry.node.text}", entry.line
        case Section():
            raise BadValueError("", f"must be {kind.expected}, not a section")
        case Items() if not kind.separator:
            raise BadValueError("", f"must be {kind.expected}, not a list")
        case Items() if len(node.items) > kind.max_items:
            raise BadValueError("", f"has {len(node.items)} items, the maximum is {kind.max_items}")
        case Items():
            for item in node.items:
                yield _read_item(kind, item), item.line
        case Scalar() if option.is_optional and _means_off(node):
            yield "", node.line
        case Scalar():
            _check_type(kind, node)
            lines = node.text.split("\n") if kind.separator == "\n" else [node.text]
            for number, text in enumerate(lines):
                yield from ((item, node.line and node.line + number) for item in kind.split(text))


def _read_item(kind: ValueType[object], item: Node) -> str | BadValueError:
    if isinstance(item, Section) and kind.max_section:
        text = write_line(item, kind.max_section)
        return text or BadValueError("", f"has an item of more than {kind.max_section} characters")
    if not isinstance(item, Scalar):
        return BadValueError("", f"must be {kind.expected}, not a list or section in a list")
    try:
        _check_type(kind, item)
    except BadValueError as error:
        return error
    return item.text


def _means_off(scalar: Scalar) -> bool:
    """`off` is a word for false in YAML, and JSON and TOML have no other one."""
    return scalar.type == "null" or scalar.text.lower() in (
        OFF_WORDS if scalar.type == "text" else {"off", "false"} if scalar.type == "flag" else ()
    )


def _check_type(kind: ValueType[object], scalar: Scalar) -> None:
    if scalar.type == "null":
        raise BadValueError("", "has no value", f"set it to {kind.expected}, or remove the key")
    if scalar.type != "text" and scalar.type not in kind.scalars:
        hint = "put it in quotes" if not kind.scalars else ""
        raise BadValueError(scalar.text, f"is a {NOUNS[scalar.type]}, expected {kind.expected}", hint)
