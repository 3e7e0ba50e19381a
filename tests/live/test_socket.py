"""netlink/socket.py where others may send to it."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from conntrackd.flow import EventType
from conntrackd.netlink.constants import NETLINK_NETFILTER
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import SLOT_BYTES, EventSocket
from tests.live import traffic
from tests.live.network import TRACKING, Network, call_inside, network
from tests.messages import build_message
from tests.sinks.flows import make_flow

pytestmark = pytest.mark.privileged

MESSAGE = build_message(make_flow(7))


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built:
        built.load(TRACKING)
        with traffic.serve(built.server):
            yield built


def forge(port: int, messages: Sequence[bytes]) -> None:
    """From a process, with a port id of its own, straight to a socket."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        for each in messages:
            sock.sendto(each, (port, 0))


def test_what_a_process_sends_is_left_out_and_counted(net: Network) -> None:
    with enter(net.router):
        events = EventSocket.open(groups=EventType.NEW, buffer=1 << 20)
    with closing(events):
        port = socket.socket(fileno=os.dup(events.fileno()))
        with port:
            number = port.getsockname()[0]
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 2)
        call_inside(net.router, forge, number, [MESSAGE, bytes(1 << 15), MESSAGE])
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 3)
        batch = events.receive()

    assert batch is not None
    assert (len(batch.lengths), batch.forged) == (5, 3)
    assert [position // SLOT_BYTES for position in batch.positions] == [0, 1, 5, 6, 7]
