"""Sets that are changed while a daemon hears the kernel: in force at once, for a time, until a reload."""

import json
import math
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from conntrackd.bus.client import Client
from conntrackd.cli import ctl
from conntrackd.errors import ConntrackdError
from tests.bus.private import PrivateBus, wait_until
from tests.live.control import ask, count_new, count_sources, run_on_bus, start_flood, talk
from tests.live.daemon import Running, settle
from tests.live.network import Network, call_inside, inside, ip
from tests.live.test_sums import list_imbalance

pytestmark = pytest.mark.privileged

CLIENT = "10.1.0.2"
OTHERS = [f"10.1.0.{last}" for last in range(100, 112)]
CHANGES = 40
CONFIGURATION = """\
sets: {{bad: {folder}/bad.txt, other: {folder}/other.txt}}
filter: ['log source address @bad', drop any]
sink: {{stream: {{enable: true, filter: ['drop destination address @other']}}}}
conntrack: {{protocols: udp, events: new}}
"""


@pytest.fixture(scope="module")
def net(net: Network) -> Network:
    """With more addresses of the client."""
    for address in OTHERS:
        ip("-n", net.client, "address", "add", f"{address}/24", "dev", "eth0")
    return net


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    (tmp_path / "bad.txt").write_text("192.0.2.0/24\n2001:db8::1\n")
    (tmp_path / "other.txt").write_text("")
    path = tmp_path / "conntrackd.yaml"
    path.write_text(CONFIGURATION.format(folder=tmp_path))
    return path


@pytest.fixture
def running(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Running]:
    with run(net, bus, configuration) as made:
        yield made


@contextmanager
def run(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Running]:
    inside(net.router, "conntrack", "-F")
    with run_on_bus(net, bus, configuration) as made:
        yield made


def change(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    return list(ask(capsys, "set", *words)["changes"])


def show(capsys: pytest.CaptureFixture[str], name: str = "bad") -> list[tuple[str, str]]:
    return [(entry["entry"], entry["change"]) for entry in ask(capsys, "set", "show", name)]


def count_matches(capsys: pytest.CaptureFixture[str]) -> list[int]:
    return list(ask(capsys, "filter", "show")["matches"])


def test_what_is_added_is_logged_from_then_on_and_what_is_removed_is_not(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(net, 2)
    settle(running)
    before = count_new(running)
    added = change(capsys, "add", "bad", CLIENT, "2001:db8::/32")
    talk(net, 3)
    settle(running)
    logged, matches = count_new(running), count_matches(capsys)
    in_other = change(capsys, "add", "other", "10.2.0.0/16")  # the filter of a sink names it
    talk(net, 3)
    settle(running)
    filtered = count_new(running)
    change(capsys, "remove", "other", "10.2.0.0/16")
    removed = change(capsys, "remove", "bad", CLIENT)
    talk(net, 3)
    settle(running)

    assert (before, logged, filtered, count_new(running)) == (0, 3, 3, 3)
    assert added == [f"added to @bad until a reload or restart: {CLIENT}, 2001:db8::/32"]
    assert in_other == ["added to @other until a reload or restart: 10.2.0.0/16"]
    assert removed == [f"removed from @bad again, as its file has it: {CLIENT}"]
    assert matches == [0, 3, 2]  # counters of rules go on
    assert count_matches(capsys) == [0, 6, 5]


def test_under_traffic_each_event_is_decided_once_whatever_the_set_is(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    thread, changes = start_flood(net, 30_000, 4000), 0
    while thread.is_alive() or changes < 4:
        changes += 1
        change(capsys, "add" if changes % 2 else "remove", "bad", CLIENT)
    if changes % 2 == 0:
        change(capsys, "add", "bad", CLIENT)
    thread.join()
    ports = start_flood(net, 34_000, 100)
    ports.join()
    running.wait(lambda: 34_099 in count_sources(running), "the last event")
    settle(running)
    stats = ask(capsys, "stats")

    logged = count_sources(running)
    assert len(logged) == len(set(logged))
    assert [port for port in logged if port >= 34_000] == list(range(34_000, 34_100))
    assert stats["counters"]["events_accepted_total"] == len(logged)
    assert sum(count_matches(capsys)) >= 4100
    assert list_imbalance(stats["counters"], stats["sinks"]) == {}


def test_what_is_for_a_time_ends_by_itself(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    change(capsys, "add", "bad", CLIENT, "--for", "2s")
    (status, _) = ask(capsys, "set", "list")
    talk(net, 1)
    running.wait(lambda: count_new(running) == 1, "the event")
    running.wait_for_words("run-time changes of set @bad have expired")
    talk(net, 2)
    settle(running)

    assert 1 <= status["expires_s"] <= 2
    assert (status["entries"], status["added"], status["used_by"]) == (3, 1, ["rule 1"])
    assert count_new(running) == 1
    assert ask(capsys, "status")["RunTimeChanges"] == []
    assert show(capsys) == [("192.0.2.0/24", ""), ("2001:db8::1", "")]


def test_sighup_and_a_restart_take_all_from_the_files(
    net: Network, bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run(net, bus, configuration) as running:
        change(capsys, "add", "bad", CLIENT, "--for", "1h")
        change(capsys, "remove", "bad", "2001:db8::1")
        ctl.run(["status"])
        status = capsys.readouterr().out
        ctl.run(["set", "show", "bad"])
        shown = capsys.readouterr().out
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_words("set @bad (2 entries) has changed")
        reloaded = show(capsys)
        change(capsys, "add", "bad", CLIENT)
        assert running.stop() == 0
    with run(net, bus, configuration) as running:
        restarted = show(capsys)
        talk(net, 1)
        settle(running)
        assert count_new(running) == 0

    assert "run time:  set bad: see conntrackctl set list\n" in status
    first, *_, last = shown.splitlines()
    assert (first, last) == (
        f"{CLIENT}  # added at run time, for 59 min 59 s more",
        "# 2001:db8::1  # removed at run time, until a reload or restart",
    ) or first.startswith(f"{CLIENT}  # added at run time, for ")
    assert reloaded == restarted == [("192.0.2.0/24", ""), ("2001:db8::1", "")]


def test_a_file_is_read_anew_and_a_mistake_in_it_changes_nothing(
    running: Running, net: Network, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configuration.with_name("bad.txt")
    file.write_text(f"{CLIENT}\n")
    changes = change(capsys, "reload", "bad")
    file.write_text("nonsense\n")
    for words, message in (
        (["reload"], r"bad\.txt:1: 'nonsense' is not a valid address"),
        (["reload", "bax"], "there is no set 'bax'\nhint: did you mean bad?"),
        (
            ["add", "bad", "10.0.0.1/8"],
            "host bits set under its prefix length\nhint: did you mean 10.0.0.0/8?",
        ),
        (["remove", "bad", *(f"10.0.{n >> 8}.{n & 255}" for n in range(1001))], "a list of 1001 is too long"),
        (["add", "bad", CLIENT, "--for", "32d"], "31 days at most"),
    ):
        with pytest.raises(ConntrackdError) as caught:
            ctl.run(["set", *words])
        assert re.search(message.replace("?", r"\?"), str(caught.value)), str(caught.value)
    talk(net, 1)
    running.wait(lambda: count_new(running) == 1, "the event")

    assert changes == ["set @bad (1 entry) has changed"]
    assert show(capsys) == [(CLIENT, "")]


def test_a_tail_that_is_open_follows(
    running: Running, net: Network, bus: PrivateBus, capsys: pytest.CaptureFixture[str]
) -> None:
    change(capsys, "add", "bad", CLIENT)
    with bus.connect() as client:
        tail = client.open_tail(["log address @other", "drop any"], 2)
    talk(net, 1)
    running.wait(lambda: count_new(running) == 1, "the event")
    change(capsys, "add", "other", CLIENT)
    (_, status) = ask(capsys, "set", "list")
    talk(net, 2)
    with os.fdopen(tail, "rb") as file:
        shown = [json.loads(line)["src"] for line in file]

    assert shown == [CLIENT, CLIENT]
    assert status["used_by"] == ["rule 1 of sink stream", "tail"]


def send_from(addresses: list[str], port: int) -> None:
    """A datagram from each of them, from this port: a flow that the kernel does not know yet."""
    for address in addresses:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, port))
            sock.sendto(b"", ("10.2.0.2", 9))


def change_at_random(bus: PrivateBus, seed: int, own: list[str], *, is_alone: bool) -> None:
    """Add for a second, for good, and remove; and look, where nobody else changes these addresses."""
    chance, pause, ends = random.Random(seed), threading.Event(), dict[str, float]()
    with bus.connect() as client:
        for _ in range(CHANGES):
            address, seconds, began = chance.choice(own), chance.choice([0, 1]), time.monotonic()
            if chance.random() < 1 / 3:
                client.call("RemoveFromSet", "sasu", "bad", [address], seconds)
                ends[address] = 0
            else:
                client.call("AddToSet", "sasu", "bad", [address], seconds)
                ends[address] = began + seconds if seconds else math.inf
            shown, now = read_set(client), time.monotonic()
            if is_alone:
                assert {name for name, end in ends.items() if end > now} <= shown
                assert not shown & {name for name, end in ends.items() if not end}
            pause.wait(0.05)


def read_set(client: Client) -> set[str]:
    """What is in it by now, in a page."""
    return {text for text, change, _ in client.call("ShowSet", "ss", "bad", "")[0] if change != "removed"}


def list_decided(running: Running, net: Network, port: int) -> set[str]:
    """Of which of them a flow is logged now."""
    call_inside(net.client, send_from, OTHERS, port)
    settle(running)
    return {event["src"] for event in running.events if event["sport"] == port}


@pytest.mark.parametrize("is_alone", [True, False])
def test_changes_their_ends_and_reloads_side_by_side_leave_what_the_rules_decide(
    running: Running, net: Network, bus: PrivateBus, capsys: pytest.CaptureFixture[str], *, is_alone: bool
) -> None:
    change(capsys, "add", "bad", CLIENT)
    port, pause = 40_000, threading.Event()
    with ThreadPoolExecutor() as pool, bus.connect() as client:
        work = [
            pool.submit(change_at_random, bus, number, OTHERS[number::3], is_alone=is_alone)
            for number in range(3)
        ]
        while not all(done.done() for done in work):
            client.call("ReloadSets", "as", ["other"] if is_alone else ["bad"])
            if not is_alone:
                running.process.send_signal(signal.SIGHUP)
            start_flood(net, port, 50).join()
            port += 50
            pause.wait(0.05)
        for done in work:
            done.result()
        for _ in "12":  # a reload for the last signal, and one that was under way then
            client.call("ReloadSets", "as", ["other"])
        wait_until(lambda: not any(seconds for *_, seconds in client.call("ShowSet", "ss", "bad", "")[0]))
        shown = read_set(client)
        decided = list_decided(running, net, port)
        client.call("ReloadSets", "as", ["bad"])
        assert read_set(client) == {"192.0.2.0/24", "2001:db8::1"}
        left = list_decided(running, net, port + 1)

    assert (decided, left) == (shown & {*OTHERS}, set())
    if is_alone:
        assert [number for number in count_sources(running) if number < port] == list(range(40_000, port))
    assert not running.has_said("Traceback"), running.said
