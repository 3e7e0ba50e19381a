"""Somebody's words in a message, and the word that was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.text import count_edits, find_near, find_one_typo, quote


@given(st.text())
def test_a_quoted_text_is_short_and_acts_on_no_terminal(text: str) -> None:
    quoted = quote(text)

    assert quoted.isprintable()
    assert quote("x" * 1000) == f"'{'x' * 60}...'"


@given(st.text("ABC_", max_size=6), st.text("ABC_", max_size=6))
def test_one_typo_is_one_key_too_much_too_little_wrong_or_too_early(word: str, other: str) -> None:
    def vary(text: str) -> set[str]:
        less = {text[:n] + text[n + 1 :] for n in range(len(text))}
        wrong = {text[:n] + char + text[n + 1 :] for n in range(len(text)) for char in "ABC_"}
        early = {text[:n] + text[n : n + 2][::-1] + text[n + 2 :] for n in range(len(text) - 1)}
        return less | wrong | early

    expected = word != other and (other in vary(word) or word in vary(other))
    assert (find_one_typo(word, [other]) == other) == expected


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("stauts", "status"),
        ("stast", "stats"),
        ("stat", "stats"),
        ("statu", "status"),
        ("satus", "status"),
        ("STATS", "stats"),
        ("reload-fliter", "reload-filter"),
        ("zzz", None),
    ],
)
def test_the_nearest_word_is_that_of_the_fewest_slips_of_the_fingers(word: str, meant: str | None) -> None:
    assert find_near(word, ["stats", "status", "reload", "reload-filter", "tail"]) == meant


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--sinse", "--since"),
        ("--json", None),  # the dashes and two letters are what --since has, too
        ("--lines", None),
        ("--until", "--until"),
        ("--f", "-f"),
    ],
)
def test_an_option_is_near_by_its_letters(word: str, meant: str | None) -> None:
    assert find_near(word, ["-f", "--since", "--until"]) == meant


@pytest.mark.parametrize(
    ("word", "other", "edits"),
    [("", "", 0), ("", "ab", 2), ("ab", "ba", 1), ("ca", "abc", 3), ("abc", "abd", 1)],
)
def test_edits_are_counted_with_neighbours_that_change_places(word: str, other: str, edits: int) -> None:
    assert count_edits(word, other) == count_edits(other, word) == edits
