"""The bus as the daemon itself serves it, while events flow: signals, tails, floods, a bus that is away."""

import json
import os
import shutil
import signal
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageFlag, MessageType

import conntrackd
from conntrackd.bus.client import Client, DaemonError, NotRunningError
from conntrackd.bus.connection import parse_header
from conntrackd.bus.names import BUS, BUS_PATH, MANAGER
from conntrackd.checks import NO_CORE
from conntrackd.errors import ConntrackdError, NotPermittedError
from tests.bus.private import STAND_IN, PrivateBus, as_user, wait_until
from tests.bus.raw import Raw, call
from tests.live import traffic
from tests.live.control import ask, count_descriptors, count_new, count_sources, run_on_bus, start_flood, talk
from tests.live.daemon import Running, daemon, settle
from tests.live.network import SNAT, TRACKING, Network, call_inside, network

pytestmark = pytest.mark.privileged
PACKAGE = Path(conntrackd.__file__).parent
RULESET = TRACKING + SNAT


def test_a_tail_has_the_events_of_its_own_rules(running: Running, net: Network, bus: PrivateBus) -> None:
    with bus.connect() as client:
        pipe = client.open_tail(["log destination port 7", "drop any"], 0)
        everything = client.open_tail([], 4)
    talk(net, 4)
    running.wait(lambda: count_new(running) == 4, "four events")
    with os.fdopen(everything, "rb") as file:
        records = [json.loads(line) for line in file]
    os.close(pipe)

    assert len(records) == 4


def test_a_flood_from_root_is_limited_and_costs_no_event(
    running: Running, net: Network, bus: PrivateBus
) -> None:
    sent = 2000
    header = call("GetStatistics")
    header.flags = MessageFlag.NO_REPLY_EXPECTED
    load = start_flood(net, 20_000, sent)
    with Raw(bus.address, {}) as raw:
        for _ in range(10_000):
            raw.post(header, [])
    load.join()
    running.wait_for_events(sent)
    settle(running)

    assert count_sources(running) == list(range(20_000, 20_000 + sent))


def test_rules_that_came_after_the_start_are_seen_by_the_doctor(
    bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with network() as built:
        arguments = ["--config", str(configuration), "--conntrack.netns", built.router]
        with daemon(*arguments, "--bus.address", bus.address, CONNTRACKD_BUS_ENABLE="true") as made:
            made.wait_for_words("org.conntrackd1 is on")
            before = {finding["check"]: finding["severity"] for finding in ask(capsys, "doctor")}
            built.load(TRACKING)
            after = {finding["check"]: finding["severity"] for finding in ask(capsys, "doctor")}

    assert (before["tracking"], after["tracking"]) == ("error", "ok")


def test_without_the_core_the_daemon_works_and_says_so_wherever_somebody_looks(
    net: Network, bus: PrivateBus, configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    with run_on_bus(net, bus, configuration, PYTHONPATH=str(tmp_path)) as made:
        talk(net, 4)
        made.wait(lambda: count_new(made) == 4, "four events")
        problems = ask(capsys, "status")["Problems"]
        found = {finding["check"]: finding for finding in ask(capsys, "doctor")}

    assert made.has_said(f"warning: {NO_CORE}")
    assert [problem.startswith(NO_CORE) for problem in problems] == [True]
    assert (found["core"]["severity"], found["core"]["message"].startswith(NO_CORE)) == ("warning", True)


def test_signals_report_what_the_daemon_does(
    net: Network, bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(configuration), "--conntrack.netns", net.router, "--conntrack.buffer", "64K"]
    with daemon(*arguments, "--bus.address", bus.address, CONNTRACKD_BUS_ENABLE="true") as made:
        made.wait_for_words("org.conntrackd1 is on")
        with Raw(bus.address, {}) as raw:
            raw.ask_bus("AddMatch", "s", f"type='signal',interface='{MANAGER}'")
            ask(capsys, "filter", "set", "drop protocol ICMP", "log any")
            reported = [hear_signal(raw, "FilterChanged")]
            ask(capsys, "sink", "disable", "stream")
            reported.append(hear_signal(raw, "SinkStateChanged"))
            made.process.send_signal(signal.SIGSTOP)
            call_inside(net.client, traffic.flood, 30_000, 3000)
            made.process.send_signal(signal.SIGCONT)
            lost = hear_signal(raw, "EventsLost")[0]
            wait_until(lambda: ask(capsys, "status")["Counters"]["events_lost_total"] == lost)

    assert reported == [[2, "run time, until a reload or restart"], ["stream", "disabled"]]
    assert lost > 1000


def hear_signal(raw: Raw, member: str) -> list[Any]:
    return raw.read_until(lambda header: header.member == member)[1]


def test_an_eavesdropper_hears_that_something_changed_and_never_an_event(
    net: Network, configuration: Path
) -> None:
    strict = PrivateBus(strict=True)
    strict.start()
    try:
        arguments = ["--config", str(configuration), "--conntrack.netns", net.router]
        with daemon(*arguments, "--bus.address", strict.address, CONNTRACKD_BUS_ENABLE="true") as made:
            made.wait_for_words("org.conntrackd1 is on")
            listeners = [eavesdrop(strict, 1), eavesdrop(strict, 1, STAND_IN[1]), eavesdrop(strict, 0)]
            with strict.connect() as client:
                pipe = client.open_tail([], 0)
                client.call("Disable", sink="stream")
                client.call("Enable", sink="stream")
                talk(net, 5)
                made.wait(lambda: count_new(made) == 5, "five events")
                lines = os.read(pipe, 1 << 20)
                os.close(pipe)
                client.call("Disable", sink="stream")
            stranger, *allowed = listeners
            heard = [hear(caller, "SinkStateChanged") for caller in allowed]
            # What the others have heard by now, the bus has passed on before it answers this.
            stranger.post(Message(BUS, BUS_PATH, BUS, "GetId"), [])
            heard.append(hear(stranger, ""))
            for listener in listeners:
                listener.close()
    finally:
        strict.close()

    assert b"10.1.0.2" in lines
    assert heard[-1] == b""
    assert all(b"10.1.0.2" not in line and b"10.2.0.2" not in line for line in heard)


def eavesdrop(bus: PrivateBus, user: int, *groups: int) -> Raw:
    """A connection that asks for all that a bus has, by every way there is."""
    with as_user(user, *groups) if user else nullcontext():
        raw = Raw(bus.address, {}).__enter__()
    for rule in ("", "eavesdrop='true'", "type='signal'", "type='method_return',eavesdrop='true'"):
        with suppress(ConntrackdError):  # not everybody may
            raw.ask_bus("AddMatch", "s", rule)
    if user:
        with pytest.raises(NotPermittedError):
            raw._call(BUS, BUS_PATH, "org.freedesktop.DBus.Monitoring", "BecomeMonitor", "asu", [[], 0])
    return raw


def hear(raw: Raw, last: str) -> bytes:
    """All that has come from the daemon, until this signal or the next answer of the bus."""
    heard = b""
    while True:
        data = raw.read_bytes()
        header = parse_header(data)
        assert header is not None
        if header.sender != BUS:
            heard += data
        if (header.member or "") == last and (last or header.message_type is MessageType.METHOD_RETURN):
            return heard


def test_of_thirty_two_tails_eight_are_opened(running: Running, bus: PrivateBus) -> None:
    with bus.connect() as client:
        client.read_properties()
        before = count_descriptors(running)
        pipes = [client.open_tail([], 0) for _ in range(8)]
        for _ in range(24):
            with pytest.raises(DaemonError, match="8 tails are open already"):
                client.open_tail([], 0)
        counters = client.call("GetStatistics")[0]
        for pipe in pipes:
            os.close(pipe)
        wait_until(lambda: _can_open(client))
        wait_until(lambda: count_descriptors(running) <= before)

    assert [counters[f"tails_{name}"] for name in ("open", "opened_total", "dropped_total")] == [8, 8, 0]


def _can_open(client: Client) -> bool:
    try:
        os.close(client.open_tail([], 0))
    except Exception:
        return False
    return True


def test_events_go_on_without_a_bus_and_the_interface_comes_back(
    running: Running, net: Network, bus: PrivateBus
) -> None:
    bus.stop()
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")
    with bus.connect() as client, pytest.raises(NotRunningError):
        client.read_properties()
    bus.start()

    def is_back() -> bool:
        try:
            with bus.connect() as client:
                return bool(client.read_properties()["Version"])
        except NotRunningError:
            return False

    wait_until(is_back)
