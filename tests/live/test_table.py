"""netlink/table.py: the real kernel's table."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from conntrackd.errors import UnavailableError
from conntrackd.flow import EventType
from conntrackd.netlink.decode import Decoder
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.table import Table, TableFill
from conntrackd.stats import Stats
from tests.faults.producer import CLIENT, SERVER, Producer, find_number, prepare, produce
from tests.live.network import inside, network

FLOWS = 1000  # several chunks of the kernel's


@pytest.fixture
def producer() -> Iterator[Producer]:
    with network() as net:
        prepare(net)
        with produce(net) as made:
            yield made


@pytest.mark.privileged
def test_every_flow_of_the_table_is_read_with_all_its_fields(producer: Producer) -> None:
    stats = Stats()
    with enter(producer.network.router):
        table = Table()
    with closing(table):
        producer.send(FLOWS)
        limit = int(inside(producer.network.router, "cat", "/proc/sys/net/netfilter/nf_conntrack_max"))
        assert table.measure() == TableFill(FLOWS, limit)
        for _ in range(2):  # the second reading finds the same as the first
            table.begin()
            chunks = list(iter(lambda: table.read(Decoder(stats)), None))
            flows = [flow for chunk in chunks for flow in chunk]
            numbers = sorted(find_number(flow.sport, flow.dport) for flow in flows)
            ends = {(socket.inet_ntoa(flow.src), socket.inet_ntoa(flow.dst)) for flow in flows}

            assert len(chunks) > 1
            assert numbers == list(range(FLOWS))
            assert ends == {(CLIENT, SERVER)}
            assert len({flow.id for flow in flows}) == FLOWS
            assert {flow.type for flow in flows} == {EventType.UPDATE}
        producer.forget()
        assert table.measure().entries == 0
        table.begin()
        assert table.read(Decoder(stats)) is None
    assert stats.events_malformed_total == 0


@pytest.mark.privileged
def test_who_may_not_read_the_table_is_told_so() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            with closing(Table()) as table:
                table.begin()
                table.read(Decoder(Stats()))
        except UnavailableError as error:
            status = 0 if error.message.startswith("the connection table cannot be read: ") else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
