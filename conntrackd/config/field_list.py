"""The fields that a sink writes, as a setting: exactly these, or all but those with a `-` before them."""

from collections.abc import Sequence
from typing import Final

from conntrackd.config.values import BadValueError, ValueType
from conntrackd.render.fields import list_names
from conntrackd.text import suggest

NAMES: Final = tuple(list_names())
KNOWN: Final = frozenset(NAMES)


def _parse(items: Sequence[str]) -> tuple[str, ...]:
    """Names in lower case, as they stand: choose_names() says what they come to."""
    words = tuple(item.strip().lower() for item in items)
    for item, word in zip(items, words, strict=True):
        name = word.removeprefix("-")
        if name not in KNOWN:
            hint = suggest(name.removeprefix("+"), NAMES) or "conntrackd-events(7) has all of them"
            raise BadValueError(item, "is not a field of a record", hint)
        if word.startswith("-") != words[0].startswith("-"):
            hint = "either the names of all that is written, or -NAME for each that is not"
            raise BadValueError(item, "does not go with what stands before it", hint)
    return words


def choose_names(words: Sequence[str]) -> frozenset[str] | None:
    """The names that are written; None for all."""
    if not words:
        return None
    if words[0].startswith("-"):
        return KNOWN - {word.removeprefix("-") for word in words}
    return frozenset(words)


FIELD_LIST: Final = ValueType(
    "NAME,...",
    "names of fields, or names to leave out, each behind a -",
    _parse,
    ",".join,
    separator=",",
    words=NAMES,
    off=(),
)
