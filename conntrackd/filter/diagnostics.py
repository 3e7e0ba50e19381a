"""Rules as text, and the mistakes in them as people are shown them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from conntrackd.errors import RuleError
from conntrackd.text import find_near

# A mistake in a long rule is shown with this much of the rule around it.
EXCERPT_WIDTH: Final = 100
STAND_IN: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class RuleText:
    """One rule as somebody wrote it; `origin` is where (`file:line`, a flag, empty for the rule's number)."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with the words between two positions of a rule."""

    message: str
    start: int
    end: int
    hint: str = ""

    def to_error(self, text: str, origin: str) -> RuleError:
        """As it is raised: with the rule and a caret under the words."""
        return RuleError(
            self.message, origin=origin, excerpt=show(text, self.start, self.end), hint=self.hint
        )


def show(text: str, start: int, end: int) -> str:
    """The line of the rule, or the part of it around a mistake, and below it carets under the mistake.

    What a terminal would obey is replaced one for one, so that the carets stay where they belong.
    """
    begin = text.rfind("\n", 0, start) + 1
    text = text[begin:].split("\n", 1)[0].rstrip("\r")
    start, end = start - begin, end - begin
    first = max(0, start - EXCERPT_WIDTH // 2) if len(text) > EXCERPT_WIDTH else 0
    last = min(len(text), first + EXCERPT_WIDTH)
    before, after = "..." if first else "", "..." if last < len(text) else ""
    carets = max(1, min(end, last) - start)
    return f"{before}{clean(text[first:last])}{after}\n{' ' * (len(before) + start - first)}{'^' * carets}"


def clean(text: str) -> str:
    """The text without tabs, line breaks and characters that a terminal would obey."""
    return "".join(char if char.isprintable() else " " if char in "\t\r\n" else STAND_IN for char in text)


def suggest(word: str, words: Iterable[str]) -> str:
    """`, did you mean WORD?` where one of the words is near, else nothing."""
    near = find_near(word, words)
    return f", did you mean {near}?" if near else ""
