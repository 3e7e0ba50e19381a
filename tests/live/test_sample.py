"""A sample with the real kernel: of a flow all events or none, and the same flows whoever decides."""

import json
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from conntrackd.filter.sample import is_sampled
from tests.live import traffic
from tests.live.daemon import Event, Running, daemon, settle
from tests.live.network import Network, call_inside, inside, list_connections

pytestmark = pytest.mark.privileged
FLOWS = 120
RATE = 4
CONFIGURATION = """\
conntrack: {{netns: {netns}, records: {records}, heartbeat: 1s, readers: {readers}, protocols: 'tcp, udp'}}
filter: [drop type UPDATE, log protocol UDP sample 1/3]
sink.stream: {{enable: true}}
sinks:
  finer: {{kind: stream, writer: 'file://{folder}/finer', filter: log any sample 1/6}}
  coarser: {{kind: stream, writer: 'file://{folder}/coarser', filter: log any sample 1/2}}
  ends: {{kind: stream, writer: 'file://{folder}/ends', filter: [log type DESTROY sample 1/6, drop type NEW]}}
"""
RULE = f"log protocol TCP and destination address 10.2.0.2 sample 1/{RATE}"


def arguments(net: Network, *more: str) -> list[str]:
    return ["--conntrack.netns", net.router, "--sink.stream.enable", *more]


def list_steps(events: list[Event]) -> dict[int, list[str]]:
    """The types of each flow's events, in their order."""
    steps: dict[int, list[str]] = defaultdict(list)
    for event in events:
        steps[int(event["flow"])].append(event["type"])
    return steps


def count_ends(running: Running) -> int:
    return sum(b'"DESTROY"' in line for line in running.lines)


def test_a_sampled_flow_has_all_of_its_events_and_any_other_none(net: Network) -> None:
    inside(net.router, "conntrack", "-F")
    rules = ("--filter", RULE, "--filter", "drop any")
    with (
        daemon(*arguments(net, "--conntrack.protocols", "tcp")) as whole,
        daemon(*arguments(net, *rules)) as by_kernel,
        daemon(*arguments(net, *rules, "--conntrack.kernel_filter", "false")) as by_core,
        daemon(*arguments(net, *rules, "--conntrack.readers", "2")) as by_readers,
    ):
        sampled = (by_kernel, by_core, by_readers)
        for running in (whole, *sampled):
            running.wait_for_start()
        call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", socket.IPPROTO_TCP, FLOWS)
        inside(net.router, "conntrack", "-F")
        whole.wait(lambda: count_ends(whole) == FLOWS, "every end")
        steps = list_steps(whole.events)
        expected = {flow: found for flow, found in steps.items() if is_sampled(flow, RATE)}
        for running in sampled:
            running.wait(lambda: count_ends(running) >= len(expected), "the ends of the sample")  # noqa: B023
            assert running.stop() == 0

    assert len(steps) == FLOWS
    for running in sampled:
        assert list_steps(running.events) == expected
        assert {event["sample_rate"] for event in running.events} <= {RATE}
    assert not any("sample_rate" in event for event in whole.events)
    assert all(found[0] == "NEW" and found[-1] == "DESTROY" and len(found) > 3 for found in steps.values())
    received = [int(running.said[-1].split("received ")[1].split()[0]) for running in sampled]
    assert received[0] == received[2] == sum(map(len, expected.values()))
    assert received[1] == sum(map(len, steps.values()))


def thin(events: Iterable[Event], sink: str) -> list[Event]:
    """What a sink gets of what the global filter keeps, by the reference."""
    found = []
    for event in events:
        rate = {"finer": 6, "coarser": 2, "ends": 1 if event["type"] == "ALIVE" else 6}[sink]
        if is_sampled(event["flow"], rate) and not (sink == "ends" and event["type"] == "NEW"):
            rates = {"sample_rate": max(rate, event.get("sample_rate", 1))}
            found.append({**event, **(rates if rates["sample_rate"] > 1 else {})})
    return found


# Where the kernel has times it decides the sample of flows, too; else it passes up what is to be remembered.
@pytest.mark.parametrize(
    ("records", "readers", "timestamp"), [("flows", 1, 0), ("flows", 2, 1), ("both", 1, 1), ("both", 2, 0)]
)
def test_records_of_flows_and_of_their_lives_are_in_the_sample_of_the_flow(
    records: str, readers: int, timestamp: int, net: Network, tmp_path: Path
) -> None:
    inside(net.router, "conntrack", "-F")
    net.set("net.netfilter.nf_conntrack_acct", 1)
    net.set("net.netfilter.nf_conntrack_timestamp", timestamp)
    path = tmp_path / "conntrackd.yaml"
    values = {"netns": net.router, "folder": tmp_path, "records": records, "readers": readers}
    path.write_text(CONFIGURATION.format(**values))
    with daemon("--config", str(path)) as running:
        running.wait_for_start()
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", FLOWS)
        call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", 0, FLOWS)
        flows = list(list_connections(net))
        sampled = {flow["flow"] for flow in flows if flow["prot"] == "TCP" or is_sampled(flow["flow"], 3)}
        running.wait(lambda: sum(b'"ALIVE"' in line for line in running.lines) > 3 * len(sampled), "lives")
        inside(net.router, "conntrack", "-F")
        running.wait(lambda: sum(b'"FLOW"' in line for line in running.lines) >= len(sampled), "ends")
        settle(running)
        assert running.stop() == 0

    types = {"flows": {"FLOW"}, "both": {"NEW", "DESTROY", "FLOW"}}[records] | {"ALIVE"}
    steps = list_steps(running.events)
    assert len(flows) == 2 * FLOWS
    assert steps.keys() == sampled
    for found in map(Counter, steps.values()):
        assert found.keys() == types
        assert all(count == 1 for kind, count in found.items() if kind != "ALIVE")
    rates = {(event["prot"], event.get("sample_rate")) for event in running.events}
    assert rates == {("TCP", None), ("UDP", 3)}
    for sink in ("finer", "coarser", "ends"):
        lines = (tmp_path / sink).read_text().splitlines()
        assert list(map(json.loads, lines)) == thin(running.events, sink)
