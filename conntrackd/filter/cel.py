"""Rules of the later conntrackd, which are CEL: recognized, and said in our words as far as they go."""

import re
from collections.abc import Callable
from typing import Final

MARK: Final = re.compile(
    r"&&|\|\||\bevent\.type\b|\b(?:source|destination)\.(?:address|port)\b|\b(?:is_network|in_cidr|in_range)\s*\("
    r"|\bprotocol\s*(?:[!=]=|in\b)|(?<=\s)(?:true|false)\s*$"
)
EXAMPLE: Final = "log protocol TCP and destination port 443"
MAX_PORT: Final = 65535

END: Final = r"(source|destination)"
TEXT: Final = r"""["']([^"']*)["']"""
FIELD: Final = rf"(event\.type|protocol|{END}\.(?:address|port))"
# In this order. What is left over is the same in both languages, or has no translation.
STEPS: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (rf"is_network\(\s*{END}\.address\s*,\s*{TEXT}\s*\)", r"\1 network \2"),
    (rf"in_cidr\(\s*{END}\.address\s*,\s*{TEXT}\s*\)", r"\1 address \2"),
    (rf"in_range\(\s*{END}\.port\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", r"\1 port \2-\3"),
    (rf"{FIELD}\s*in\s*\[([^\]]*)\]", lambda match: _name(match[1], re.sub(r"[\s\"']", "", match[3]))),
    (rf"{FIELD}\s*(==|!=)\s*{TEXT}", lambda match: _negate(match[3]) + _name(match[1], match[4])),
    (rf"{FIELD}\s*(==|!=)\s*(\d+)", lambda match: _negate(match[3]) + _name(match[1], match[4])),
    (
        rf"{END}\.port\s*(<=?|>=?)\s*(\d{{1,5}})",
        lambda match: f"{match[1]} port {_range(match[2], match[3])}",
    ),
    (r"\s*&&\s*", " and "),
    (r"\s*\|\|\s*", " or "),
    (r"!(?!=)\s*", "not "),
    (r"(?<=\s)true\s*$", "any"),
    (r"(?<=\s)false\s*$", "not any"),
)


def find(text: str) -> tuple[int, int] | None:
    """Where a word stands that only CEL has, outside of what is quoted."""
    match = MARK.search(re.sub(TEXT, lambda match: f'"{" " * (len(match[0]) - 2)}"', text))
    return None if match is None else match.span()


def translate(text: str) -> str:
    """The rule in our words. Where it has a word that we lack, that stays as it is, and is a mistake."""
    for pattern, change in STEPS:
        text = re.sub(pattern, change, text)
    return " ".join(text.split())


def _name(field: str, value: str) -> str:
    return f"{'type' if field == 'event.type' else field.replace('.', ' ')} {value}"


def _negate(operator: str) -> str:
    return "not " if operator == "!=" else ""


def _range(operator: str, number: str) -> str:
    """The ports of a comparison."""
    port = int(number)
    low, high = {"<": (0, port - 1), "<=": (0, port), ">": (port + 1, MAX_PORT), ">=": (port, MAX_PORT)}[
        operator
    ]
    return f"{low}-{high}"
