"""table_guard.py: who watches the table while the kernel keeps flows for a reader."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from conntrackd.errors import ResourceError
from conntrackd.flow import EventType
from conntrackd.netlink.constants import NETLINK_BROADCAST_ERROR, SOL_NETLINK
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import EventSocket
from conntrackd.netlink.table import ConntrackTable
from conntrackd.source.table_guard import RELEASED, RELIABLE, Guard
from tests.bus.private import wait_until
from tests.conftest import list_children, list_descriptors
from tests.faults.producer import Producer, prepare, produce
from tests.live.network import network

pytestmark = pytest.mark.privileged


@pytest.fixture
def producer() -> Iterator[Producer]:
    with network() as net:
        prepare(net)
        with produce(net) as made:
            yield made


@pytest.fixture
def events(producer: Producer) -> Iterator[EventSocket]:
    with enter(producer.network.router):
        opened = EventSocket.open(groups=EventType.DESTROY, buffer=16 << 10)
    with closing(opened):
        yield opened


@pytest.fixture
def table(producer: Producer) -> Iterator[ConntrackTable]:
    with enter(producer.network.router):
        opened = ConntrackTable()
    with closing(opened):
        yield opened


def is_reliable(events: EventSocket) -> bool:
    return bool(events._socket.getsockopt(SOL_NETLINK, NETLINK_BROADCAST_ERROR))


def test_there_is_nothing_reliable_where_there_can_be_no_guard(
    events: EventSocket, table: ConntrackTable, mocker: MockerFixture
) -> None:
    mocker.patch("os.fork", side_effect=BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
    before = list_descriptors()

    with pytest.raises(ResourceError, match=r"conntrack\.reliable"):
        Guard(events, table)

    assert not is_reliable(events)
    assert list_descriptors() == before


def test_a_flow_is_kept_for_a_reader_until_the_guard_is_closed(
    producer: Producer, events: EventSocket, table: ConntrackTable
) -> None:
    guard = Guard(events, table)
    try:
        producer.send(1000)
        producer.forget()
        kept = table.measure().entries

        assert is_reliable(events)
        assert 0 < kept < 1000
        assert guard.read_release() == (RELIABLE, 0)
        assert not guard.has_ended()
    finally:
        guard.close()
    wait_until(lambda: table.measure().entries == 0)
    state, drops = guard.read_release()

    assert not is_reliable(events)
    assert state == RELEASED
    # Each that was kept is a drop now, and none of them came before.
    assert (events.measure().drops - drops) == kept


def list_held(process: int) -> set[int]:
    """Its descriptors but for the standard ones."""
    return {int(number) for number in os.listdir(f"/proc/{process}/fd")} - {0, 1, 2}


def test_the_guard_holds_nothing_but_what_it_needs(
    events: EventSocket, table: ConntrackTable, tmp_path: Path
) -> None:
    (tmp_path / "other").touch()
    with (tmp_path / "other").open():
        before, children = list_descriptors(), list_children()
        guard = Guard(events, table)
        try:
            (child,) = list_children() - children
            wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "conntrack-guard\n")
            # By then it may not have closed that file.
            wait_until(lambda: len(list_held(child)) == 3)
            held = list_held(child)
        finally:
            guard.close()

    assert held >= {events.fileno(), table.fileno()}
    assert list_descriptors() < before
    assert list_children() == children


def test_a_guard_that_is_gone_takes_the_reliable_mode_with_it(
    events: EventSocket, table: ConntrackTable
) -> None:
    children = list_children()
    guard = Guard(events, table)
    try:
        (child,) = list_children() - children
        wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "conntrack-guard\n")
        os.kill(child, signal.SIGTERM)  # which is meant for the daemon
        assert not guard.has_ended()
        os.kill(child, signal.SIGKILL)
        wait_until(guard.has_ended)

        assert guard.read_release()[0] == RELEASED
        assert not is_reliable(events)
    finally:
        guard.close()


def test_the_guard_outlives_a_daemon_that_is_killed_and_gives_the_table_back(
    events: EventSocket, table: ConntrackTable
) -> None:
    daemon = os.fork()
    if daemon == 0:
        Guard(events, table)
        signal.pause()
    wait_until(lambda: is_reliable(events))
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)

    wait_until(lambda: not is_reliable(events))
