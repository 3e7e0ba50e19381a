"""Text in columns of a terminal, in which some characters need two and some none."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from conntrackd.errors import show_controls

GAP: Final = "  "
# A column that is narrowed keeps so much: what is left of an address still says something.
NARROWEST: Final = 8
# With or without a unit, or nothing.
NUMBER: Final = re.compile(r"(?:[\d.,/]+(?: (?:[KMGT]?i?B|%|d|h|min|s))?(?: |$))*")


def measure(text: str) -> int:
    """The columns that a terminal needs for it."""
    return len(text) if text.isascii() else sum(map(_measure_character, text))


def _measure_character(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(line: str, width: int | None) -> str:
    """No wider than that, with a mark where something is missing."""
    if width is None or measure(line) <= width:
        return line
    return f"{_take(line, width - 1)}…"[: max(width, 0)]


def shorten(text: str, width: int) -> str:
    """As cut(), in the middle: what distinguishes an address are its last digits, too."""
    if measure(text) <= width:
        return text
    end = _take(text[::-1], (width - 1) // 2)[::-1]
    return f"{_take(text, width - 1 - measure(end))}…{end}"[: max(width, 0)]


def _take(text: str, room: int) -> str:
    """As many characters as fit."""
    for number, character in enumerate(text):
        room -= _measure_character(character)
        if room < 0:
            return text[:number]
    return text


def pad(text: str, width: int, *, to_right: bool = False) -> str:
    """So wide, with spaces behind or, to the right, before it."""
    spaces = " " * (width - measure(text))
    return f"{spaces}{text}" if to_right else f"{text}{spaces}"


def lay_out(
    rows: Sequence[Sequence[str]], width: int | None, *, numbers: Collection[int] | None = None, full: int = 0
) -> Iterator[str]:
    """Lines of columns below their headings, no wider than that: what is too long is cut.

    `numbers` are the columns that stand to the right; without it, those that have nothing else. Where they
    are named only the others are narrowed, and the last of those gets the room that is left up to `full`.
    """
    cells = [[show_controls(cell).replace("\n", " ") for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(measure, column)) for column in columns]
    if numbers is None:
        right = [all(map(NUMBER.fullmatch, column[1:])) for column in columns]
    else:
        right = [number in numbers for number in range(len(columns))]
        texts = [number for number, is_right in enumerate(right) if not is_right]
        if width is not None:
            room = width - len(GAP) * (len(widths) - 1) - sum(widths[number] for number in numbers)
            narrowed = share([widths[number] for number in texts], room)
            if sum(narrowed) > room:  # numbers are not cut
                narrowed = share(narrowed, room, narrowest=1)
            for number, size in zip(texts, narrowed, strict=True):
                widths[number] = size
            spare = min(width, full) - width + room - sum(widths[number] for number in texts)
            widths[texts[-1]] += max(0, spare)
    for row in cells:
        line = GAP.join(
            pad(shorten(cell, size), size, to_right=is_right)
            for cell, size, is_right in zip(row, widths, right, strict=True)
        )
        yield cut(line.rstrip(), width)


def share(widths: Sequence[int], room: int, *, narrowest: int = NARROWEST) -> list[int]:
    """The same widths, of which the widest are narrowed until all of them fit."""
    shared = list(widths)
    while sum(shared) > room and max(shared) > narrowest:
        shared[shared.index(max(shared))] -= 1
    return shared
