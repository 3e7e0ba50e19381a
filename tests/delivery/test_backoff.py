"""Back-off: values in, values out."""

from conntrackd.delivery.backoff import LONGEST_RETRY_AFTER, Backoff


def test_the_bound_doubles_up_to_its_maximum_and_starts_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 10.0, choose=lambda low, high: high)

    delays = [backoff.next_delay() for _ in range(6)]
    backoff.reset()

    assert delays == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert backoff.next_delay() == 1.0


def test_the_jitter_is_full() -> None:
    asked: list[tuple[float, float]] = []

    def choose(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    backoff = Backoff(1.0, 10.0, choose=choose)

    assert [backoff.next_delay() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert asked == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0)]


def test_no_attempt_is_made_before_the_server_allows_it() -> None:
    backoff = Backoff(1.0, 10.0, choose=lambda low, high: high / 2)

    assert backoff.next_delay(retry_after=30.0) == 30.5


def test_a_server_cannot_silence_a_sink_for_a_day_or_into_the_past() -> None:
    backoff = Backoff(1.0, 10.0, choose=lambda low, high: 0.0)

    assert backoff.next_delay(retry_after=86_400.0) == LONGEST_RETRY_AFTER
    assert backoff.next_delay(retry_after=-5.0) == 0.0
