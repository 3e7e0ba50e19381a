"""Rows 1 to 6: between the kernel and the daemon."""

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest

from conntrackd.checks import check_kernel
from conntrackd.config.read import read_config
from conntrackd.engine import Engine, EventBatch
from conntrackd.flow import EventType
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import EventSocket
from conntrackd.netlink.table import ConntrackTable
from conntrackd.units import render_size
from tests.bus.private import PrivateBus
from tests.faults.producer import compute_number
from tests.faults.rig import Rig
from tests.live.daemon import daemon
from tests.live.network import run

pytestmark = pytest.mark.privileged

PATIENCE_MS = 500


def test_row_01_a_stopped_reader_accounts_for_every_event_in_each_sink(rig: Rig) -> None:
    with rig.daemon("--conntrack.buffer", "16M") as running:
        running.wait_for_start()
        running.process.send_signal(signal.SIGSTOP)
        rig.producer.send(50_000)
        running.process.send_signal(signal.SIGCONT)
        rig.finish(running)

    verdict = rig.evaluate(1, "reader stopped, 50,000 flows into 16 MiB")
    assert verdict.lost > 0
    assert verdict.dropped == 0
    assert verdict.delivered + verdict.lost == 50_001


def test_row_02_a_burst_into_a_small_buffer_is_delivered_or_reported(rig: Rig) -> None:
    with rig.daemon("--conntrack.buffer", "2M") as running:
        running.wait_for_start()
        rig.producer.send(200_000)
        rig.finish(running)

    verdict = rig.evaluate(2, "200,000 flows at full speed into 2 MiB")
    assert verdict.delivered > 0
    assert rig.memory_kib < 128 << 10


def test_row_03_a_queue_that_was_full_and_is_half_drained_takes_500_more(rig: Rig, engine: Engine) -> None:
    batch = engine.open_batch()
    with enter(rig.producer.network.router):
        events = EventSocket.open(groups=EventType.NEW, buffer=1 << 20)
    with closing(events):
        rig.producer.send(5000)
        fill = events.measure()
        queued = 5000 - fill.drops
        drained: list[int] = []
        while len(drained) < queued // 2:
            drained += read_numbers(events, batch)
        rig.producer.send(500)
        rest = list(iter(lambda: read_numbers(events, batch), []))
        drops = events.measure().drops

    assert fill.drops > 0
    assert drained == list(range(len(drained)))
    assert queued // 2 <= len(drained) < queued
    assert [number for batch in rest for number in batch][-500:] == list(range(5000, 5500))
    assert drops == fill.drops


def read_numbers(events: EventSocket, batch: EventBatch) -> list[int]:
    """Of one batch; empty when there is none."""
    batch.receive(events.fileno(), PATIENCE_MS, 0)
    flows = [batch.describe(index) for index in range(len(batch))]
    return [compute_number(flow["sport"], flow["dport"]) for flow in flows]


# Root of a user namespace: all capabilities there, and none in the first one, which SO_RCVBUFFORCE asks for.
CONFINED = ["unshare", "--user", "--map-root-user", "--net", "--fork", "--kill-child"]
SEND_INSIDE = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"", ("127.0.0.1", 9))
"""


def test_row_04_a_buffer_that_is_refused_is_a_warning_with_its_real_size() -> None:
    start = [*CONFINED, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    real = render_size(int(Path("/proc/sys/net/core/rmem_max").read_text()))
    bus = PrivateBus()
    bus.start()
    try:
        arguments = ["--conntrack.activate", "--sink.stream.enable", "--bus.address", bus.address]
        with daemon(*arguments, prefix=start, CONNTRACKD_BUS_ENABLE="true") as running:
            running.wait_for_start()
            running.wait_for_words("receive buffer")
            running.wait_for_words("org.conntrackd1 is on")
            inner = (
                Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
                .read_text()
                .split()[0]
            )
            run(
                "nsenter",
                "-t",
                inner,
                "-U",
                "-n",
                "--preserve-credentials",
                sys.executable,
                "-c",
                SEND_INSIDE,
            )
            running.wait_for_events(1)
            with bus.connect() as client:
                findings = client.call("Doctor")[0]
            os.kill(int(inner), signal.SIGTERM)
            assert running.process.wait(20) == 0
    finally:
        bus.close()

    assert running.has_said(f"the receive buffer has {real} instead of 64M")
    assert any(f"the receive buffer has {real} instead of 64M" in str(finding) for finding in findings)


def test_row_05_in_reliable_mode_every_flow_ends_with_an_event_and_a_retry_is_no_loss(rig: Rig) -> None:
    rig.choose("stream", kind="DESTROY")
    with rig.daemon("--conntrack.reliable", "--conntrack.buffer", "16K") as running:
        running.wait_for_start()
        rig.producer.send(5000)
        running.process.send_signal(signal.SIGSTOP)
        rig.producer.forget()
        running.process.send_signal(signal.SIGCONT)
        rig.wait_for_law()
        rig.measure(running)
        assert running.stop() == 0

    verdict = rig.evaluate(5, "reliable: 5,000 flows flushed into 16 KiB, reader stopped")
    assert (verdict.delivered, verdict.lost) == (5000, 0)


def test_row_05_the_guard_gives_the_table_back_before_a_connection_is_refused(rig: Rig) -> None:
    limit = read_limit()
    first = int(limit * 0.45)
    more = limit - first + 5000
    rig.choose("stream", kind="DESTROY")
    with rig.daemon("--conntrack.reliable", "--conntrack.buffer", "16K") as running:
        running.wait_for_start()
        rig.producer.send(first)
        running.process.send_signal(signal.SIGSTOP)
        rig.producer.forget()
        held = count_entries(rig)
        # Together with those that are held for their DESTROY, more than the table has room for. The producer
        # makes sure that none of them is refused.
        rig.producer.send(more, rate=50_000)
        left = count_entries(rig)
        running.process.send_signal(signal.SIGCONT)
        running.wait_for_words("conntrack.reliable is off")
        rig.wait_for_law(alive=more)
        rig.producer.forget()
        assert running.stop() == 0

    assert held > first * 0.99
    assert left == more
    assert rig.tallies["stream"].accounted == first


def read_limit() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


def count_entries(rig: Rig) -> int:
    with enter(rig.producer.network.router), closing(ConntrackTable()) as table:
        return table.measure().entries


@pytest.mark.parametrize(("setting", "expected"), [(2, 0), (1, 1000)])
def test_row_06_flows_older_than_the_listener_end_with_an_event_where_the_kernel_is_asked_to(
    rig: Rig, setting: int, expected: int
) -> None:
    rig.choose("stream", kind="DESTROY")
    rig.producer.network.set("net.netfilter.nf_conntrack_events", setting)
    if setting == 2 and is_heard(rig):
        pytest.skip("somebody on this machine listens, in whichever namespace: there 2 does what 1 does")
    rig.producer.send(1000)
    with rig.daemon() as running:
        running.wait_for_start()
        with enter(rig.producer.network.router):
            findings = {
                item.check: item.message
                for item in check_kernel(Path("/"), None, read_config({}, {}, None, rig.directory))
            }
        rig.producer.forget()
        rig.producer.send(1)
        rig.producer.forget()
        rig.wait_for_number(rig.producer.sent - 1)
        assert running.stop() == 0
    rig.read()
    rig.producer.network.set("net.netfilter.nf_conntrack_events", 2)

    seen = rig.tallies["stream"].seen
    assert (len(seen), seen.total()) == (expected + 1, expected + 1)
    assert ("older than the daemon" in findings["events"]) == (setting == 2)


def is_heard(rig: Rig) -> bool:
    """Whether a flow that began when nobody listened here ends with an event."""
    rig.producer.send(1)
    with enter(rig.producer.network.router):
        events = EventSocket.open(groups=EventType.DESTROY, buffer=1 << 20)
    with closing(events):
        rig.producer.forget()
        return events.measure().used > 0
