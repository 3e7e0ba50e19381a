"""The queue: order, joining, and LOST records that cannot make it grow."""

from conntrackd.flow import Lost
from conntrackd.sinks.queue import Queue, Waiting
from tests.sinks.flows import make_flows


def test_small_batches_are_joined_up_to_the_size_that_is_asked_for() -> None:
    queue = Queue()
    for first in range(0, 12, 3):
        queue.append(make_flows(3, first), 3, now=float(first))

    taken = [queue.take(7) for _ in range(3)]

    assert taken == [Waiting(list(make_flows(6)), 6, 0.0), Waiting(list(make_flows(6, 6)), 6, 6.0), None]
    assert queue.events == 0


def test_a_batch_is_never_cut_even_when_it_is_larger() -> None:
    queue = Queue()
    queue.append(make_flows(5), 5, now=0.0)

    taken = queue.take(2)

    assert taken is not None
    assert taken.events == 5


def test_the_list_of_the_reader_is_never_changed() -> None:
    queue = Queue()
    shared = make_flows(2)
    queue.append(shared, 2, now=0.0)
    queue.append_lost(Lost(1, 1, 2, "kernel"), now=0.0)
    queue.append(make_flows(1, 2), 1, now=0.0)

    queue.take(2)
    queue.take(10)

    assert shared == make_flows(2)


def test_losses_alone_do_not_make_the_queue_grow() -> None:
    queue = Queue()
    queue.append(make_flows(1), 1, now=0.0)
    for moment in range(1000):
        queue.append_lost(Lost(2, moment, moment + 1, "kernel"), now=0.0)
        queue.append_lost(Lost(1, moment, moment + 1, "fake", "queue"), now=0.0)

    taken = queue.take(10)

    assert taken is not None
    assert taken.batch[1:] == [Lost(2000, 0, 1000, "kernel"), Lost(1000, 0, 1000, "fake", "queue")]


def test_what_is_put_back_is_the_next_to_be_taken() -> None:
    queue = Queue()
    queue.append(make_flows(2), 2, now=0.0)
    queue.append(make_flows(2, 2), 2, now=1.0)
    taken = queue.take(2)
    assert taken is not None
    queue.put_back(taken)

    again = queue.take(4)

    assert again is not None
    assert again.batch == make_flows(4)


def test_the_oldest_record_of_a_batch_tells_its_age() -> None:
    queue = Queue()
    queue.append_lost(Lost(1, 5, 9, "kernel"), now=0.0)

    head = queue.head

    assert head is not None
    assert head.oldest == 5
