"""Text for people: somebody's words quoted, and the known word that was meant."""

import os
from collections.abc import Iterable
from typing import Final

MAX_SHOWN: Final = 60  # characters of a wrong value that a message repeats


def find_near(word: str, known: Iterable[str]) -> str | None:
    """The nearest of the known words, if any is near: half of its letters are typed.

    The dashes of an option are no part of it: all have them in common.
    """
    from difflib import get_close_matches  # noqa: PLC0415  # memory; few words are wrong

    words = {name.lower().lstrip("-"): name for name in known}
    typed = word[:100].lower().lstrip("-")
    close = get_close_matches(typed, words, n=3, cutoff=0.6)
    near = [name for name in close if 2 * count_edits(typed, name) <= max(len(typed), len(name))]

    def measure(name: str) -> tuple[int, bool, int]:
        """Slips first; then who has not typed to the end, and who has typed as many letters, meant that."""
        return count_edits(typed, name), not name.startswith(typed), abs(len(name) - len(typed))

    best = min(near, key=measure, default=None)
    return None if best is None else words[best]


def count_edits(word: str, other: str) -> int:
    """Letters to insert, remove, replace or swap with their neighbour: `stauts` is one from `status`."""
    before, above = [0], list(range(len(other) + 1))
    for row, letter in enumerate(word, 1):
        here = [row]
        for column, wanted in enumerate(other, 1):
            edits = min(above[column] + 1, here[-1] + 1, above[column - 1] + (letter != wanted))
            if row > 1 and column > 1 and word[row - 2 : row] == wanted + other[column - 2]:
                edits = min(edits, before[column - 2] + 1)
            here.append(edits)
        before, above = above, here
    return above[-1]


def find_one_typo(word: str, known: Iterable[str]) -> str | None:
    """The known word that this one is but for one letter: too much, too little, wrong, or too early."""
    return next((name for name in known if _is_one_typo(word, name)), None)


def _is_one_typo(word: str, other: str) -> bool:
    if abs(len(word) - len(other)) > 1 or word == other:
        return False
    at = next((n for n, (one, two) in enumerate(zip(word, other, strict=False)) if one != two), -1)
    if at < 0:
        return True  # the longer one has one more at its end
    rest, wanted = word[at:], other[at:]
    swapped = rest[1:2] + rest[:1] + rest[2:]
    return wanted in (rest[1:], swapped) or wanted[1:] in (rest, rest[1:])


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest of the known words, empty when none is near."""
    near = find_near(word, known)
    return f"did you mean {near}?" if near else ""


def as_root(command: str) -> str:
    """A command for root, so that who reads it can paste it."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def quote(text: str) -> str:
    """Somebody's text in a message: cut short, and without characters that act on a terminal."""
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    inner = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
    return f"'{inner}'"
