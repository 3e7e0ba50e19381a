"""netlink/socket.py: what comes in a batch, and what of it is made nothing."""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from conntrackd.flow import Flow
from conntrackd.netlink.decode import Decoder
from conntrackd.netlink.recording import write_batch
from conntrackd.netlink.socket import SLOT_BYTES, SLOTS, EventSocket
from conntrackd.stats import Stats
from tests.messages import attribute, build_message
from tests.sinks.flows import make_flow

MESSAGE = build_message(make_flow(7))


def fill(size: int) -> bytes:
    """A message of this length: what is not in the first 2 KiB of it is at the end."""
    message = MESSAGE + attribute(999, bytes(size - len(MESSAGE) - 4))
    return struct.pack("=I", len(message)) + message[4:]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, EventSocket]]:
    """A writing end, and events as if its datagrams were the kernel's: who sent them it cannot say."""
    writing, reading = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)  # room for a message in each slot
    with writing, closing(EventSocket(reading)) as events:
        yield writing, events


def receive(events: EventSocket, decoder: Decoder) -> list[Flow]:
    batch = events.receive()
    assert batch is not None
    return decoder.decode(batch.buffer, batch.positions, batch.lengths, batch.received_ns)


@pytest.mark.parametrize("size", [SLOT_BYTES + 4, 2 * SLOT_BYTES, 60_000, 1 << 16])
@pytest.mark.parametrize("place", [0, 1, SLOTS - 1])
def test_a_message_longer_than_its_slot_is_counted_and_is_not_read_into_the_next(
    pair: tuple[socket.socket, EventSocket], size: int, place: int
) -> None:
    writing, events = pair
    stats = Stats()
    decoder = Decoder(stats)
    for _ in range(2):  # the second time by layouts
        for number in range(SLOTS):
            writing.send(fill(size) if number == place else build_message(make_flow(number)))
        found = receive(events, decoder)
        assert [flow.id for flow in found] == [number for number in range(SLOTS) if number != place]

    assert stats.events_malformed_total == 2


def test_the_longest_that_fits_is_read(pair: tuple[socket.socket, EventSocket]) -> None:
    writing, events = pair
    writing.send(fill(SLOT_BYTES))

    assert [flow.id for flow in receive(events, Decoder(Stats()))] == [7]


def test_a_recording_leaves_out_what_did_not_fit(
    pair: tuple[socket.socket, EventSocket], tmp_path_factory: pytest.TempPathFactory
) -> None:
    writing, events = pair
    for each in (MESSAGE, fill(SLOT_BYTES + 4), MESSAGE):
        writing.send(each)
    batch = events.receive()
    assert batch is not None
    path = tmp_path_factory.mktemp("recording") / "a.nl"
    with path.open("wb") as file:
        assert write_batch(file, batch, 10) == 2

    assert path.read_bytes().count(MESSAGE) == 2
