"""What comes in a batch: slots, senders, waiting."""

import errno
import os
import socket
import struct
import threading
import time

import pytest

from conntrackd.engine import SLOT_BYTES, SLOTS, Engine, Received
from tests.engine.feed import ENGINE, PATIENCE_MS, QUEUE, RECEIVED_NS, pair
from tests.messages import attribute, build_message
from tests.sinks.flows import make_flow

MESSAGE = build_message(make_flow(7))


def fill(size: int) -> bytes:
    """A message of this length: what is not in the first 2 KiB of it is at the end."""
    message = MESSAGE + attribute(999, bytes(size - len(MESSAGE) - 4))
    return struct.pack("=I", len(message)) + message[4:]


@pytest.mark.parametrize("size", [SLOT_BYTES + 4, 2 * SLOT_BYTES, 60_000, 1 << 16])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_message_longer_than_its_slot_is_counted_and_is_not_read_into_the_next(
    engine: Engine, size: int, place: int
) -> None:
    batch = engine.open_batch()
    for _ in range(2):
        with pair() as (one, other):
            for number in range(5):
                other.send(fill(size) if number == place else build_message(make_flow(number)))
            received = Received(*batch.receive(one.fileno(), PATIENCE_MS, 0))
        found = [batch.describe(index)["id"] for index in range(len(batch))]

        assert found == [number for number in range(5) if number != place]
        assert (received.datagrams, received.malformed, received.forged) == (5, 1, 0)


def test_the_longest_that_fits_is_read(engine: Engine) -> None:
    batch = engine.open_batch()
    with pair() as (one, other):
        other.send(fill(SLOT_BYTES))
        received = Received(*batch.receive(one.fileno(), PATIENCE_MS, 0))

    assert (len(batch), received.malformed) == (1, 0)


def test_nothing_in_time_is_no_batch(engine: Engine) -> None:
    batch = engine.open_batch()
    batch.load(MESSAGE, 0, RECEIVED_NS)
    with pair() as (one, _):
        received = Received(*batch.receive(one.fileno(), 1, 4000))

    assert (received.datagrams, len(batch)) == (0, 0)


def test_a_batch_begins_with_the_first_event_and_has_what_came_until_it_was_read(engine: Engine) -> None:
    """Those of the time after a batch of several are the next one."""
    batch = engine.open_batch()
    with pair() as (one, other):
        counts = []
        other.send(MESSAGE)
        other.send(MESSAGE)
        begin = time.monotonic()  # before the first read, from which on the gathering counts
        counts.append(batch.receive(one.fileno(), PATIENCE_MS, 50_000)[0])
        sender = threading.Thread(target=lambda: [other.send(MESSAGE) for _ in range(3)])
        sender.start()
        counts.append(batch.receive(one.fileno(), PATIENCE_MS, 50_000)[0])
        sender.join()

    assert counts == [2, 3]
    assert time.monotonic() - begin >= 0.05


def measure_gathering(gather_us: int) -> float:
    """Seconds for which it waits after ten that came all but at once, with two more there."""
    batch = ENGINE.open_batch()
    with pair() as (one, other):
        for count in (1, QUEUE):
            for _ in range(count):
                other.send(MESSAGE)
            assert batch.receive(one.fileno(), PATIENCE_MS, 0)[0] == count
        other.send(MESSAGE)
        other.send(MESSAGE)
        begin = time.monotonic()
        assert batch.receive(one.fileno(), PATIENCE_MS, gather_us)[0] == 2
        return time.monotonic() - begin


def test_where_very_many_come_they_are_not_gathered_for_the_whole_time() -> None:
    """What has queued for long is no longer in a cache. One round may be held up by other work, not each."""
    gather_us = 500_000
    waited = (measure_gathering(gather_us) for _ in range(20))

    assert any(seconds < gather_us / 1e6 for seconds in waited)


def test_a_socket_that_is_gone_is_an_error(engine: Engine) -> None:
    batch = engine.open_batch()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.close(descriptor)

    with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is what matters
        batch.receive(descriptor, 1, 0)

    assert caught.value.errno == errno.EBADF


@pytest.mark.privileged
def test_what_a_process_sends_is_forged_and_not_an_event(engine: Engine) -> None:
    batch = engine.open_batch()
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK) as one,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK) as other,
    ):
        one.bind((0, 0))
        other.bind((0, 0))
        for _ in range(3):
            other.sendto(MESSAGE, (one.getsockname()[0], 0))
        received = Received(*batch.receive(one.fileno(), PATIENCE_MS, 0))

    assert (received.datagrams, received.forged, received.malformed, len(batch)) == (3, 3, 0, 0)


def test_no_more_is_loaded_than_there_are_slots(engine: Engine) -> None:
    batch = engine.open_batch()
    messages = MESSAGE * (SLOTS + 5)

    assert batch.load(messages, 0, RECEIVED_NS) == (SLOTS * len(MESSAGE), SLOTS, 0)
    assert batch.load(messages, SLOTS * len(MESSAGE), RECEIVED_NS) == (len(messages), 5, 0)
    assert batch.load(messages, len(messages), RECEIVED_NS) == (len(messages), 0, 0)
