"""netlink/socket.py where others may send to it."""

import os
import socket
from collections.abc import Sequence
from contextlib import closing

import pytest

from conntrackd.engine import Engine, Received
from conntrackd.flow import EventType
from conntrackd.netlink.constants import NETLINK_NETFILTER
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import EventSocket
from tests.engine.feed import PATIENCE_MS
from tests.live import traffic
from tests.live.network import Network, call_inside
from tests.messages import build_message
from tests.sinks.flows import make_flow

pytestmark = pytest.mark.privileged

MESSAGE = build_message(make_flow(7))


def forge(port: int, messages: Sequence[bytes]) -> None:
    """From a process, with a port id of its own: to all that hear of new connections, and straight to one."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        for message in messages:
            # Beside the group it has to go to one socket, or the kernel would get it as a request.
            sock.sendto(message, (sock.getsockname()[0], EventType.NEW))
        with pytest.raises(ConnectionRefusedError):
            sock.sendto(messages[0], (port, 0))


def test_what_a_process_sends_is_left_out_and_counted(net: Network, engine: Engine) -> None:
    with enter(net.router):
        events = EventSocket.open(groups=EventType.NEW, buffer=1 << 20)
    with closing(events):
        port = socket.socket(fileno=os.dup(events.fileno()))
        with port:
            number = port.getsockname()[0]
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 2)
        call_inside(net.router, forge, number, [MESSAGE, bytes(1 << 15), MESSAGE])
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 3)
        batch = engine.open_batch()
        received = Received(*batch.receive(events.fileno(), PATIENCE_MS, 0))

    assert (received.datagrams, received.forged, received.malformed) == (8, 3, 0)
    assert [batch.describe(index)["dport"] for index in range(len(batch))] == [8080] * 5
