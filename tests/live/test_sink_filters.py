"""A filter for each sink of a daemon that hears the kernel: reloads under traffic, run time, the sums."""

import json
import os
import random
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli import ctl
from conntrackd.errors import ConntrackdError, UnavailableError
from conntrackd.netlink.constants import SO_RCVBUFFORCE
from tests.bus.private import PrivateBus, wait_until
from tests.live.control import ask, count_new, count_sources, run_on_bus, start_flood, talk
from tests.live.daemon import Running, daemon, settle
from tests.live.network import Network, inside
from tests.live.test_sums import list_imbalance
from tests.sinks.loki_server import Store, run_server

pytestmark = pytest.mark.privileged

FLOWS = range(10_000, 14_000)
ALWAYS = range(11_000, 12_000)
CONFIGURATION = """\
conntrack: {{events: new, protocols: udp, netns: {netns}}}
filter: ['log destination port 9', drop any]
sink:
  stream: {{enable: true, filter: ['drop source port 10000-10999']}}
  syslog:
    {{enable: true, address: 'udp://127.0.0.1:{syslog}', filter: ['log source port {ports}', drop any]}}
  loki:
    enable: true
    address: http://127.0.0.1:{loki}
    batch_wait: 50ms
    filter: drop source port {drops}
"""


@contextmanager
def receive_syslog(messages: list[bytes]) -> Iterator[int]:
    """A port of a server that takes what comes over UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sock.bind(("127.0.0.1", 0))

        def read() -> None:
            while message := sock.recv(65_536):
                messages.append(message)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"", sock.getsockname())
            thread.join()


def test_three_sinks_get_each_their_own_through_reloads_under_traffic(
    net: Network, bus: PrivateBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "conntrack", "-F")
    store, messages, path = Store(), list[bytes](), tmp_path / "conntrackd.yaml"
    with run_server(store) as server, receive_syslog(messages) as port:
        texts = [
            CONFIGURATION.format(netns=net.router, syslog=port, ports=ports, loki=server.port, drops=drops)
            for ports, drops in (("10000-11999", "12000-13999"), ("11000-12999", "10000-10999,12000-13999"))
        ]
        path.write_text(texts[0])
        arguments = ["--config", str(path), "--bus.address", bus.address]
        with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as running:
            running.wait_for_words("org.conntrackd1 is on")
            thread, changes = start_flood(net, FLOWS[0], len(FLOWS)), 0
            while thread.is_alive() or changes < 2:
                changes += 1
                path.write_text(texts[changes % 2])
                assert "sink.syslog.filter is" in " ".join(ask(capsys, "reload")["changes"])
            running.wait(lambda: len(running.lines) >= 3000, "the events")
            settle(running)
            for name in ("stream", "syslog", "loki"):
                ask(capsys, "sink", "flush", name)
            stats = ask(capsys, "stats")
            assert running.stop() == 0

    syslog = sorted(int(found) for message in messages for found in re.findall(rb'sport="(\d+)"', message))
    loki = sorted(int(dict(entry.metadata)["sport"]) for entry in store.query())
    # What a reload does not change is exact, and so is what both filters say.
    assert count_sources(running) == list(range(11_000, 14_000))
    assert [number for number in syslog if number in ALWAYS] == list(ALWAYS)
    assert [number for number in loki if number in ALWAYS] == list(ALWAYS)
    assert len(syslog) == len(set(syslog)) < len(FLOWS)
    assert set(syslog) <= set(range(10_000, 13_000))
    assert set(loki) <= set(range(10_000, 12_000))
    assert list_imbalance(stats["counters"], stats["sinks"]) == {}
    filtered = {name: sink["sink_events_filtered_total"] for name, sink in stats["sinks"].items()}
    assert filtered == {"stream": 1000, "syslog": 4000 - len(syslog), "loki": 4000 - len(loki)}


def test_a_sink_that_comes_and_goes_gets_nothing_that_its_filter_drops(
    net: Network, bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "conntrack", "-F")
    store = Store()
    with run_server(store) as server:
        loki = f"loki: {{enable: true, address: 'http://127.0.0.1:{server.port}', filter: [drop any]}}"
        alone = "sink: {{stream: {{enable: true}}{}}}\nconntrack: {{events: new, protocols: udp}}\n"
        configuration.write_text(alone.format(""))
        arguments = ["--config", str(configuration), "--bus.address", bus.address]
        with daemon(*arguments, "--conntrack.netns", net.router, CONNTRACKD_BUS_ENABLE="true") as running:
            running.wait_for_words("org.conntrackd1 is on")
            thread, changes = start_flood(net, 20_000, 4000), 0
            while thread.is_alive() or changes < 2:
                changes += 1
                configuration.write_text(alone.format(f", {loki}" if changes % 2 else ""))
                ask(capsys, "reload")
            running.wait(lambda: len(running.lines) >= 4000, "the events")
            assert running.stop() == 0

    assert count_sources(running) == list(range(20_000, 24_000))
    assert store.query() == []


def test_a_filter_of_a_sink_decides_at_once_counts_and_goes_with_reset(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ask(capsys, "filter", "set", "--sink", "stream", "DENY type UPDATE", "drop protocol udp")[
        "changes"
    ]
    talk(net, 3)
    settle(running)
    shown = ask(capsys, "filter", "show", "--sink", "stream")
    stats, status = ask(capsys, "stats"), ask(capsys, "status")
    ctl.run(["status"])
    text = capsys.readouterr().out

    assert running.lines == []
    assert told == ["2 rules in force for sink stream, from run time, until a reload or restart"]
    assert shown["rules"] == ["drop type UPDATE", "drop protocol UDP"]
    nobody, updates, others = shown["matches"]
    assert (nobody, updates > 0, others > 0) == (0, True, True)
    assert stats["sink_rule_matches"] == {"stream": [0, updates, others]}
    assert stats["sinks"]["stream"]["sink_events_filtered_total"] == updates + others
    assert list_imbalance(stats["counters"], stats["sinks"]) == {}
    assert (status["RunTimeChanges"], status["Rules"]) == (["filter of sink stream"], ["drop protocol TCP"])
    assert f"stream ok, 0 delivered, {updates + others} filtered" in text
    assert "run time:  filter of sink stream: until a reload or restart\n" in text

    ask(capsys, "filter", "reset", "--sink", "stream")
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")
    assert ask(capsys, "filter", "show", "--sink", "stream")["rules"] == []
    assert ask(capsys, "status")["RunTimeChanges"] == []


def test_a_filter_of_a_sink_with_a_time_reverts_by_itself(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "filter", "set", "--sink", "stream", "drop any", "--for", "2s")
    assert 1 <= ask(capsys, "filter", "show", "--sink", "stream")["expires_s"] <= 2
    ctl.run(["status"])
    assert re.search(r"run time:  filter of sink stream: for \d s more\n", capsys.readouterr().out)

    wait_until(lambda: ask(capsys, "filter", "show", "--sink", "stream")["rules"] == [])
    running.wait_for_words("has expired, 0 rules in force for sink stream")


def test_the_global_filter_leaves_those_of_sinks_alone_and_a_reload_takes_all_back(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration.write_text(
        f"{configuration.read_text()}sink.stream.filter: [drop port 53]\n".replace(
            "sink: {stream: {enable: true}}", "sink.stream.enable: true"
        )
    )
    ask(capsys, "reload")
    ask(capsys, "filter", "set", "--sink", "stream", "drop port 54", "--for", "1h")
    ask(capsys, "filter", "set", "log any")
    ask(capsys, "filter", "reset")
    kept = ask(capsys, "filter", "show", "--sink", "stream")["rules"]
    ask(capsys, "reload-filter")

    assert kept == ["drop port 54"]
    shown = ask(capsys, "filter", "show", "--sink", "stream")
    assert (shown["rules"], shown["expires_s"]) == (["drop port 53"], 0)
    assert ask(capsys, "status")["RunTimeChanges"] == []


def test_other_fields_are_written_from_a_reload_on(
    running: Running, net: Network, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(net, 2)
    running.wait(lambda: count_new(running) == 2, "two events")
    settle(running)
    before = len(running.lines)
    configuration.write_text(
        "sink: {stream: {enable: true, fields: '-msg,-flow,-mark'}}\nfilter: [drop protocol TCP]\n"
    )
    assert ask(capsys, "reload")["changes"] == ["sink.stream.fields is -msg,-flow,-mark"]
    talk(net, 2)
    running.wait(lambda: count_new(running) == 4, "two more")

    events = running.events
    assert all({"msg", "flow"} <= event.keys() for event in events[:before])
    assert not any({"msg", "flow"} & event.keys() for event in events[before:])


def test_other_names_are_written_from_a_reload_on_and_a_tail_has_ours(
    running: Running, net: Network, bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration.write_text(
        "host: gw1\nsink: {stream: {enable: true, schema: ecs}}\nfilter: [drop protocol TCP]\n"
    )
    assert "sink.stream.schema is ecs" in ask(capsys, "reload")["changes"]
    with bus.connect() as client:
        tail = client.open_tail(["log type NEW", "drop any"], 3)
    talk(net, 3)
    with os.fdopen(tail, "rb") as file:
        shown = [json.loads(line) for line in file]
    mark = b'"event.action":"new"'
    running.wait(lambda: sum(mark in line for line in running.lines) == 3, "three events")

    records = [json.loads(line) for line in running.lines if mark in line]
    assert [record["source.port"] for record in records] == [event["sport"] for event in shown]
    assert {
        (*record["event.type"], record["network.transport"], record["host.name"]) for record in records
    } == {("connection", "start", "udp", "gw1")}


def test_what_becomes_of_the_rules_of_a_sink_is_explained(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "filter", "set", "--sink", "stream", "drop country DE")

    assert ask(capsys, "filter", "explain", "--running", "--sink", "stream") == {
        "rules": ["drop country DE"],
        "evaluated": ["in the core, for sink stream alone, on events that the global filter keeps"],
    }
    with pytest.raises(UnavailableError, match="the daemon has no sink loki"):
        ctl.run(["filter", "show", "--sink", "loki"])


def test_a_reload_with_a_mistake_in_one_sinks_filter_changes_nothing(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration.write_text("sink: {stream: {enable: true, filter: [log prot TCP]}}\nfilter: [log any]\n")
    with pytest.raises(ConntrackdError, match=r"conntrackd\.yaml:1: unexpected 'prot'"):
        ctl.run(["reload"])

    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol TCP"]
    assert ask(capsys, "filter", "show", "--sink", "stream")["rules"] == []


def change_at_random(bus: PrivateBus, seed: int, until: threading.Event) -> None:
    """A sink that may not be there."""
    chance = random.Random(seed)
    calls: list[tuple[Any, ...]] = [
        ("SetFilter", "asu", ["drop any"], 1),
        ("SetFilter", "asu", ["drop port 1"], 0),
        ("ExplainFilter", "as", []),
        *(("ResetFilter",), ("Disable",), ("Enable",)),
    ]
    with bus.connect() as client:
        while not until.is_set():
            with suppress(ConntrackdError):
                client.call(*chance.choice(calls), sink="going")
            until.wait(0.03)


def test_a_filter_for_a_time_ends_with_its_sink_and_with_a_reload(
    net: Network, bus: PrivateBus, configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "conntrack", "-F")
    alone = "conntrack: {events: new, protocols: udp}\nsink.stream: {enable: true}\n"
    going = f"sinks.going: {{kind: stream, writer: 'file://{tmp_path}/going', filter: [drop port 53]}}\n"

    def load(text: str) -> None:
        configuration.write_text(text)
        ask(capsys, "reload")

    def list_ends() -> list[str]:
        return [line.split("for sink ")[1].split(",")[0] for line in running.said if "has expired" in line]

    configuration.write_text(alone + going)
    with run_on_bus(net, bus, configuration) as running, bus.connect() as client:
        client.call("SetFilter", "asu", ["drop any"], 1, sink="going")
        client.call("Disable", sink="going")  # it ends all the same
        running.wait(lambda: list_ends() == ["going"], "its end")
        for text in (alone, alone + going):
            client.call("SetFilter", "asu", ["drop any"], 1, sink="going")
            load(text)
            client.call("SetFilter", "asu", ["drop any"], 1, sink="stream")
            ended = list_ends()
            running.wait(lambda: list_ends() != ended, "the end of what was set later")  # noqa: B023
            load(alone + going)
        assert list_ends() == ["going", "stream", "stream"]
        until = threading.Event()
        with ThreadPoolExecutor() as pool:
            work = [pool.submit(change_at_random, bus, number, until) for number in range(3)]
            for number in range(40):
                load(alone if number % 2 else alone + going)
                start_flood(net, 10_000 + 50 * number, 50).join()
            until.set()
            assert [done.result() for done in work] == [None] * 3
        with pytest.raises(UnavailableError, match="the daemon has no sink going"):
            client.call("SetFilter", "asu", ["drop any"], 1, sink="going")
        load(alone + going)
        assert ask(capsys, "filter", "show", "--sink", "going")["rules"] == ["drop port 53"]
        assert ask(capsys, "status")["RunTimeChanges"] == []
        assert running.stop() == 0

    assert count_sources(running) == list(range(10_000, 12_000))
    assert not running.has_said("Traceback"), running.said
