"""A limit with the real kernel: what is logged and what is reported are what was sent, through reloads."""

import re
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.bus.private import PrivateBus
from tests.faults.producer import Producer
from tests.live.control import ask, count_new, run_on_bus, start_flood
from tests.live.daemon import Running, daemon, settle
from tests.live.network import Network, inside
from tests.sinks.loki_server import Store, run_server

pytestmark = pytest.mark.privileged
FLOWS = 6000
BEYOND = 1000  # twice, before the end
CONFIGURATION = """\
conntrack: {{events: new, protocols: udp, netns: {netns}, readers: 2, kernel_filter: {by_kernel}}}
filter: [log destination port 9 limit 100/second burst 400 per source, drop any]
sink:
  stream: {{enable: true}}
  loki:
    enable: true
    address: http://127.0.0.1:{loki}
    batch_wait: 50ms
    filter: log any limit 10/second burst 100
"""


def count_held(records: Iterable[Mapping[str, object]]) -> Counter[str]:
    """What records say was suppressed, by the setting of the rule."""
    found = Counter[str]()
    for record in records:
        found[str(record["where"])] += int(str(record["suppressed"]))
    return found


def count_reports(running: Running) -> int:
    return sum(event["type"] == "SUPPRESSED" for event in running.events)


def test_logged_and_suppressed_are_what_was_sent(
    net: Network, bus: PrivateBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "conntrack", "-F")
    store, path = Store(), tmp_path / "conntrackd.yaml"
    with run_server(store) as server:
        texts = [
            CONFIGURATION.format(netns=net.router, loki=server.port, by_kernel=by_kernel)
            for by_kernel in ("true", "false")
        ]
        path.write_text(texts[0])
        arguments = ["--config", str(path), "--bus.address", bus.address]
        with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as running:
            running.wait_for_words("org.conntrackd1 is on")
            start_flood(net, 10_000, FLOWS // 2).join()
            settle(running)
            shown = ask(capsys, "filter", "show")
            own = ask(capsys, "filter", "show", "--sink", "loki")
            before = count_new(running)
            thread, changes = start_flood(net, 10_000 + FLOWS // 2, FLOWS // 2), 0
            while thread.is_alive() or changes < 2:
                changes += 1
                ask(capsys, "reload")
            settle(running)
            stats, until_then = ask(capsys, "stats"), count_new(running)
            reported = count_reports(running)
            start_flood(net, 20_000, BEYOND).join()
            running.wait(lambda: count_reports(running) > reported, "a report")
            # The next one is a second away: of these the end has to report.
            start_flood(net, 20_000 + BEYOND, BEYOND).join()
            assert running.stop() == 0
    received = re.search(r"received (\d+) events, lost 0", running.said[-1])

    assert received is not None
    logged = [event for event in running.events if event["type"] == "NEW"]
    held = [event for event in running.events if event["type"] == "SUPPRESSED"]
    entries = [dict(entry.metadata) for entry in store.query(type="NEW")]
    reports = [dict(entry.metadata) for entry in store.query(type="SUPPRESSED")]
    assert len(logged) + len(held) == len(running.events), "nothing is lost"
    assert stats["counters"]["events_received_total"] == FLOWS
    assert len(logged) + count_held(held)["filter"] == int(received[1]) > FLOWS + BEYOND
    assert len(entries) + count_held(reports)["sink.loki.filter"] == len(logged)
    assert count_held(reports)["filter"] == count_held(held)["filter"]
    # By rule, and before any reload.
    assert shown["matches"] == [0, FLOWS // 2, 0]
    assert shown["suppressed"] == [0, FLOWS // 2 - before, 0]
    assert 400 <= before < FLOWS // 2
    assert own["matches"] == [0, before]
    assert own["suppressed"][1] > 0
    assert stats["counters"]["events_filtered_total"] == FLOWS - until_then


SENT = 150_000
KINDS = ("NEW", "SUPPRESSED", "LOST")
OVERFLOWING = """\
conntrack.buffer: 64M
filter: [log protocol UDP limit 1000/second burst 100 per destination, drop any]
sink.stream.enable: true
"""


def test_of_a_backlog_read_at_full_speed_logged_suppressed_and_lost_are_what_was_sent(
    producer: Producer, bus: PrivateBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped and let go: the kernel's queue is then read as fast as the core can, 64 MiB of it."""
    path = tmp_path / "conntrackd.yaml"
    path.write_text(OVERFLOWING)
    with run_on_bus(producer.network, bus, path) as running:
        running.process.send_signal(signal.SIGSTOP)
        producer.send(SENT)
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
    assert counters["events_received_total"] + lost == SENT
    assert suppressed == shown["suppressed"][1] > len(found["NEW"]) > 0
