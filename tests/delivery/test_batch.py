"""Batches: what is left of one, and what it is on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.delivery.batch import Batch, pack_batch, unpack_batch
from conntrackd.flow import ABSENT, Lost
from conntrackd.render.rendered import Rendered, join
from tests.delivery.fakes import FAKE, make_events, show
from tests.render.test_rendered import rendered

losses = st.builds(
    Lost, st.integers(ABSENT, 1 << 40), st.integers(0, 1 << 62), st.integers(0, 1 << 62), st.text(), st.text()
)


@given(st.lists(rendered(), min_size=1, max_size=4))
def test_what_is_packed_is_unpacked(parts: list[Rendered]) -> None:
    unpacked = unpack_batch(pack_batch(Batch.of(parts)))

    assert unpacked == Batch.of([join(parts)])
    assert (unpacked.events, unpacked.oldest) == (sum(part.events for part in parts), parts[0].time)


@given(losses)
def test_a_loss_is_the_same_after_a_restart(lost: Lost) -> None:
    assert unpack_batch(pack_batch(Batch.of_loss(lost))) == Batch.of_loss(lost)


@given(
    st.binary(max_size=40)
    | st.binary(max_size=40).map(b"E".__add__)
    | st.binary(max_size=40).map(b"L".__add__)
)
def test_what_was_never_packed_is_distinguished_from_what_was(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack_batch(data)


@pytest.mark.parametrize("count", range(6))
def test_what_is_left_is_all_behind_what_was_accepted(count: int) -> None:
    batch = Batch.of([make_events(2), make_events(1, 2), make_events(3, 3)])

    left = batch.skip(count)

    assert show(left.parts) == [*range(count, 6)]
    assert left.events == 6 - count


def test_a_loss_is_rendered_by_the_sink_that_writes_it() -> None:
    lost = Lost(7, 1, 2, "kernel")

    assert Batch.of_loss(lost).render(FAKE) == (FAKE.render_loss(lost),)
    assert Batch.of([make_events(2)]).render(FAKE) == (make_events(2),)
