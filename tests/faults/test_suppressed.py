"""A limit behind a socket that overflows: what is logged, suppressed and lost is what was sent."""

import signal
from collections.abc import Iterator

import pytest

from tests.bus.private import PrivateBus
from tests.faults.producer import Producer, produce
from tests.live.control import ask
from tests.live.daemon import daemon, settle
from tests.live.network import Network

pytestmark = pytest.mark.privileged
FLOWS = 150_000
KINDS = ("NEW", "SUPPRESSED", "LOST")
LIMIT = "log protocol UDP limit 1000/second burst 100 per destination"


@pytest.fixture
def producer(net: Network) -> Iterator[Producer]:
    with produce(net) as made:
        made.forget()
        yield made


def test_of_a_backlog_read_at_full_speed_logged_suppressed_and_lost_are_what_was_sent(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped and let go: the kernel's queue is then read as fast as the core can, 64 MiB of it."""
    with PrivateBus() as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        arguments = ["--conntrack.netns", producer.network.router, "--conntrack.buffer", "64M"]
        arguments += ["--filter", f"{LIMIT}\ndrop any", "--sink.stream.enable", "--bus.address", bus.address]
        with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as running:
            running.wait(lambda: any("org.conntrackd1 is on" in line for line in running.said), "the bus")
            running.process.send_signal(signal.SIGSTOP)
            producer.send(FLOWS)
            running.process.send_signal(signal.SIGCONT)
            settle(running, 1.5)
            stats, shown = ask(capsys, "stats"), ask(capsys, "filter", "show")
            assert running.stop() == 0

    found = {kind: [event for event in running.events if event["type"] == kind] for kind in KINDS}
    counters = stats["counters"]
    suppressed = sum(record["suppressed"] for record in found["SUPPRESSED"])
    lost = sum(record["lost"] for record in found["LOST"])
    assert sum(map(len, found.values())) == len(running.events)
    assert len(found["NEW"]) + suppressed == counters["events_received_total"] == shown["matches"][1]
    assert counters["events_received_total"] + lost == FLOWS
    assert suppressed == shown["suppressed"][1] > len(found["NEW"]) > 0
