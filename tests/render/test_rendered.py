"""Rendered: cut and joined without a loss, in any place, and the same after a disk."""

from array import array
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.render.rendered import Rendered, Stream, count_ends, join, pack, shift, unpack
from tests.rendering import list_texts, make_rendered

texts = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=20)
moments = st.integers(0, 2**63)


@st.composite
def rendered(draw: st.DrawFn, by_stream: bool | None = None) -> Rendered:
    """Any texts, with or without streams."""
    chosen = draw(texts)
    time = draw(moments)
    if not (draw(st.booleans()) if by_stream is None else by_stream):
        return make_rendered(chosen, time)
    streams, left = [], len(chosen)
    while left:
        count = draw(st.integers(1, left))
        streams.append(
            Stream(draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(0, 255)), count, draw(st.booleans()))
        )
        left -= count
    times = array("Q", draw(st.lists(moments, min_size=len(chosen), max_size=len(chosen))))
    return make_rendered(chosen, times[0], tuple(streams), times.tobytes())


def list_labels(events: Rendered) -> list[tuple[int, int, bool]]:
    """The stream of each event."""
    return [
        (stream.type, stream.protocol, stream.is_replay)
        for stream in events.streams
        for _ in range(stream.events)
    ]


@given(rendered(), st.data())
def test_two_halves_are_the_whole_wherever_it_is_cut(whole: Rendered, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, whole.events))

    first, second = whole.split(count)

    assert (list_texts(first), list_texts(second)) == (list_texts(whole)[:count], list_texts(whole)[count:])
    assert (first.events, second.events) == (count, whole.events - count)
    assert list_labels(first) + list_labels(second) == list_labels(whole)
    assert first.moments + second.moments == whole.moments
    assert first.time == whole.time
    if second.moments:
        assert second.time == array("Q", whole.moments)[count]


@given(
    st.lists(rendered(by_stream=False), min_size=1, max_size=5)
    | st.lists(rendered(by_stream=True), min_size=1, max_size=5)
)
def test_what_is_joined_is_all_of_it_in_order(parts: list[Rendered]) -> None:
    whole = join(parts)

    assert list_texts(whole) == [text for part in parts for text in list_texts(part)]
    assert (whole.events, whole.time) == (sum(part.events for part in parts), parts[0].time)
    assert list_labels(whole) == [label for part in parts for label in list_labels(part)]
    assert whole.moments == b"".join(part.moments for part in parts)


@given(rendered())
def test_what_is_packed_is_unpacked(events: Rendered) -> None:
    assert unpack(pack(events)) == events


@given(rendered(), st.data())
def test_what_is_cut_short_is_no_packed_text(events: Rendered, data: st.DataObject) -> None:
    packed = pack(events)

    with pytest.raises(ValueError, match=r"."):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(st.binary())
def test_nothing_else_is_a_packed_text(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(data)


@given(rendered(), st.data())
def test_what_is_chosen_is_in_its_order_and_stream(whole: Rendered, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=whole.events, max_size=whole.events))

    found = whole.select(chosen)

    assert list_texts(found) == [
        text for text, is_chosen in zip(list_texts(whole), chosen, strict=True) if is_chosen
    ]
    assert found.events == sum(chosen)
    if whole.streams:
        labels = zip(list_labels(whole), chosen, strict=True)
        times = zip(array("Q", whole.moments), chosen, strict=True)
        assert list_labels(found) == [label for label, is_chosen in labels if is_chosen]
        assert list(array("Q", found.moments)) == [time for time, is_chosen in times if is_chosen]


@given(rendered(by_stream=True))
def test_each_stream_has_its_texts(whole: Rendered) -> None:
    assert [(stream, bytes(text)) for stream, text in whole.list_streams()] == [
        (stream, b"".join(list_texts(whole)[end - stream.events : end]))
        for stream, end in zip(
            whole.streams, accumulate(stream.events for stream in whole.streams), strict=True
        )
    ]


@given(rendered())
def test_events_are_counted_by_the_bytes_that_are_there(events: Rendered) -> None:
    sizes = range(len(events.text) + 2)

    found = [events.count_within(size) for size in sizes]

    ends = array("I", events.ends)
    assert found == [sum(end <= size for end in ends) for size in sizes]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20), st.integers(0, 2**31))
def test_ends_are_shifted_there_and_back(ends: list[int], offset: int) -> None:
    data = array("I", ends).tobytes()

    there = shift(data, offset)

    assert list(array("I", there)) == [end + offset for end in ends]
    assert shift(there, -offset) == data


def test_a_loss_is_one_text_and_no_event() -> None:
    loss = Rendered(b"LOST", array("I", (4,)).tobytes(), 0, 7)

    assert (loss.count_within(4), count_ends(loss.ends, 4), loss.get_end(0)) == (0, 1, 0)
    assert unpack(pack(loss)) == loss
    assert join([loss]) == loss
