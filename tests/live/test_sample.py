"""A sample with the real kernel: of a flow all events or none, and the same flows whoever decides."""

import socket
from collections import defaultdict

import pytest

from conntrackd.filter.sample import is_sampled
from tests.live import traffic
from tests.live.daemon import Event, Running, daemon
from tests.live.network import Network, call_inside, inside

pytestmark = pytest.mark.privileged
FLOWS = 120
RATE = 4
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
