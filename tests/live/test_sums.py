"""The law as the daemon itself counts: the sums hold whenever anybody asks, whatever its sinks go through."""

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from conntrackd.bus.client import Client
from tests.bus.private import PrivateBus
from tests.live.control import start_flood
from tests.live.daemon import daemon
from tests.live.network import TRACKING, network
from tests.sinks.loki_server import Store, drip, refuse_one, reset, run_server, say, store_and_reset
from tests.sinks.syslog_servers import get_free_port

pytestmark = pytest.mark.privileged

SENT = 20_000
FAULTS = [refuse_one, say(503), store_and_reset, say(413), reset, say(400, "no"), drip, say(429)]
SETTINGS = {
    "conntrack.events": "new",
    "conntrack.protocols": "udp",
    "conntrack.kernel_filter": "false",  # so that there is something to count as filtered
    "sink.stream.enable": "true",
    "sink.syslog.enable": "true",
    "sink.syslog.queue": "3000",
    "sink.loki.enable": "true",
    "sink.loki.queue": "3000",
    "sink.loki.timeout": "500ms",
    "sink.loki.batch_wait": "50ms",
}

PAUSE = 0.01  # seconds: a user may make 200 calls a second


def list_imbalance(counters: dict[str, int], sinks: dict[str, dict[str, int]]) -> dict[str, int]:
    """What came less what became of it, where that is not 0."""
    became = ("malformed", "filtered", "accepted")
    sums = {
        "received": counters["events_received_total"] - sum(counters[f"events_{row}_total"] for row in became)
    }
    for name, sink in sinks.items():
        dropped = sum(value for key, value in sink.items() if key.startswith("sink_events_dropped_"))
        there = sum(sink.get(f"sink_events_{item}", 0) for item in ("delivered_total", "queued", "spooled"))
        handed = sink["sink_events_taken_total"] + sink["sink_events_filtered_total"]
        sums[f"{name}: accepted"] = counters["events_accepted_total"] - handed
        sums[f"{name}: taken"] = sink["sink_events_taken_total"] - there - dropped
    return {name: value for name, value in sums.items() if value}


def test_the_sums_hold_at_every_moment_at_which_somebody_asks(tmp_path: Path) -> None:
    """A syslog server that is not there, a Loki with every fault, a filter in Python, 20,000 flows."""
    store, bus = Store(), PrivateBus()
    bus.start()
    store.faults.extend(itertools.chain(*[FAULTS] * 20))
    seen: set[tuple[tuple[str, int], ...]] = set()
    moments: list[Any] = []

    def ask(client: Client) -> None:
        counters, sinks, *_ = client.call("GetStatistics")
        seen.add(tuple(list_imbalance(counters, sinks).items()))
        moments.append((counters, sinks))

    with network() as net, run_server(store) as server:
        net.load(TRACKING)
        settings = {
            **SETTINGS,
            "conntrack.netns": net.router,
            "bus.address": bus.address,
            "sink.loki.address": f"http://127.0.0.1:{server.port}",
            "sink.loki.spool": os.fspath(tmp_path),
            "sink.syslog.address": f"udp://127.0.0.1:{get_free_port()}",
            "filter": "drop source port 10000-11999",
            "sink.stream.filter": "drop source port 12000-12499",
            "sink.loki.filter": "drop source port 13000-13999\nlog any",
            "bus.enable": "true",
        }
        environ = {f"CONNTRACKD_{key.upper().replace('.', '_')}": value for key, value in settings.items()}
        with daemon(**environ) as running:
            running.wait_for_words("org.conntrackd1 is on")
            with bus.connect() as client:
                load = start_flood(net, 10_000, SENT)
                while load.is_alive() or moments[-1][0]["events_received_total"] < SENT:
                    ask(client)
                    threading.Event().wait(PAUSE)
                for _ in range(20):
                    ask(client)
            store.let_go.set()
            assert running.stop() == 0
    bus.close()

    counters, sinks = moments[-1]
    assert seen == {()}
    assert len({each["events_received_total"] for each, _ in moments}) > 5  # asked while they came
    assert (counters["events_received_total"], counters["events_filtered_total"]) == (SENT, 2000)
    assert sinks["syslog"]["sink_events_delivered_total"] == 0
    assert sinks["syslog"]["sink_events_dropped_queue_total"] == SENT - 2000 - 3000
    assert sinks["loki"]["sink_events_delivered_total"] > 0
    filtered = {name: sink["sink_events_filtered_total"] for name, sink in sinks.items()}
    assert filtered == {"stream": 500, "syslog": 0, "loki": 1000}
