"""A real Prometheus scrapes the real daemon while events flow: its totals are the daemon's."""

import socket
from pathlib import Path

import pytest

from tests.live import traffic
from tests.live.daemon import daemon, settle
from tests.live.network import TRACKING, call_inside, inside, network
from tests.metrics.client import get
from tests.metrics.prometheus import PROMETHEUS, Server, prometheus
from tests.sinks.syslog_servers import get_free_port, wait_until

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not PROMETHEUS.exists(), reason="prometheus is not unpacked: make .venv/prometheus"),
]

ROUNDS = 2
TALKS = 400


def read_total(server: Server, expression: str) -> float:
    return sum(server.query(expression).values())


def test_its_totals_are_those_of_the_daemon(tmp_path: Path) -> None:
    port = get_free_port()
    # It looks for targets five seconds after its start, in which all else can start.
    with prometheus(tmp_path, [f"127.0.0.1:{port}"]) as server, network() as net:
        net.load(TRACKING)
        arguments = ["--sink.stream.enable", "--conntrack.netns", net.router, "--filter=drop type UPDATE"]
        arguments.append("--metrics.flows={name: by_port, by: [protocol, destination.port], bytes: true}")
        with traffic.serve(net.server), daemon(*arguments, f"--metrics.listen=127.0.0.1:{port}") as running:
            running.wait_for_start()
            wait_until(lambda: read_total(server, "up") == 1, "the first scrape")
            seen = [0.0]
            for _ in range(ROUNDS):
                call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", TALKS)
                wait_until(
                    lambda: read_total(server, "conntrackd_events_by_type_total") > seen[-1], "a scrape"
                )
                seen.append(read_total(server, "conntrackd_events_by_type_total"))
            inside(net.router, "conntrack", "-F")  # each ends: a DESTROY
            running.wait_for_events(2 * ROUNDS * TALKS)
            settle(running)
            written = float(len(running.lines))

            wait_until(
                lambda: read_total(server, "conntrackd_sink_events_delivered_total") == written,
                "the last scrape",
            )
            assert server.query("conntrackd_events_by_type_total") == {
                (("type", "new"),): ROUNDS * TALKS,
                (("type", "update"),): 0,
                (("type", "destroy"),): ROUNDS * TALKS,
            }
            assert read_total(server, "conntrackd_events_accepted_total") == written == 2 * ROUNDS * TALKS
            by_port = (("destination_port", "8080"), ("protocol", "UDP"))
            for end, number in (
                ("opened_total", ROUNDS * TALKS),
                ("closed_total", ROUNDS * TALKS),
                ("living", 0),
            ):
                assert server.query(f"conntrackd_flows_by_port_{end}") == {by_port: number}
            assert server.query('up{job="conntrackd"}') == {(): 1}
            assert read_total(server, "count_over_time(conntrackd_healthy[1m])") > ROUNDS
            assert seen == sorted(seen)
            assert seen[-1] <= ROUNDS * TALKS
            # All that is on the page is in Prometheus: it took every line.
            page = get(("127.0.0.1", port)).body.decode().splitlines()
            assert read_total(server, 'count({__name__=~"conntrackd_.*"})') == sum(
                not line.startswith("#") for line in page
            )
