"""conntrackctl against the daemon itself, while events flow."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from conntrackd.bus import wire
from conntrackd.bus.client import BUS, BUS_PATH, MANAGER, Client, NotRunningError, RemoteError
from conntrackd.cli import ctl
from conntrackd.errors import ConntrackdError, NotPermittedError
from tests.bus.private import STAND_IN, PrivateBus, Raw, as_user, wait_until
from tests.live import traffic
from tests.live.daemon import Running, daemon, settle
from tests.live.network import SNAT, TRACKING, Network, call_inside, inside, network
from tests.sinks.syslog_servers import find_port

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built:
        built.load(TRACKING + SNAT)
        with traffic.serve(built.server):
            yield built


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBus]:
    made = PrivateBus()
    made.start()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
    yield made
    made.close()


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "conntrackd.yaml"
    path.write_text("sink: {stream: {enable: true}}\nfilter: [drop protocol ICMP]\n")
    return path


@pytest.fixture
def running(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Running]:
    arguments = [
        "--config",
        str(configuration),
        "--conntrack.netns",
        net.router,
        "--bus.address",
        bus.address,
    ]
    with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as made:
        made.wait_for_start()
        made.wait(lambda: any("org.conntrackd1 is on" in line for line in made.said), "the bus")
        yield made


def talk(net: Network, times: int) -> None:
    call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", times)


def flood(first: int, times: int) -> None:
    """UDP datagrams from so many ports: a NEW each, where the kernel knows none of them yet."""
    for port in range(first, first + times):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.1.0.2", port))
            sock.sendto(b"", ("10.2.0.2", 9))


def start_flood(net: Network, first: int, times: int) -> threading.Thread:
    thread = threading.Thread(target=call_inside, args=(net.client, flood, first, times))
    thread.start()
    return thread


def count_sources(running: Running) -> list[int]:
    """Source ports of all NEW events of a flood, sorted."""
    return sorted(each["sport"] for each in running.events if each["type"] == "NEW" and each["dport"] == 9)


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What `--json` prints."""
    ctl.run([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def count_new(running: Running) -> int:
    return sum(event["type"] == "NEW" for event in running.events)


def count_descriptors(running: Running) -> int:
    return len(os.listdir(f"/proc/{running.process.pid}/fd"))


def test_status_stats_and_doctor_of_a_daemon_in_a_namespace(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(net, 5)
    running.wait(lambda: count_new(running) == 5, "five events")

    status = ask(capsys, "status")
    assert (status["healthy"], status["Problems"], status["RuleCount"]) == (True, [], 1)
    assert status["Sinks"]["stream"]["State"] == "ok"
    stats = ask(capsys, "stats")
    assert stats["counters"]["events_new_total"] == 5
    assert stats["sinks"]["stream"]["sink_events_delivered_total"] >= 5
    findings = {each["check"]: each["severity"] for each in ask(capsys, "doctor")}
    assert {findings[name] for name in ("daemon", "module", "tracking", "buffer", "loss", "sink")} == {"ok"}


def test_a_filter_of_run_time_decides_at_once_and_goes_with_reset(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "filter", "set", "drop protocol UDP")
    talk(net, 3)
    settle(running)
    assert count_new(running) == 0
    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol UDP"]

    ask(capsys, "filter", "reset")
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")
    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol ICMP"]


def test_each_rule_counts_what_it_decided_here_and_nothing_that_the_kernel_dropped(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "filter", "set", "drop type UPDATE", "log type NEW", "log type DESTROY and type NEW")
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")

    assert ask(capsys, "stats")["rule_matches"][1:] == [0, 3, 0]


def test_a_filter_with_a_time_reverts_by_itself(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "filter", "set", "drop any", "--for", "1s")
    assert ask(capsys, "filter", "show")["expires_s"] == 1

    wait_until(lambda: ask(capsys, "filter", "show")["rules"] == ["drop protocol ICMP"])


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


def test_a_program_that_the_kernel_has_no_room_for_is_named_and_its_rules_are_kept(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    if "net.core.optmem_max" not in inside(net.router, "sysctl", "-aN"):
        pytest.skip("in older kernels this limit is that of the whole machine")
    before = int(inside(net.router, "sysctl", "-n", "net.core.optmem_max"))
    rules = [f"drop destination port {port} and source address 10.9.9.9" for port in range(1, 100)]
    net.set("net.core.optmem_max", 4096)
    try:
        told = ask(capsys, "filter", "set", *rules, "drop protocol UDP")["changes"]
        status, findings = ask(capsys, "status"), ask(capsys, "doctor")
        talk(net, 3)
        settle(running)
    finally:
        net.set("net.core.optmem_max", before)

    assert count_new(running) == 0
    assert told == ["100 rules in force, from run time, until a reload or restart; none in the kernel"]
    assert "no room for the filter's program" in status["Problems"][0]
    assert status["KernelInstructions"] == 0
    assert [each["remedy"] for each in findings if each["check"] == "filter"] == [
        "sysctl -w net.core.optmem_max=131072, and conntrackctl reload-filter"
    ]
    ask(capsys, "filter", "set", *rules, "drop protocol UDP")
    assert ask(capsys, "status")["KernelInstructions"] > 1000


def test_what_was_changed_at_run_time_is_named_until_a_reload(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        ask(capsys, "filter", "set", "log any")["changes"],
        ask(capsys, "log-level", "debug")["changes"],
        ask(capsys, "sink", "disable", "stream")["changes"],
    ]
    changed = ask(capsys, "status")["RunTimeChanges"]
    ask(capsys, "reload")

    assert all("until a reload or restart" in answer for (answer,) in answers)
    assert changed == ["filter", "log level", "sink stream"]
    assert ask(capsys, "status")["RunTimeChanges"] == []
    assert ask(capsys, "log-level", "info")["changes"] == ["log level is info, as configured"]


def test_a_reload_with_one_mistake_changes_nothing_and_names_it(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [f"  - drop destination port {port}" for port in range(1, 1001)]
    rules[499] = "  - drop destination prot 500"
    settings = ["sink: {stream: {enable: true}}", "log: {level: debug}", "conntrack: {events: new}"]
    configuration.write_text("\n".join([*settings, "filter:", *rules]))

    with pytest.raises(RemoteError) as caught:
        ctl.run(["reload"])

    place, _, excerpt = str(caught.value).partition("\n")
    assert place.startswith(f"{configuration}:504: unexpected 'prot', did you mean port?")
    assert excerpt.splitlines()[:2] == ["  drop destination prot 500", "                   ^^^^"]
    status = ask(capsys, "status")
    assert (status["Rules"], status["LogLevel"], len(status["KernelGroups"])) == (
        ["drop protocol ICMP"],
        "info",
        3,
    )
    configuration.write_text("sink: {stream: {enable: true}}\nfilter: [drop protocol GRE]\n")
    assert ctl.run(["reload"]) == 0
    capsys.readouterr()
    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol GRE"]


@pytest.mark.parametrize("by_signal", [False, True], ids=["by D-Bus", "by SIGHUP"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sink: {stream: {enable: true}\nfilter: [", "2: "),
        ("sink: {stream: {enable: true, colour: red}}", "1: unknown key 'sink.stream.colour'"),
        ("sink: {stream: {enable: 7.5}}", "1: sink.stream.enable: "),
        (None, " cannot be read: "),
    ],
    ids=["syntax error", "unknown field", "wrong type", "missing file"],
)
def test_a_configuration_that_cannot_be_used_changes_nothing(
    text: str | None,
    said: str,
    by_signal: bool,
    running: Running,
    configuration: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask(capsys, "sink", "disable", "stream")
    before = ask(capsys, "status"), count_descriptors(running)
    if text is None:
        configuration.unlink()
    else:
        configuration.write_text(text)

    if by_signal:
        running.process.send_signal(signal.SIGHUP)
        running.wait(lambda: any("nothing has changed" in line for line in running.said), "the refusal")
        message = "".join(running.said)
    else:
        with pytest.raises(RemoteError) as caught:
            ctl.run(["reload"])
        message = str(caught.value)
    after = ask(capsys, "status"), count_descriptors(running)

    assert f"{configuration}:{said}" in message
    assert (after[0]["Rules"], after[0]["Sinks"]["stream"]["State"]) == (["drop protocol ICMP"], "disabled")
    assert after[0]["Counters"]["reloads_failed_total"] == 1
    for each in (before[0], after[0]):
        del each["Counters"], each["Sinks"]
    assert after == before


def test_a_reload_takes_databases_and_refuses_what_is_none(
    running: Running, net: Network, configuration: Path
) -> None:
    writer = MMDBWriter(4, "GeoLite2-City")
    writer.insert_network(IPSet(["10.0.0.0/8"]), {"city": {"names": {"en": "Nuremberg", "de": "Nürnberg"}}})
    path, broken = configuration.with_name("a.mmdb"), configuration.with_name("b.mmdb")
    writer.to_db_file(str(path))
    broken.write_bytes(path.read_bytes()[:100])
    cities = []
    for geoip in (
        {},
        {"database": str(path)},
        {"database": str(path), "locale": "de"},
        {"database": str(broken)},
    ):
        settings = {"sink": {"stream": {"enable": True}}, "geoip": geoip}
        configuration.write_text(json.dumps(settings))
        if geoip.get("database") == str(broken):
            with pytest.raises(Exception, match=r"b\.mmdb is no usable database"):
                ctl.run(["reload"])
        else:
            assert ctl.run(["reload"]) == 0
        before = len(running.lines)
        talk(net, 1)
        running.wait_for_events(before + 1)
        cities.append(running.events[before].get("city"))

    assert cities == [None, "Nuremberg", "Nürnberg", "Nürnberg"]


def test_a_sink_that_comes_to_acknowledge_is_said_to_have_no_spool_yet(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for scheme in ("udp", "udp", "tcp", "tls", "udp"):
        syslog = {"enable": True, "address": f"{scheme}://127.0.0.1:{find_port()}"}
        configuration.write_text(json.dumps({"sink": {"stream": {"enable": True}, "syslog": syslog}}))
        assert ctl.run(["reload"]) == 0
        told.append("sink.syslog gets its spool at the next start" in capsys.readouterr().out)

    assert told == [False, False, True, False, False]


def test_a_sink_switched_off_drops_and_counts_and_goes_on_afterwards(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl.run(["sink", "disable", "stream"])
    talk(net, 3)
    capsys.readouterr()
    wait_until(
        lambda: ask(capsys, "stats")["sinks"]["stream"].get("sink_events_dropped_disabled_total", 0) >= 3
    )
    ctl.run(["sink", "enable", "stream"])
    before = len(running.lines)
    talk(net, 2)

    running.wait(lambda: len(running.lines) > before + 1, "events after it was enabled")


def test_a_flood_from_root_is_limited_and_costs_no_event(
    running: Running, net: Network, bus: PrivateBus
) -> None:
    sent = 2000
    header = wire.Header(
        wire.METHOD_CALL,
        flags=wire.NO_REPLY_EXPECTED,
        path="/org/conntrackd1",
        interface=MANAGER,
        member="GetStatistics",
        destination="org.conntrackd1",
    )
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
            made.wait(lambda: any("org.conntrackd1 is on" in line for line in made.said), "the bus")
            before = {each["check"]: each["severity"] for each in ask(capsys, "doctor")}
            built.load(TRACKING)
            after = {each["check"]: each["severity"] for each in ask(capsys, "doctor")}

    assert (before["tracking"], after["tracking"]) == ("error", "ok")


def test_signals_tell_what_the_daemon_does(
    net: Network, bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(configuration), "--conntrack.netns", net.router, "--conntrack.buffer", "64K"]
    with daemon(*arguments, "--bus.address", bus.address, CONNTRACKD_BUS_ENABLE="true") as made:
        made.wait(lambda: any("org.conntrackd1 is on" in line for line in made.said), "the bus")
        with Raw(bus.address, {}) as raw:
            raw.ask_bus("AddMatch", "s", f"type='signal',interface='{MANAGER}'")
            ask(capsys, "filter", "set", "drop protocol ICMP", "log any")
            told = [hear_signal(raw, "FilterChanged")]
            ask(capsys, "sink", "disable", "stream")
            told.append(hear_signal(raw, "SinkStateChanged"))
            made.process.send_signal(signal.SIGSTOP)
            call_inside(net.client, flood, 30_000, 3000)
            made.process.send_signal(signal.SIGCONT)
            lost = hear_signal(raw, "EventsLost")[0]
            wait_until(lambda: ask(capsys, "status")["Counters"]["events_lost_total"] == lost)

    assert told == [[2, "run time, until a reload or restart"], ["stream", "disabled"]]
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
            made.wait(lambda: any("org.conntrackd1 is on" in line for line in made.said), "the bus")
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
            heard = [hear(each, "SinkStateChanged") for each in allowed]
            # What the others have heard by now, the bus has passed on before it answers this.
            question = wire.Header(
                wire.METHOD_CALL, path=BUS_PATH, interface=BUS, member="GetId", destination=BUS
            )
            stranger.post(question, [])
            heard.append(hear(stranger, ""))
            for each in listeners:
                each.close()
    finally:
        strict.close()

    assert b"10.1.0.2" in lines
    assert heard[-1] == b""
    assert all(b"10.1.0.2" not in each and b"10.2.0.2" not in each for each in heard)


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
        data = raw._read_message()
        header = wire.parse_header(data)
        if header.sender != BUS:
            heard += data
        if header.member == last and (last or header.type == wire.METHOD_RETURN):
            return heard


def test_of_thirty_two_tails_eight_are_opened(running: Running, bus: PrivateBus) -> None:
    with bus.connect() as client:
        client.read_properties()
        before = count_descriptors(running)
        pipes = [client.open_tail([], 0) for _ in range(8)]
        for _ in range(24):
            with pytest.raises(RemoteError, match="8 tails are open already"):
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
