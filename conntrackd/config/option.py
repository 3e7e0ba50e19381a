"""Option: one setting. Flag, variable, help, completion, man entry, sample and type derive from it.

Keys: those of some options, and which of them was meant.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from conntrackd.config.values import ValueType
from conntrackd.text import find_near

File = Path | None
Text = str | None
Seconds = float | None
SpoolPath = Path | Literal[False] | None  # off, or that of the state directory
T_co = TypeVar("T_co", covariant=True)


# No slots: typing could then not note the type of Option[Path | None] on it (a TypeError in CPython 3.11).
@dataclass(frozen=True, eq=False)
class Option(Generic[T_co]):
    """One setting. `example` stands in the sample where the default is nothing to show."""

    key: str
    kind: ValueType[T_co]
    default: T_co
    help: str
    example: str = ""
    reload: bool = True
    secret: bool = False

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "CONNTRACKD_" + re.sub(r"[.-]", "_", self.key.upper())

    @property
    def is_optional(self) -> bool:
        """Whether it can be set to nothing."""
        return self.default is None or self.default == ()

    @property
    def default_text(self) -> str:
        """The default as a person would write it, empty for none."""
        return "" if self.default is None else self.kind.render(self.default)


class Keys:
    """Those of some options, by which they are looked up, and the sections in which they stand."""

    def __init__(self, options: Iterable[Option[object]], sections: Iterable[str] = ()) -> None:
        """`sections`: others, that hold none of these."""
        self.by_key: Mapping[str, Option[object]] = {option.key: option for option in options}
        self.by_variable: Mapping[str, Option[object]] = {
            option.variable: option for option in self.by_key.values()
        }
        dots = {key[: dot.start()] for key in self.by_key for dot in re.finditer(r"\.", key)}
        self.sections = frozenset({*sections, *dots})

    def list_inside(self, section: str) -> str:
        """The words that may stand in a section, empty for the outermost, as a hint shows them."""
        depth = len(section) + 1 if section else 0
        known = (*self.by_key, *sorted(self.sections))
        inside = [key[depth:] for key in known if key.startswith(f"{section}." if section else "")]
        return ", ".join(dict.fromkeys(key.split(".")[0] for key in inside))

    def get_section(self, key: str) -> str:
        """The innermost section that the key stands in, empty for none."""
        parts = key.split(".")
        inner = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
        return next((name for name in inner if name in self.sections), "")

    def suggest(self, key: str) -> str:
        """The nearest key of the section that it stands in; of no section, one whose last words it is."""
        section = self.get_section(key)
        prefix = f"{section}." if section else ""
        same_end = [known for known in self.by_key if known.endswith(f".{key}")]
        if len(same_end) == 1:
            return f"did you mean {same_end[0]}?"
        inside = [known for known in (*self.by_key, *sorted(self.sections)) if known.startswith(prefix)]
        by_rest = {known.removeprefix(prefix): known for known in inside}
        near = find_near(key.removeprefix(prefix), by_rest)
        if near:
            return f"did you mean {by_rest[near]}?"
        elsewhere = "; those with names of their own stand in sinks" if section == "sink" else ""
        return f"valid keys: {self.list_inside(section)}{elsewhere}"
