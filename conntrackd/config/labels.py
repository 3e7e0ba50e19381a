"""Custom labels on Loki's streams: how many there may be, and which names are allowed."""

import re
from collections.abc import Sequence
from typing import Final

from conntrackd.config.values import BadValueError, ValueType
from conntrackd.render.fields import REPORT_NAMES, list_names

# Loki refuses a stream with more than 15 labels, those of the daemon included.
MAX_LABELS: Final = 15
OWN_LABELS: Final = frozenset({"type", "prot", "replay"})
# What the daemon says unless somebody else does.
DEFAULT_LABELS: Final = frozenset({"service_name", "host"})
# Structured metadata of an event: Loki shows a label of such a name in its place. Most would open a stream of
# their own for each connection, too.
FIELDS: Final = frozenset((*list_names(), *REPORT_NAMES)) - OWN_LABELS


def _parse_labels(items: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of NAME=VALUE items, names once each and bounded."""
    labels: dict[str, str] = {}
    twice: list[str] = []
    for item in items:
        name, equals, value = (part.strip() for part in item.partition("="))
        _check_label(item, name, equals, value)
        twice += [name] if name in labels and name not in twice else []
        labels[name] = value
    if twice:
        raise BadValueError(", ".join(twice), "is given twice" if len(twice) == 1 else "are given twice")
    possible = MAX_LABELS - len((OWN_LABELS | DEFAULT_LABELS) - labels.keys())
    if len(labels) > possible:
        own = ", ".join(sorted((OWN_LABELS | DEFAULT_LABELS) - labels.keys()))
        message = f"has {len(labels)} labels, the maximum is {possible}"
        raise BadValueError("", message, f"Loki accepts {MAX_LABELS}, including {own}")
    return tuple(labels.items())


def _check_label(item: str, name: str, equals: str, value: str) -> None:
    if not equals or not value:
        raise BadValueError(item, "is not a valid label", "write NAME=VALUE, such as env=prod")
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__") or len(name) > 1024:
        raise BadValueError(
            name, "is not a valid label name", "use letters, digits and _, not beginning with a digit or __"
        )
    if name in OWN_LABELS:
        raise BadValueError(name, "is a label that conntrackd sets itself")
    if name in FIELDS:
        hint = f'events have it as structured metadata: query it with | {name}="..."'
        raise BadValueError(name, "would hide the field of that name", hint)
    if len(value) > 2048 or not value.isprintable():
        raise BadValueError(item, "has a value that is too long or has control characters")


def list_joined_labels(labels: Sequence[tuple[str, str]]) -> list[str]:
    """The names of labels whose value seems to hold another one (`a=1 b=2`)."""
    return [name for name, value in labels if re.search(r"\s[a-zA-Z_][a-zA-Z0-9_]*=", value)]


LABELS: Final = ValueType(
    "NAME=VALUE,...",
    "labels such as env=prod,team=platform",
    _parse_labels,
    lambda value: ",".join("=".join(pair) for pair in value),
    separator=",",
    off=(),
)
