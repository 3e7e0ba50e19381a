"""Rules as text: where they come from, and the mistakes in them as people are shown them."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from conntrackd.errors import ConfigError, RuleError

# 1,000 rules of 4,096 characters, and as much again in comments.
MAX_FILE_BYTES: Final = 8 << 20
# A mistake in a long rule is shown with this much of the rule around it.
EXCERPT_WIDTH: Final = 100
STAND_IN: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class RuleText:
    """One rule as somebody wrote it; `place` is where (`file:line`, a flag, empty for the rule's number)."""

    text: str
    place: str = ""


def read_rule_file(path: str | Path) -> list[RuleText]:
    """The rules of a file, one a line; empty lines and lines of a comment (`#`) alone are left out.

    Raises ConfigError for a file that is missing, too large or not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the filter file: {error.strerror}",
            place=str(path),
            hint="one rule a line; 'filter' in the configuration holds rules without a file",
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"larger than {MAX_FILE_BYTES >> 20} MiB: no list of rules", place=str(path))
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8 text", place=f"{path}:{line}") from error
    return [
        RuleText(line.strip(), f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with the words between two positions of a rule."""

    message: str
    start: int
    end: int
    hint: str = ""

    def to_error(self, text: str, place: str) -> RuleError:
        """As it is raised: with the rule and a caret under the words."""
        return RuleError(self.message, place=place, excerpt=show(text, self.start, self.end), hint=self.hint)


def show(text: str, start: int, end: int) -> str:
    """The rule, or the part of it around a mistake, and below it carets under the mistake.

    What a terminal would obey is replaced one for one, so that the carets stay where they belong.
    """
    first = max(0, start - EXCERPT_WIDTH // 2) if len(text) > EXCERPT_WIDTH else 0
    last = min(len(text), first + EXCERPT_WIDTH)
    before, after = "..." if first else "", "..." if last < len(text) else ""
    carets = max(1, min(end, last) - start)
    return f"{before}{clean(text[first:last])}{after}\n{' ' * (len(before) + start - first)}{'^' * carets}"


def clean(text: str) -> str:
    """The text without tabs and characters that a terminal would obey."""
    return "".join(char if char.isprintable() else " " if char == "\t" else STAND_IN for char in text)


def quote(word: str) -> str:
    """A user's word in a message: cleaned, and no longer than one can read."""
    return f"'{clean(word if len(word) <= 40 else word[:37] + '...')}'"


def suggest(word: str, words: Iterable[str]) -> str:
    """`, did you mean WORD?` where one of the words is near, else nothing."""
    spellings = {each.casefold(): each for each in words}
    # difflib compares in time that grows with both lengths; a near miss is never long.
    near = get_close_matches(word.casefold(), spellings, 1) if len(word) <= 40 else []
    return f", did you mean {spellings[near[0]]}?" if near else ""
