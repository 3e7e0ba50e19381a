"""The daemon reads the connection table: at the start, and after a loss."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.bus.private import wait_until
from tests.faults.producer import Producer, compute_number
from tests.live.daemon import Event, Running, daemon, run
from tests.live.network import Network

pytestmark = pytest.mark.privileged


def arguments(net: Network, *more: str) -> list[str]:
    return ["--conntrack.netns", net.router, "--conntrack.protocols", "udp", "--sink.stream.enable", *more]


def count(events: list[Event]) -> Counter[tuple[str, int]]:
    """How often each flow has come, by type and number."""
    return Counter(
        (event["type"], compute_number(event["sport"], event["dport"]))
        for event in events
        if event["type"] != "LOST"
    )


def list_numbers(events: list[Event], *types: str) -> list[int]:
    return sorted(number for (kind, number) in count(events).elements() if kind in types)


def count_flows(running: Running) -> int:
    return sum(b'"LOST"' not in line for line in running.lines)


def stop_over(running: Running, producer: Producer, flows: int) -> None:
    """So many flows, of which the buffer holds but a few."""
    running.process.send_signal(signal.SIGSTOP)
    producer.send(flows)
    running.process.send_signal(signal.SIGCONT)


def test_the_flows_of_the_table_are_written_at_the_start_when_asked(producer: Producer) -> None:
    producer.send(500)
    with daemon(*arguments(producer.network, "--conntrack.snapshot")) as running:
        running.wait_for_events(500)
        producer.send(10)
        running.wait_for_events(510)
        assert running.stop() == 0
    events = running.events

    assert list_numbers(events, "SNAPSHOT") == list(range(500))
    assert list_numbers(events, "NEW") == list(range(500, 510))
    first = events[0]
    ends = f"10.1.0.2:{first['sport']} to 10.2.0.2:{first['dport']}"
    assert first["msg"] == f"SNAPSHOT UDP connection from {ends}"
    assert running.has_said("received 10 events, lost 0, logged 10")


def test_after_a_loss_each_flow_of_the_table_has_been_reported_once(producer: Producer) -> None:
    more = ("--conntrack.resync", "snapshot", "--conntrack.buffer", "16K", "--conntrack.events", "new")
    with daemon(*arguments(producer.network, *more)) as running:
        running.wait_for_start()
        producer.send(20, rate=100)
        running.wait_for_events(20)
        stop_over(running, producer, 3000)
        running.wait(lambda: count_flows(running) >= 3020, "all of them", 60)
        producer.send(1)
        running.wait(lambda: count_flows(running) >= 3021, "one more")
        assert running.stop() == 0
    lost = sum(event["lost"] for event in running.events if event["type"] == "LOST")
    seen = count(running.events)

    assert lost == len(list_numbers(running.events, "SNAPSHOT")) > 2000
    assert list_numbers(running.events, "NEW", "SNAPSHOT") == list(range(3021))
    assert set(seen.values()) == {1}


def test_rules_evaluate_a_flow_of_the_table_as_its_new_event(producer: Producer) -> None:
    producer.send(100)
    rules = ("--filter", "log type NEW and destination port 1030", "--filter", "drop any")
    with daemon(*arguments(producer.network, "--conntrack.snapshot", *rules)) as running:
        running.wait_for_events(1)
        assert running.stop() == 0

    assert [(event["type"], event["dport"]) for event in running.events] == [("SNAPSHOT", 1030)]


def test_after_a_gap_the_table_says_what_began_in_it(producer: Producer, tmp_path: Path) -> None:
    state = {"CONNTRACKD_STATE_DIRECTORY": os.fspath(tmp_path)}
    more = arguments(producer.network, "--conntrack.resync", "snapshot")
    with daemon(*more, **state) as first:
        first.wait_for_start()
        wait_until((tmp_path / "listened").exists)
        assert first.stop() == 0
    producer.send(50)
    with daemon(*more, **state) as second:
        second.wait_for_events(51)
        assert second.stop() == 0

    assert second.events[0]["where"] == "daemon"
    assert list_numbers(second.events, "SNAPSHOT") == list(range(50))


def test_what_the_kernel_merges_in_reliable_mode_is_reported_without_a_number(producer: Producer) -> None:
    more = ("--conntrack.reliable", "--conntrack.buffer", "16K", "--conntrack.events", "new,destroy")
    with daemon(*arguments(producer.network, *more)) as running:
        running.wait_for_start()
        stop_over(running, producer, 1000)
        running.wait(lambda: any(b"LOST" in line for line in running.lines), "the loss")
        producer.forget()
        running.wait(lambda: sum(b"DESTROY" in line for line in running.lines) == 1000, "every end")
        assert running.stop() == 0
    lost = [event for event in running.events if event["type"] == "LOST"]

    assert all("lost" not in record and record["reason"] == "merged into later events" for record in lost)
    assert lost[0]["msg"] == "LOST events in the kernel's buffer (merged into later events)"
    assert list_numbers(running.events, "DESTROY") == list(range(1000))
    assert running.has_said(", lost 0, ")


@pytest.mark.parametrize(
    ("option", "value", "events", "missing"),
    [
        ("conntrack.reliable", "true", "new", "destroy"),
        ("conntrack.resync", "snapshot", "destroy", "new"),
        ("conntrack.snapshot", "true", "update", "new"),
    ],
)
def test_what_has_no_effect_is_refused(option: str, value: str, events: str, missing: str) -> None:
    variable = f"CONNTRACKD_{option.upper().replace('.', '_')}"
    done = run(
        "check", CONNTRACKD_CONNTRACK_EVENTS=events, CONNTRACKD_SINK_STREAM_ENABLE="1", **{variable: value}
    )

    assert done.returncode == 78
    assert f"{variable}: has no effect without {missing} events" in done.stderr
    assert f"hint: add {missing} to conntrack.events" in done.stderr
