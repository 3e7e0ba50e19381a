"""The fields that a sink writes, as a setting.

Exactly these, or all but those with a `-` before them, and those that are off by default with a `+`.
"""

from collections.abc import Sequence
from typing import Final

from conntrackd.config.values import BadValueError, ValueType
from conntrackd.render.fields import list_names, suggest_name

NAMES: Final = tuple(list_names())
KNOWN: Final = frozenset(NAMES)
SIGNS: Final = ("-", "+")


def _parse(items: Sequence[str]) -> tuple[str, ...]:
    """Names in lower case, as they stand: choose_names() says what they come to."""
    words = tuple(item.strip().lower() for item in items)
    for item, word in zip(items, words, strict=True):
        name = word[word.startswith(SIGNS) :]
        if name not in KNOWN:
            hint = suggest_name(name, NAMES) or "conntrackd-events(7) has all of them"
            raise BadValueError(item, "is not a field of a record", hint)
        if word.startswith(SIGNS) != words[0].startswith(SIGNS):
            hint = "either the names of all that is written, or -NAME for one less and +NAME for one more"
            raise BadValueError(item, "does not go with what stands before it", hint)
    return words


def choose_names(words: Sequence[str]) -> frozenset[str] | None:
    """The names that are written; None for all."""
    if not words:
        return None
    if not words[0].startswith(SIGNS):
        return frozenset(words)
    left_out = {word.removeprefix("-") for word in words if word.startswith("-")}
    return KNOWN - left_out if left_out else None


FIELD_LIST: Final = ValueType(
    "NAME,...",
    "names of fields; or names to leave out, each behind a -, and to add, each behind a +",
    _parse,
    ",".join,
    separator=",",
    words=NAMES,
    off=(),
)
