"""The targets of `make fuzz` without atheris: the kept corpus, and mutations of it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.seeds import CORPUS, list_seeds, list_words
from fuzz.targets import TARGETS, cut_datagrams, join_datagrams

KEPT = {target: sorted((CORPUS / target).iterdir()) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_neither_the_corpus_nor_what_the_project_holds_now_shows_a_fault(target: str) -> None:
    inputs = [path.read_bytes() for path in KEPT[target]]
    seeds = [data for name, data in list_seeds() if name == target]

    assert len(inputs) >= 5
    assert len(seeds) >= 5
    for data in [*inputs, *seeds]:
        TARGETS[target](data)


@st.composite
def mutations(draw: st.DrawFn, target: str) -> bytes:
    """An input of the corpus with a few stretches of bytes taken out, put in, or both."""
    data = draw(st.sampled_from(KEPT[target]).map(Path.read_bytes))
    words = [word.encode() for word in list_words(target)]
    inserted = st.binary(max_size=8) | (st.sampled_from(words) if words else st.nothing())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        removed = draw(st.integers(0, 12))
        data = data[:place] + draw(inserted) + data[place + removed :]
    return data


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_input_is_read_or_refused_with_our_own_words(target: str) -> None:
    @settings(max_examples=400)
    @given(mutations(target))
    def check(data: bytes) -> None:
        TARGETS[target](data)

    check()


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=100)
@given(data=st.binary(max_size=300))
def test_random_input_is_read_or_refused_with_our_own_words(target: str, data: bytes) -> None:
    TARGETS[target](data)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_datagrams_are_cut_as_they_were_joined(datagrams: list[bytes]) -> None:
    assert cut_datagrams(join_datagrams(*datagrams)) == datagrams
