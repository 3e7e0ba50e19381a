"""Option: one setting. Flag, variable, help, completion, man entry, sample and type derive from it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from conntrackd.config.values import ValueType

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
