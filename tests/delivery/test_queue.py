"""The queue: order, joining, and LOST records that stay apart and cannot make it grow."""

from conntrackd.delivery.batch import Batch
from conntrackd.delivery.queue import Queue
from conntrackd.flow import ABSENT, Lost
from tests.delivery.fakes import make_events


def test_small_batches_are_joined_up_to_the_size_that_is_asked_for() -> None:
    queue = Queue()
    events = [make_events(3, first) for first in range(0, 12, 3)]
    for moment, part in enumerate(events):
        queue.append(part, now=float(moment))

    taken = [queue.take(7) for _ in range(3)]

    assert taken == [Batch.of(events[:2]), Batch.of(events[2:]), None]
    assert queue.events == 0


def test_a_batch_is_never_cut_even_when_it_is_larger() -> None:
    queue = Queue()
    queue.append(make_events(5), now=0.0)

    taken = queue.take(2)

    assert taken is not None
    assert taken.events == 5


def test_what_is_taken_ends_at_a_loss_which_is_taken_alone() -> None:
    queue = Queue()
    lost = Lost(1, 1, 2, "kernel")
    queue.append(make_events(2), now=0.0)
    queue.append_lost(lost, now=0.0)
    queue.append(make_events(1, 2), now=0.0)

    taken = [queue.take(10) for _ in range(4)]

    assert taken == [Batch.of([make_events(2)]), Batch.of_loss(lost), Batch.of([make_events(1, 2)]), None]


def test_losses_that_have_no_place_are_passed_and_joined() -> None:
    queue = Queue()
    events = [make_events(2, first) for first in range(0, 8, 2)]
    for moment, part in enumerate(events):
        queue.append(part, now=float(moment))
        queue.append_lost(Lost(3, moment, moment + 1, "kernel"), now=float(moment))
        queue.append_lost(Lost(1, moment, moment + 1, "fake", "queue"), now=float(moment))

    first = queue.take(6, past_losses=True)
    came = queue.head.came if queue.head else None
    others = [queue.take(6, past_losses=True) for _ in range(6)]

    assert first == Batch.of(events[:3])
    assert came == 0.0
    assert others == [
        Batch.of_loss(Lost(9, 0, 3, "kernel")),
        Batch.of_loss(Lost(3, 0, 3, "fake", "queue")),
        Batch.of(events[3:]),
        Batch.of_loss(Lost(3, 3, 4, "kernel")),
        Batch.of_loss(Lost(1, 3, 4, "fake", "queue")),
        None,
    ]
    assert queue.events == 0


def test_losses_alone_do_not_make_the_queue_grow() -> None:
    queue = Queue()
    queue.append(make_events(1), now=0.0)
    for moment in range(1000):
        queue.append_lost(Lost(2, moment, moment + 1, "kernel"), now=0.0)
        queue.append_lost(Lost(1, moment, moment + 1, "fake", "queue"), now=0.0)

    taken = [queue.take(10) for _ in range(4)]

    assert taken == [
        Batch.of([make_events(1)]),
        Batch.of_loss(Lost(2000, 0, 1000, "kernel")),
        Batch.of_loss(Lost(1000, 0, 1000, "fake", "queue")),
        None,
    ]


def test_a_loss_without_a_number_is_not_joined_with_one_that_has_one() -> None:
    queue = Queue()
    for count in (3, ABSENT, 4, ABSENT):
        queue.append_lost(Lost(count, 1, 2, "tracking"), now=0.0)
        queue.hold_lost(Lost(count, 1, 2, "tracking"))

    held, waiting = queue.pop_held(), queue.pop_losses()

    assert held == waiting == [Lost(7, 1, 2, "tracking"), Lost(ABSENT, 1, 2, "tracking")]
    assert queue.take(1) is None


def test_what_is_put_back_is_the_next_to_be_taken() -> None:
    queue = Queue()
    for first in (0, 2, 4):
        queue.append(make_events(2, first), now=float(first))
    taken = queue.take(4)
    assert taken is not None
    queue.put_back(taken, 0.0)
    events = queue.events

    again = queue.take(6)

    assert again == Batch.of([make_events(2), make_events(2, 2), make_events(2, 4)])
    assert events == 6


def test_a_loss_that_is_put_back_is_the_next_to_be_taken() -> None:
    queue = Queue()
    lost = Lost(1, 1, 2, "kernel")
    queue.append_lost(lost, now=0.0)
    queue.append(make_events(2), now=0.0)
    taken = queue.take(4)
    assert taken is not None
    queue.put_back(taken, 0.0)

    assert queue.take(4) == Batch.of_loss(lost)


def test_the_oldest_record_of_a_batch_gives_its_age() -> None:
    queue = Queue()
    queue.append_lost(Lost(1, 5, 9, "kernel"), now=0.0)

    head = queue.head

    assert head is not None
    assert head.oldest == 5


def test_clearing_forgets_the_events_and_no_loss() -> None:
    queue = Queue()
    for first in range(3):
        queue.append(make_events(1, first), now=0.0)
        queue.append_lost(Lost(2, first, 9, "kernel"), now=0.0)
    queue.clear(1.0)

    assert queue.events == 0
    assert [queue.take(10), queue.take(10)] == [Batch.of_loss(Lost(6, 0, 9, "kernel")), None]
