"""A new process takes over the socket of the old one: what systemd's store of descriptors is for."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from conntrackd.errors import ConfigError
from conntrackd.netlink.namespace import enter
from conntrackd.source.state_directory import StateDirectory
from tests.bus.private import wait_until
from tests.live import traffic
from tests.live.daemon import Running, daemon, environment, list_steps, run, settle
from tests.live.network import TRACKING, Network, call_inside, inside
from tests.live.service import Store, service, start_service

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_keeps_every_event_in_its_order(net: Network, store: Store, number: int) -> None:
    with service(net, store) as first:
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 5)
        first.wait_for_events(5)
        first.stop(number)
    call_inside(net.client, traffic.flood, 10_000, 3000)
    with service(net, store, store.kept) as second:
        second.wait_for_events(3000)
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 1)
        second.wait_for_events(3001)
        settle(second)
        second.stop()

    ports = [event["sport"] for event in second.events if event["dport"] == 9]
    assert ports == list(range(10_000, 13_000))
    assert second.has_said("took over the socket")
    inside(net.router, "conntrack", "-F")


def test_losses_are_counted_across_processes(net: Network, store: Store, tmp_path: Path) -> None:
    small: dict[str, Any] = {"CONNTRACKD_CONNTRACK_BUFFER": "64K", "STATE_DIRECTORY": os.fspath(tmp_path)}
    with service(net, store, **small) as first:
        first.process.send_signal(signal.SIGSTOP)
        call_inside(net.client, traffic.flood, 10_000, 1000)
        first.process.send_signal(signal.SIGCONT)
        first.wait(lambda: any(b'"LOST"' in line for line in first.lines), "a LOST record")
        settle(first)
        first.stop(signal.SIGKILL)
    inside(net.router, "conntrack", "-F")
    call_inside(net.client, traffic.flood, 10_000, 1000)
    with service(net, store, store.kept, **small) as second:
        second.wait(lambda: any(b'"lost":' in line for line in second.lines), "a loss with its number")
        settle(second)
        second.stop()

    assert [count_all(first), count_all(second)] == [1000, 1000]
    assert [len(list_ends(first)), len(list_ends(second))] == [0, 1]
    inside(net.router, "conntrack", "-F")


@pytest.fixture
def untracked(net: Network) -> Iterator[Network]:
    """The network without a rule that has connections tracked, and without a flow."""
    inside(net.router, "nft", "flush", "ruleset")
    inside(net.router, "conntrack", "-F")
    yield net
    inside(net.router, "nft", "flush", "ruleset")
    net.load(TRACKING)


def pick_readers(number: int) -> tuple[str, str]:
    return ("--conntrack.readers", str(number))


CHANGES = pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 1), (2, 2)])
STORED = {
    number: {"events"} if number == 1 else {f"events-{share}-of-{number}" for share in range(number)}
    for number in (1, 2, 3)
}


@CHANGES
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_with_any_number_of_readers_keeps_every_event(
    net: Network, store: Store, before: int, after: int, number: int
) -> None:
    inside(net.router, "conntrack", "-F")
    with service(net, store, None, *pick_readers(before)) as first:
        first.stop(number)
    assert set(store.all) == STORED[before]
    call_inside(net.client, traffic.flood, 10_000, 3000)
    with service(net, store, None, *pick_readers(after), passed=dict(store.all)) as second:
        second.wait_for_events(3000)
        call_inside(net.client, traffic.flood, 20_000, 10)
        second.wait_for_events(3010)
        settle(second)
        second.stop()
    store.catch_up()

    assert sorted(event["sport"] for event in second.events) == [
        *range(10_000, 13_000),
        *range(20_000, 20_010),
    ]
    assert set(store.all) == STORED[after]


RESTARTS = 5


def talk_until(enough: Any) -> None:
    """TCP connections one after the other, some hundred a second."""
    while not enough.wait(0.005):
        traffic.talk_stream(socket.AF_INET, "10.2.0.2", socket.IPPROTO_TCP)


@CHANGES
def test_a_changed_number_of_readers_loses_and_doubles_nothing_and_keeps_the_order_of_each_flow(
    net: Network, store: Store, before: int, after: int
) -> None:
    """Restarted again and again while flows come and go, and compared with one that only listens."""
    inside(net.router, "conntrack", "-F")
    enough = get_context("fork").Event()
    load = threading.Thread(target=call_inside, args=(net.client, talk_until, enough))
    seen: list[Any] = []
    words = ("--conntrack.netns", net.router, "--conntrack.protocols", "tcp", "--sink.stream.enable")
    with daemon(*words) as witness:
        witness.wait_for_start()
        for count in range(RESTARTS):
            with restart(net, store, (before, after)[count % 2]) as running:
                if count == 0:
                    load.start()
                running.wait(lambda: running.lines, "an event")
                if count == RESTARTS - 1:
                    enough.set()
                    load.join()
                    inside(net.router, "conntrack", "-F")
                    settle(running)
                assert running.stop() == 0
            seen += running.events
        settle(witness)
        assert witness.stop() == 0

    steps = list_steps(seen)
    assert steps == list_steps(witness.events)
    assert len(steps) > 100


def restart(net: Network, store: Store, readers: int) -> Any:
    """The service with what the one before has left."""
    store.catch_up()
    words = ("--conntrack.protocols", "tcp", *pick_readers(readers))
    return service(net, store, None, *words, passed=dict(store.all), events="new,update,destroy")


@CHANGES
def test_losses_of_a_stored_socket_are_counted_across_a_changed_number_of_readers(
    net: Network, store: Store, tmp_path: Path, before: int, after: int
) -> None:
    """Forth and back twice, so that a socket has the name of one whose losses are told."""
    small: dict[str, Any] = {"CONNTRACKD_CONNTRACK_BUFFER": "16K", "STATE_DIRECTORY": os.fspath(tmp_path)}
    counts, ends = [], []
    for readers in (before, after, before, after):
        inside(net.router, "conntrack", "-F")
        if store.all:
            call_inside(net.client, traffic.flood, 10_000, 1000)
        passed = dict(store.all)
        with service(net, store, None, *pick_readers(readers), passed=passed, **small) as running:
            if passed:
                running.wait(lambda: any(b'"lost":' in line for line in running.lines), "a loss's number")
            settle(running)
            counts.append(count_all(running))
            inside(net.router, "conntrack", "-F")
            running.process.send_signal(signal.SIGSTOP)
            call_inside(net.client, traffic.flood, 10_000, 1000)
            running.process.send_signal(signal.SIGCONT)
            settle(running)
            counts.append(count_all(running))
            ends.append(len(list_ends(running)))
            running.stop(signal.SIGKILL)
        store.catch_up()

    assert ends == [0, 1, 1, 1]
    assert counts == [0, 1000, 1000, 2000, 1000, 2000, 1000, 2000]


def count_all(running: Running) -> int:
    """Flows that are told or known to be lost."""
    return len(list_new(running)) + sum(int(event.get("lost", 0)) for event in running.events)


# The daemon, which is killed when it comes to a function of the changeover.
KILL_AT = """
import os, signal, sys
from conntrackd.source import changeover
from conntrackd.cli.daemon import main
owner = getattr(changeover, sys.argv[1])
setattr(owner, sys.argv[2], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
sys.argv[1:] = sys.argv[3:]
main()
"""


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(("Changeover", "__init__"), id="both hear"),
        pytest.param(("Changeover", "run"), id="the old ones hear no more"),
        pytest.param(("Reader", "drain"), id="before an old one is read"),
    ],
)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_who_is_killed_in_a_changeover_leaves_every_event_to_the_next(
    net: Network, store: Store, before: int, after: int, point: tuple[str, str]
) -> None:
    inside(net.router, "conntrack", "-F")
    with service(net, store, None, *pick_readers(before)) as first:
        first.stop()
    call_inside(net.client, traffic.flood, 20_000, 500)
    with kill_at(net, store, point, *pick_readers(after), passed=dict(store.all)) as second:
        second.process.wait(20)
        second.stop()
    store.catch_up()
    call_inside(net.client, traffic.flood, 30_000, 500)
    with service(net, store, None, *pick_readers(after), passed=dict(store.all)) as third:
        settle(third)
        call_inside(net.client, traffic.flood, 40_000, 5)
        third.wait_for_events(5)
        settle(third)
        third.stop()
    store.catch_up()

    expected = [*range(20_000, 20_500), *range(30_000, 30_500), *range(40_000, 40_005)]
    reported = [event["sport"] for event in list_new(second) + list_new(third)]
    assert sorted(reported) == expected
    assert not any(event["type"] == "LOST" for event in third.events)
    assert set(store.all) == STORED[after]


@contextmanager
def kill_at(
    net: Network, store: Store, point: tuple[str, str], *more: str, passed: dict[str, int]
) -> Iterator[Running]:
    """The service, which kills itself there."""
    code = (sys.executable, "-c", KILL_AT, *point, "run")
    with start_service(net, store, code, *more, passed=passed) as running:
        yield running


# README: a restart under systemd has the events of its gap. Whatever is switched on.
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "settings",
    [
        {"activate": "true"},
        {"activate": "true", "reliable": "true"},
        {"activate": "true", "resync": "snapshot", "reliable": "true"},
        {"resync": "snapshot"},
        {"reliable": "true"},
    ],
    ids="+".join,
)
def test_row_37_a_restart_has_the_events_of_its_gap_whatever_is_switched_on(
    untracked: Network, store: Store, tmp_path: Path, settings: dict[str, str], number: int
) -> None:
    if "activate" not in settings:
        untracked.load(TRACKING)
    more = [word for name, value in settings.items() for word in (f"--conntrack.{name}", value)]
    extra: dict[str, Any] = {"STATE_DIRECTORY": os.fspath(tmp_path)}
    counts = []
    with service(untracked, store, None, *more, events="new,destroy", **extra) as first:
        call_inside(untracked.client, traffic.flood, 10_000, 3)
        first.wait_for_events(3)
        first.stop(number)
        settle(first)
        counts.append(len(list_new(first)))
    call_inside(untracked.client, traffic.flood, 20_000, 5)
    kept = dict(store.all)
    with service(untracked, store, None, *more, passed=kept, events="new,destroy", **extra) as second:
        second.wait(lambda: len(list_new(second)) == 5, "those of the gap")
        call_inside(untracked.client, traffic.flood, 30_000, 2)
        second.wait(lambda: len(list_new(second)) == 7, "those after it")
        settle(second)
        assert second.stop() == 0
        counts.append(len(list_new(second)))

    lost = [event for event in first.events + second.events if event["type"] == "LOST"]
    assert counts == [3, 7]
    assert lost == list_ends(second)
    assert len(lost) == (1 if number == signal.SIGKILL else 0)
    store.close_kept()  # as systemd does at a real stop
    wait_until(lambda: "conntrackd" not in inside(untracked.router, "nft", "list", "tables"))


def list_new(running: Running) -> list[Any]:
    return [event for event in running.events if event["type"] == "NEW"]


def list_ends(running: Running) -> list[Any]:
    """What says that the process before ended without a stop."""
    return [event for event in running.events if event.get("reason") == "ended without a stop"]


def test_a_table_that_is_not_wanted_any_more_goes_at_the_next_start(untracked: Network, store: Store) -> None:
    with service(untracked, store, None, "--conntrack.activate") as first:
        first.stop()
    before = inside(untracked.router, "nft", "list", "tables")
    with service(untracked, store, None, passed=dict(store.all)) as second:
        after = inside(untracked.router, "nft", "list", "tables")
        second.stop()

    assert (before, after) == ("table inet conntrackd\n", "")
    assert set(store.all) == {"events"}


@pytest.mark.parametrize("kind", ["pipe", "udp", "route", "unbound"])
def test_what_no_table_belongs_to_is_refused_and_a_new_one_made(
    untracked: Network, store: Store, kind: str
) -> None:
    ends = os.pipe()
    wrong = {
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, 0),
        "route": (socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "unbound": (socket.AF_NETLINK, socket.SOCK_RAW, 12),
    }.get(kind)
    made = None if wrong is None else socket.socket(*wrong)
    try:
        number = ends[0] if made is None else made.fileno()
        with service(untracked, store, None, "--conntrack.activate", passed={"table": number}) as running:
            call_inside(untracked.client, traffic.flood, 10_000, 1)
            running.wait_for_events(1)
            assert running.has_said("creating a new table")
            assert running.stop() == 0
    finally:
        for end in ends:
            os.close(end)
        if made is not None:
            made.close()


@pytest.mark.parametrize("kind", ["pipe", "udp", "route", "groups", "namespace", "locked", "unbound"])
def test_another_descriptor_is_refused_and_a_new_socket_opened(net: Network, store: Store, kind: str) -> None:
    reading, writing = os.pipe()
    wrong: list[socket.socket] = []
    match kind:
        case "udp":
            wrong.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        case "route":
            wrong.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
        case "groups":
            wrong.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
            wrong[0].setsockopt(270, 5, 1)  # NETLINK_NO_ENOBUFS, as ours has it
            wrong[0].setsockopt(270, 1, 4)  # a group of expectations
        case "namespace":
            # Ours in every way, but of this test's network and not of the router's.
            wrong.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
            wrong[0].bind((0, 0))
            wrong[0].setsockopt(270, 5, 1)
        case "locked" | "unbound":
            with enter(net.router):
                wrong.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
            wrong[0].setsockopt(270, 5, 1)
            if kind == "locked":
                wrong[0].bind((0, 0))
                wrong[0].setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER
    try:
        with service(net, store, wrong[0].fileno() if wrong else reading) as running:
            call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 1)
            running.wait_for_events(1)
            assert running.has_said("the stored descriptor is")
            assert running.stop() == 0
    finally:
        os.close(reading)
        os.close(writing)
        for row in wrong:
            row.close()


def test_a_stored_socket_that_does_not_wait_is_made_to(net: Network, store: Store) -> None:
    with service(net, store) as first:
        first.stop()
    os.set_blocking(store.kept, False)
    inside(net.router, "conntrack", "-F")
    with service(net, store, store.kept) as second:
        began = read_cpu(second)
        threading.Event().wait(1.0)  # what it takes in a second in which nothing happens
        used = read_cpu(second) - began
        call_inside(net.client, traffic.flood, 10_000, 1)
        second.wait_for_events(1)
        second.stop()

    assert used < 0.3


def read_cpu(running: Running) -> float:
    """Seconds of CPU time that the process has used."""
    words = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_time_in_which_nobody_listened_is_reported(net: Network, tmp_path: Path, number: int) -> None:
    places = {"STATE_DIRECTORY": os.fspath(tmp_path)}
    arguments = ("--sink.stream.enable", "--conntrack.netns", net.router)
    # Flows of the tests before would end now.
    inside(net.router, "conntrack", "-F")
    began = time.time_ns()
    with daemon(*arguments, **places) as first:
        first.wait_for_start()
        wait_until((tmp_path / "listened").exists)
        first.stop(number)
    ended = int((tmp_path / "listened").read_text())
    with daemon(*arguments, **places) as second:
        second.wait_for_events(1)
        second.stop()

    assert not first.lines
    reported = second.events[0]
    assert began < ended <= time.time_ns()
    assert "lost" not in reported
    assert (reported["type"], reported["where"], reported["reason"]) == ("LOST", "daemon", "not running")
    assert reported["msg"] == (
        "LOST events in the daemon (not running): between since and until some may be missing"
    )
    assert reported["since"].partition("+")[0].endswith(f".{ended % 10**9:09}")
    assert reported["since"] < reported["until"]
    assert second.has_said("was not running between")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_state_directory_belongs_to_one_daemon_until_it_ends(
    net: Network, tmp_path: Path, number: int
) -> None:
    state = tmp_path / "state"
    arguments = ("--sink.stream.enable", "--conntrack.netns", net.router, "--state_directory", str(state))
    with daemon(*arguments) as first:
        first.wait_for_start()
        second = run("run", *arguments)
        first.stop(number)
        with daemon(*arguments) as third:
            third.wait_for_start()
            third.stop()

    assert (second.returncode, second.stdout) == (78, "")
    assert second.stderr == (
        f"conntrackd: --state_directory: {state} is in use by process {first.process.pid}\n"
        "hint: each conntrackd process needs its own state directory\n"
    )


# Takes the directory, leaves behind a child that lives as long as its standard input, and is gone.
LEAVE_CHILD = """
import subprocess, sys
from pathlib import Path
from conntrackd.source.state_directory import StateDirectory
held = StateDirectory(Path(sys.argv[1]))
subprocess.Popen([sys.executable, "-c", "input()"], close_fds=False, stderr=subprocess.DEVNULL)
"""


def test_a_child_that_outlives_the_daemon_does_not_keep_the_state_directory(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    line = [sys.executable, "-c", LEAVE_CHILD, str(tmp_path)]
    try:
        subprocess.run(line, stdin=reading, env=environment(), check=True, timeout=15)
        second = subprocess.run(line, stdin=reading, env=environment(), check=False, timeout=15)
    finally:
        os.close(writing)
        os.close(reading)

    assert second.returncode == 0


def test_a_state_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError) as error:
        StateDirectory(tmp_path / "file", "here:1")

    assert (error.value.origin, error.value.message) == (
        "here:1",
        f"{tmp_path / 'file'}: {tmp_path / 'file'} is not a directory",
    )
