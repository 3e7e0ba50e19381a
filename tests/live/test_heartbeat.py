"""Flows that live, on real traffic through a gateway: what their records add up to, over a SIGKILL too."""

import signal
import socket
from collections import defaultdict
from itertools import pairwise

import pytest

from tests.live import traffic
from tests.live.daemon import Event, Running, daemon
from tests.live.network import SNAT, TRACKING, call_inside, inside, network

pytestmark = pytest.mark.privileged

OLD, YOUNG, LATE = range(20_000, 20_040), range(21_000, 21_300), range(22_000, 22_040)
NAMES = ("packets", "bytes", "reply_packets", "reply_bytes")


def talk(client: str, *ports: range) -> None:
    """A datagram each way for each flow, longer from port to port."""

    def speak() -> None:
        for port in (port for some in ports for port in some):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.bind(("", port))
                sock.sendto(bytes(port % 90), ("10.2.0.2", 8080))
                sock.recv(100)

    call_inside(client, speak)


def wait_for_packets(running: Running, count: int, expected: int) -> None:
    """Until the last ALIVE of each of so many flows has so many packets."""

    def have_all() -> bool:
        found = {event["flow"]: event["packets"] for event in running.events if event["type"] == "ALIVE"}
        return len(found) == count and set(found.values()) == {expected}

    running.wait(have_all, f"{count} flows with {expected} packets")


def list_by_flow(events: list[Event]) -> dict[int, list[Event]]:
    found = defaultdict(list)
    for event in events:
        if "bytes" in event:
            found[event["flow"]].append(event)
    return found


def list_spans(events: list[Event]) -> list[tuple[int, int]]:
    """From where to where each record of a flow has counted its bytes."""
    found = [event for event in events if "bytes_delta" in event]
    return [(event["bytes"] - event["bytes_delta"], event["bytes"]) for event in found]


def add_up(events: list[Event], name: str) -> int:
    return sum(event.get(f"{name}_delta", 0) for event in events)


def test_deltas_add_up_and_a_killed_daemon_counts_nothing_twice() -> None:
    with network() as net, traffic.serve(net.server):
        net.load(TRACKING + SNAT)
        net.set("net.netfilter.nf_conntrack_acct", 1)
        net.set(
            "net.netfilter.nf_conntrack_events", 1
        )  # flows that began without a listener end with an event
        arguments = ["--conntrack.netns", net.router, "--conntrack.heartbeat", "1s", "--sink.stream.enable"]
        talk(net.client, OLD)
        with daemon(*arguments, "--conntrack.records", "flows") as first:
            first.wait_for_start()
            wait_for_packets(first, len(OLD), 1)  # of before, and nothing since
            talk(net.client, OLD, YOUNG)
            first.wait(lambda: sum(b'"ALIVE"' in line for line in first.lines) > 600, "some heartbeats")
            assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        talk(net.client, OLD, YOUNG)
        arguments += ["--conntrack.records", "both", "--conntrack.readers", "2"]
        with daemon(*arguments, "--filter", "drop type UPDATE") as second:
            second.wait(lambda: any(b'"ALIVE"' in line for line in second.lines), "a heartbeat")
            talk(net.client, OLD, YOUNG, LATE)
            second.wait(lambda: sum(b'"ALIVE"' in line for line in second.lines) > 1000, "more of them")
            talk(net.client, LATE)
            inside(net.router, "conntrack", "-F")
            count = len(OLD) + len(YOUNG) + len(LATE)
            second.wait(lambda: sum(b'"FLOW"' in line for line in second.lines) == count, "every end")
            assert second.stop() == 0

    flows, after = list_by_flow(first.events + second.events), list_by_flow(second.events)
    assert len(flows) == count
    for flow, events in flows.items():
        end, spans = events[-1], list_spans(events)
        assert (end["type"], spans[-1][1]) == ("FLOW", end["bytes"])
        assert all(until <= since for (_, until), (since, _) in pairwise(spans))
        assert all(until == since for (_, until), (since, _) in pairwise(list_spans(after[flow])))
        # One datagram each way at a time: before the first daemon, and while there was none.
        missed = 2 if end["sport"] in OLD else 1 if end["sport"] in YOUNG else 0
        assert add_up(events, "packets") == end["packets"] - missed
        assert add_up(events, "reply_packets") == end["reply_packets"] - missed
        if not missed:
            assert [add_up(events, name) for name in NAMES] == [end[name] for name in NAMES]
    kinds = [{event["type"] for event in running.events} for running in (first, second)]
    assert kinds == [{"ALIVE"}, {"ALIVE", "NEW", "DESTROY", "FLOW"}]
