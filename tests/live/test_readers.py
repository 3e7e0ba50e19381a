"""Several readers: all events once, each flow's in their order, and one account of what is lost."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from tests.bus.private import PrivateBus, wait_until
from tests.faults.producer import Producer, compute_number
from tests.live import traffic
from tests.live.control import ask
from tests.live.daemon import Running, daemon, list_steps, run, settle
from tests.live.network import Network, call_inside, inside

pytestmark = pytest.mark.privileged
READERS = pytest.mark.parametrize("readers", [2, 3])


def arguments(net: Network, readers: int, *more: str) -> list[str]:
    words = ["--conntrack.netns", net.router, "--conntrack.readers", str(readers), "--sink.stream.enable"]
    return [*words, *more]


def list_numbers(running: Running, *types: str) -> list[int]:
    """Of the producer's flows, as they were written."""
    return [
        compute_number(event["sport"], event["dport"]) for event in running.events if event["type"] in types
    ]


def sum_lost(running: Running) -> int:
    return sum(event["lost"] for event in running.events if event["type"] == "LOST")


def talk_tcp(net: Network, times: int) -> None:
    call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", socket.IPPROTO_TCP, times)


@READERS
def test_all_events_come_once_and_those_of_a_flow_in_their_order(net: Network, readers: int) -> None:
    inside(net.router, "conntrack", "-F")
    # What one reader sees is what there is.
    more = ("--conntrack.protocols", "tcp")
    with daemon(*arguments(net, 1, *more)) as one, daemon(*arguments(net, readers, *more)) as several:
        one.wait_for_start()
        several.wait_for_start()
        talk_tcp(net, 100)
        inside(net.router, "conntrack", "-F")
        for running in (one, several):
            running.wait(lambda: count_ends(running) == 100, "every end")  # noqa: B023  # called at once
            assert running.stop() == 0
    expected, steps = list_steps(one.events), list_steps(several.events)

    assert len(expected) == 100
    assert steps == expected
    assert all(len(set(of_flow)) == len(of_flow) > 3 for of_flow in steps.values())
    assert several.has_said(f"{readers} readers")
    assert f"received {len(one.lines)} events, lost 0, logged {len(one.lines)}" in several.said[-1]


def count_ends(running: Running) -> int:
    return sum(b'"DESTROY"' in line for line in running.lines)


@READERS
def test_losses_of_all_readers_are_reported_together_and_exactly(producer: Producer, readers: int) -> None:
    more = ("--conntrack.buffer", "16K", "--conntrack.events", "new", "--conntrack.protocols", "udp")
    with daemon(*arguments(producer.network, readers, *more)) as running:
        running.wait_for_start()
        producer.send(20, rate=100)
        running.wait_for_events(20)
        for _ in range(3):
            running.process.send_signal(signal.SIGSTOP)
            producer.send(2000)
            running.process.send_signal(signal.SIGCONT)
            settle(running)
        sent = producer.sent
        producer.send(20, rate=100)
        running.wait(lambda: count_after(running, sent) == 20, "flows after the loss")
        assert running.stop() == 0
    seen, lost = list_numbers(running, "NEW"), sum_lost(running)

    assert lost > 3000
    assert len(seen) + lost == producer.sent
    assert len(seen) == len(set(seen))
    assert f"received {len(seen)} events, lost {lost}, logged {len(seen)}" in running.said[-1]


def count_after(running: Running, first: int) -> int:
    return sum(number >= first for number in list_numbers(running, "NEW"))


@READERS
def test_after_a_loss_each_flow_of_the_table_has_been_reported_once(producer: Producer, readers: int) -> None:
    more = ["--conntrack.resync", "snapshot", "--conntrack.buffer", "16K", "--conntrack.protocols", "udp"]
    more += ["--conntrack.events", "new,destroy"]
    with daemon(*arguments(producer.network, readers, *more)) as running:
        running.wait_for_start()
        producer.send(20, rate=100)
        running.wait_for_events(20)
        running.process.send_signal(signal.SIGSTOP)
        producer.send(3000)
        running.process.send_signal(signal.SIGCONT)
        running.wait(lambda: count_flows(running) >= 3020, "all of them", 60)
        settle(running)
        assert running.stop() == 0

    snapshots = list_numbers(running, "SNAPSHOT")
    assert len(snapshots) == sum_lost(running) > 1000
    assert sorted(list_numbers(running, "NEW", "SNAPSHOT")) == list(range(3020))


def count_flows(running: Running) -> int:
    return sum(b'"LOST"' not in line for line in running.lines)


@READERS
def test_a_table_that_is_read_while_flows_come_reports_each_of_them_once(
    producer: Producer, readers: int
) -> None:
    """Each flow is in the table, or its NEW comes: never both, whichever reader has it."""
    producer.send(2000)
    more = ("--conntrack.snapshot", "--conntrack.events", "new", "--conntrack.protocols", "udp")
    with daemon(*arguments(producer.network, readers, *more)) as running:
        producer.send(8000, rate=8000)
        running.wait(lambda: len(running.lines) >= 10_000, "all of them", 60)
        settle(running)
        assert running.stop() == 0

    assert sorted(list_numbers(running, "NEW", "SNAPSHOT")) == list(range(10_000))


RULES = ["log destination port 1024-3023", "drop any"]


@READERS
def test_counts_of_rules_and_what_a_tail_gets_are_those_of_all_readers(
    producer: Producer, readers: int, bus: PrivateBus, capsys: pytest.CaptureFixture[str]
) -> None:
    with control(producer, readers, bus, *RULES) as running, bus.connect() as client:
        pipe = os.fdopen(client.open_tail(["log destination port 1024-1123", "drop any"], 0), "rb")
        limited = os.fdopen(client.open_tail([], 50), "rb")
        producer.send(2500)
        # Those that are dropped come last, and nothing is written of them.
        wait_until(lambda: ask(capsys, "stats")["counters"]["events_received_total"] == 2500)
        stats = ask(capsys, "stats")
        few = [json.loads(line) for line in limited]
        assert running.stop() == 0
        tailed = [json.loads(line) for line in pipe]
        pipe.close()
        limited.close()

    assert stats["rule_matches"] == [0, 2000, 500]
    assert stats["counters"]["events_received_total"] == 2500
    assert stats["counters"]["events_filtered_total"] == 500
    assert sorted(compute_number(line["sport"], line["dport"]) for line in tailed) == list(range(100))
    assert len(few) == 50


@READERS
def test_a_filter_that_changes_all_the_time_loses_and_doubles_nothing_that_all_keep(
    producer: Producer, readers: int, bus: PrivateBus
) -> None:
    with control(producer, readers, bus) as running, bus.connect() as client:
        producer.start(12_000, rate=4000)
        changes = 0
        while producer.is_sending(0.01) or changes < 100:
            client.call("SetFilter", "asu", [f"drop destination port {65_000 + changes % 500}"], 0)
            changes += 1
        producer.wait()
        running.wait_for_events(12_000)
        settle(running)
        assert running.stop() == 0

    assert sorted(list_numbers(running, "NEW")) == list(range(12_000))
    assert changes >= 100


@contextmanager
def control(producer: Producer, readers: int, bus: PrivateBus, *rules: str) -> Iterator[Running]:
    """A daemon on the bus that hears of the producer's flows."""
    more = ["--conntrack.events", "new", "--conntrack.protocols", "udp", "--bus.address", bus.address]
    more += ["--conntrack.kernel_filter", "no" if rules else "yes"]  # or there is nothing left to be counted
    for rule in rules:
        more += ["--filter", rule]
    with daemon(*arguments(producer.network, readers, *more), CONNTRACKD_BUS_ENABLE="true") as running:
        running.wait_for_words("org.conntrackd1 is on")
        yield running


@READERS
def test_each_reader_finds_the_places_of_its_events(producer: Producer, readers: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mmdb"
    writer = MMDBWriter(4, "GeoLite2-City")
    writer.insert_network(IPSet(["10.1.0.0/16"]), {"city": {"names": {"en": "Lyon"}}})
    writer.insert_network(IPSet(["10.2.0.0/16"]), {"city": {"names": {"en": "Ghent"}}})
    writer.to_db_file(str(path))
    more = ("--conntrack.events", "new", "--geoip.database", os.fspath(path))
    rules = ("--filter", 'log source city "Lyon"', "--filter", "drop any")
    with daemon(*arguments(producer.network, readers, *more, *rules)) as running:
        running.wait_for_start()
        producer.send(2000)
        running.wait_for_events(2000)
        assert running.stop() == 0

    assert sorted(list_numbers(running, "NEW")) == list(range(2000))
    assert {event["city"] for event in running.events} == {"Ghent"}


def test_a_replay_is_read_by_one() -> None:
    path = Path(__file__).parent.parent / "netlink" / "corpus" / "tcp.nl"
    outputs = [
        run(*f"run --conntrack.replay {path} --conntrack.readers {readers} --sink.stream.enable".split())
        for readers in (1, 3)
    ]

    assert [done.returncode for done in outputs] == [0, 0]
    assert outputs[0].stdout == outputs[1].stdout != ""


def test_another_number_of_readers_waits_for_a_restart_while_the_filter_is_reloaded(
    producer: Producer, bus: PrivateBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, changes = tmp_path / "conntrackd.yaml", []
    settings = {"bus": {"address": bus.address}, "sink": {"stream": {"enable": True}}}
    conntrack = {"netns": producer.network.router, "events": ["new"]}
    path.write_text(json.dumps({**settings, "conntrack": {**conntrack, "readers": 2}}))
    with daemon("--config", os.fspath(path), CONNTRACKD_BUS_ENABLE="true") as running:
        running.wait_for_words("org.conntrackd1 is on")
        for readers in (1, 3):
            path.write_text(json.dumps({**settings, "conntrack": {**conntrack, "readers": readers}}))
            changes += ask(capsys, "reload")["changes"]
            producer.send(500)
            running.wait_for_events(producer.sent)
        assert running.stop() == 0

    waits = "conntrack.readers has changed and needs a restart: systemctl restart conntrackd"
    assert changes == [waits, waits]
    assert sorted(list_numbers(running, "NEW")) == list(range(1000))


def test_several_readers_and_reliable_are_a_mistake_with_what_to_do() -> None:
    words = ("--conntrack.readers", "2", "--conntrack.reliable", "--sink.stream.enable")
    done = run("check", *words)

    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        "conntrackd: --conntrack.reliable: cannot be combined with several readers\n"
        "hint: it guards a single socket: remove conntrack.readers\n"
    )
