"""netlink/table.py: the real kernel's table."""

import os
import socket
from contextlib import closing
from dataclasses import replace

import pytest

from conntrackd.engine import SLOTS, Engine
from conntrackd.errors import UnavailableError
from conntrackd.flow import ABSENT, EventType
from conntrackd.netlink import constants as c
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.table import CHUNK_BYTES, ConntrackTable, TableFill
from tests.engine.feed import ENGINES
from tests.faults.producer import CLIENT, SERVER, Producer, compute_number
from tests.live.network import inside
from tests.messages import attribute, build_tuple
from tests.sinks.flows import make_flow

CTA_USE = 11  # include/uapi/linux/netfilter/nfnetlink_conntrack.h
FLOWS = 1000  # several chunks of the kernel's


@pytest.mark.privileged
def test_every_flow_of_the_table_is_read_with_all_its_fields(producer: Producer, engine: Engine) -> None:
    batch = engine.open_batch()
    with enter(producer.network.router):
        table = ConntrackTable()
    with closing(table):
        producer.send(FLOWS)
        limit = int(inside(producer.network.router, "cat", "/proc/sys/net/netfilter/nf_conntrack_max"))
        assert table.measure() == TableFill(FLOWS, limit)
        for _ in range(2):  # the second reading finds the same as the first
            table.begin()
            flows, chunks = [], 0
            while table.read(batch):
                chunks += 1
                flows += [batch.describe(index) for index in range(len(batch))]
            numbers = sorted(compute_number(flow["sport"], flow["dport"]) for flow in flows)
            ends = {(socket.inet_ntoa(flow["src"]), socket.inet_ntoa(flow["dst"])) for flow in flows}

            assert chunks > 1
            assert numbers == list(range(FLOWS))
            assert ends == {(CLIENT, SERVER)}
            assert len({flow["id"] for flow in flows}) == FLOWS
            assert {flow["type"] for flow in flows} == {EventType.UPDATE}
        producer.forget()
        assert table.measure().entries == 0
        table.begin()
        assert not table.read(batch)


def test_a_chunk_of_the_smallest_flows_has_room_in_a_batch() -> None:
    """What ctnetlink_fill_info() writes of one without ports, and of a kernel without marks."""
    flow = replace(make_flow(1), protocol=253, sport=ABSENT, dport=ABSENT)
    numbers = [attribute(kind, bytes(4)) for kind in (c.CTA_STATUS, c.CTA_TIMEOUT, c.CTA_ID, CTA_USE)]
    tuples = [
        build_tuple(kind, flow, flow.src, flow.dst, (ABSENT, ABSENT))
        for kind in (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_REPLY)
    ]
    smallest = c.NLMSG_HDRLEN + c.NFGENMSG_LEN + len(b"".join((*tuples, *numbers)))

    assert CHUNK_BYTES // smallest == SLOTS


@pytest.mark.privileged
def test_who_may_not_read_the_table_gets_a_warning() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            with closing(ConntrackTable()) as table:
                table.begin()
                table.read(ENGINES[0].open_batch())
        except UnavailableError as error:
            status = 0 if error.message.startswith("the connection table cannot be read: ") else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
