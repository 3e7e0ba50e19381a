"""Healthy only if events that happen now are heard: rules, settings and namespaces that change."""

import contextlib
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli import ctl
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.tracking import News
from conntrackd.source.hearing import TABLE_FULL, Hearing, Look
from tests.bus.private import PrivateBus
from tests.live import traffic
from tests.live.control import ask, talk
from tests.live.daemon import Running, daemon
from tests.live.network import TRACKING, Network, inside, ip, network

pytestmark = pytest.mark.privileged

EVENTS_SETTING = "net.netfilter.nf_conntrack_events"
SECONDS = 10.0


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built, traffic.serve(built.server):
        yield built


@pytest.fixture(autouse=True)
def clean(net: Network) -> Iterator[None]:
    """As a namespace is at first, with one rule that has connections tracked."""
    inside(net.router, "nft", "flush", "ruleset")
    net.load(TRACKING)
    yield
    net.set(EVENTS_SETTING, 2)
    inside(net.router, "nft", "flush", "ruleset")


@pytest.fixture
def start(net: Network, bus: PrivateBus, tmp_path: Path) -> Iterator[Any]:
    """Starts a daemon on the bus, with settings in its file."""
    opened = []

    def start(**conntrack: str) -> Running:
        settings = {"netns": net.router, "events": "new"} | conntrack
        lines = "".join(f"  {name}: {value}\n" for name, value in settings.items())
        path = tmp_path / "conntrackd.yaml"
        path.write_text(f"sink: {{stream: {{enable: true}}}}\nconntrack:\n{lines}")
        manager = daemon("--config", str(path), "--bus.address", bus.address, CONNTRACKD_BUS_ENABLE="true")
        running = manager.__enter__()
        opened.append(manager)
        running.wait_for_start()
        running.wait_for_words("org.conntrackd1 is on")
        return running

    yield start
    for manager in opened:
        manager.__exit__(None, None, None)


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """As a person looks who waits: a few times a second."""
    begin, pause = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() - begin < seconds, "not in time"
        pause.wait(0.2)


def read_problems(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return list(ask(capsys, "status")["Problems"])


def list_lost(running: Running) -> list[dict[str, Any]]:
    return [event for event in running.events if event["type"] == "LOST"]


def list_tables(net: Network) -> str:
    return inside(net.router, "nft", "list", "tables")


# ---- conntrack.activate -------------------------------------------------------------------------------


def test_the_table_of_activate_stays_when_the_ruleset_is_flushed(
    net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "nft", "flush", "ruleset")
    running = start(activate="true")
    for _ in range(3):
        inside(net.router, "nft", "flush", "ruleset")
        talk(net, 2)
    running.wait_for_events(6)

    assert read_problems(capsys) == []
    assert list_lost(running) == []
    assert list_tables(net) == "table inet conntrackd\n"


def test_a_second_process_has_a_table_of_its_own_and_takes_the_first_ones_with_it_in_no_case(
    net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "nft", "flush", "ruleset")
    running = start(activate="true")
    other = ("--conntrack.netns", net.router, "--conntrack.activate", "--sink.stream.enable")
    for number in (9, 15):
        with daemon(*other) as second:
            second.wait_for_start()
            during = list_tables(net).splitlines()
            second.stop(number)
        wait_until(lambda: list_tables(net) == "table inet conntrackd\n")
        assert len(during) == 2
    talk(net, 1)
    running.wait_for_events(1)

    assert read_problems(capsys) == []


def test_a_table_that_nobody_owns_any_more_is_taken_over(net: Network, start: Any) -> None:
    inside(net.router, "nft", "flush", "ruleset")
    net.load("table inet conntrackd { chain track { ct state new continue; }; }")
    running = start(activate="true")

    assert "flags owner" in inside(net.router, "nft", "list", "ruleset")
    running.stop()
    assert list_tables(net) == ""


def test_a_reload_begins_and_ends_tracking(
    net: Network, start: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "nft", "flush", "ruleset")
    running = start()
    path = tmp_path / "conntrackd.yaml"
    before = read_problems(capsys)
    path.write_text(path.read_text() + "  activate: true\n")
    ctl.run(["reload"])
    capsys.readouterr()
    during = read_problems(capsys)
    talk(net, 1)
    running.wait_for_events(1)
    path.write_text(path.read_text().replace("activate: true", "activate: false"))
    ctl.run(["reload"])
    capsys.readouterr()

    assert len(before) == 1
    assert f"conntrack: {{activate: true}} in {path}, then conntrackctl reload; or" in before[0]
    assert during == []
    assert "not tracked" in read_problems(capsys)[0]
    assert list_tables(net) == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_daemon_whose_standard_streams_are_closed_writes_to_its_sinks_alone(
    net: Network, tmp_path: Path, closed: str
) -> None:
    path = tmp_path / "events.json"
    arguments = ["--conntrack.netns", net.router, "--conntrack.events", "new", "--sink.stream.enable"]
    arguments += ["--sink.stream.writer", f"file://{path}"]
    prefix = ["bash", "-c", f'exec "$@" {closed}', "bash"]
    inside(net.router, "conntrack", "-F")
    with daemon(*arguments, prefix=prefix) as running:
        wait_until(lambda: path.exists() and is_joined(net))
        talk(net, 2)
        wait_until(lambda: path.read_text().count("\n") == 2)
        status = running.stop()

    assert status == 0
    assert [json.loads(line)["type"] for line in path.read_text().splitlines()] == ["NEW", "NEW"]


def is_joined(net: Network) -> bool:
    """Whether somebody listens to conntrack's NEW in the router, by /proc/net/netlink."""
    rows = [line.split() for line in inside(net.router, "cat", "/proc/net/netlink").splitlines()[1:]]
    return any(row[1] == "12" and int(row[3], 16) & 1 for row in rows)


# ---- without it ---------------------------------------------------------------------------------------


def test_tracking_that_ends_is_a_problem_until_it_begins_again_and_the_gap_is_reported(
    net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    running = start()
    talk(net, 1)
    running.wait_for_events(1)
    inside(net.router, "nft", "flush", "ruleset")
    wait_until(lambda: any("not tracked" in problem for problem in read_problems(capsys)))
    findings = {finding["check"]: finding["severity"] for finding in ask(capsys, "doctor")}
    talk(net, 3)
    net.load(TRACKING)
    wait_until(lambda: read_problems(capsys) == [])
    running.wait(lambda: list_lost(running), "the gap")
    talk(net, 1)
    running.wait_for_events(3)

    (lost,) = list_lost(running)
    assert findings["tracking"] == "error"
    assert (lost["where"], lost["reason"], "lost" in lost) == (
        "tracking",
        "connections were not tracked",
        False,
    )
    assert lost["msg"] == (
        "LOST events in the kernel (connections were not tracked): "
        "between since and until some may be missing"
    )
    assert lost["since"] < lost["until"]
    assert running.stop() == 0


def test_each_transaction_of_nftables_is_heard_of_once(net: Network) -> None:
    rules = "\n".join(f"        tcp dport {port} accept" for port in range(1, 101))
    with enter(net.router):
        news = News()
    heard: list[int] = []
    try:
        for ruleset in (
            f"table inet many {{\n    chain one {{\n{rules}\n    }}\n}}\n",
            "delete table inet many\n",
        ):
            net.load(ruleset)
            heard.append(bool(select.select([news], [], [], 5)[0]))
            heard.append(len(read_all(news)))
    finally:
        news.close()

    assert heard == [True, 1, True, 1]


def read_all(news: News) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(news._socket.recv(1 << 16))
    return found


def test_a_gap_that_lasts_until_the_end_is_reported_at_the_end(net: Network, start: Any) -> None:
    running = start()
    inside(net.router, "nft", "flush", "ruleset")
    running.wait_for_words("not tracked")
    running.stop()

    assert [event["where"] for event in list_lost(running)] == ["tracking"]


def test_events_that_are_switched_off_are_a_problem_from_the_start_and_later(
    net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    net.set(EVENTS_SETTING, 0)
    running = start()
    at_start = read_problems(capsys)
    warned = running.has_said("nf_conntrack_events is 0")
    net.set(EVENTS_SETTING, 1)
    wait_until(lambda: read_problems(capsys) == [])
    net.set(EVENTS_SETTING, 0)
    wait_until(lambda: read_problems(capsys) != [])
    findings = {finding["check"]: finding for finding in ask(capsys, "doctor")}
    net.set(EVENTS_SETTING, 1)
    running.wait(lambda: list_lost(running), "the gap")

    assert warned
    assert at_start == [
        "the kernel is set to send no events: nf_conntrack_events is 0; "
        f"ip netns exec {net.router} sysctl -w {EVENTS_SETTING}=1  # and where the namespace is made"
    ]
    assert findings["events"]["severity"] == "error"
    assert findings["events"]["remedy"].startswith(f"ip netns exec {net.router} sysctl -w")
    assert [event["reason"] for event in list_lost(running)] == ["nf_conntrack_events was 0"]


def test_a_namespace_that_is_made_anew_under_its_name_is_not_listened_to_and_said_so(
    net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"n-{os.getpid()}-{net.router}"
    ip("netns", "add", name)
    try:
        inside(name, "nft", "-f", "-", text=TRACKING)
        start(netns=name)
        before = read_problems(capsys)
        ip("netns", "del", name)
        ip("netns", "add", name)
        wait_until(lambda: any("deleted or replaced" in problem for problem in read_problems(capsys)))
    finally:
        ip("netns", "del", name)

    assert before == []
    assert any(row["check"] == "namespace" for row in ask(capsys, "doctor"))


def test_what_is_tracked_without_a_rule_is_no_problem(
    net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Open vSwitch and tc have it done: entries come though no rule asks for them."""
    inside(net.router, "nft", "flush", "ruleset")
    start()
    before = read_problems(capsys)
    numbers = iter(range(1, 1000))

    def is_well() -> bool:
        entry = f"-I -p udp -s 10.9.9.9 -d 10.9.9.8 --sport {next(numbers)} --dport 9 -t 60 -u SEEN_REPLY"
        subprocess.run(
            ["ip", "netns", "exec", net.router, "conntrack", *entry.split()], check=True, capture_output=True
        )
        return read_problems(capsys) == []

    wait_until(is_well, 3 * SECONDS)
    assert len(before) == 1


@pytest.mark.parametrize(
    ("family", "rule", "notes"),
    [
        ("inet", "ct state new accept", []),
        (
            "ip",
            "ct state new accept",
            ["connections of IPv4 are tracked, and no rule asks for those of IPv6"],
        ),
        (
            "ip6",
            "ct state new accept",
            ["connections of IPv6 are tracked, and no rule asks for those of IPv4"],
        ),
        ("inet", "udp dport 53 notrack", []),  # nothing is tracked at all, which is said elsewhere
        ("inet", "ct state new accept; udp dport 53 notrack", ["a rule with notrack"]),
    ],
)
def test_what_is_left_out_of_tracking_is_noted_and_no_problem(
    family: str, rule: str, notes: list[str], net: Network, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "nft", "flush", "ruleset")
    lines = "\n".join(rule.split("; "))
    net.load(f"table {family} x {{ chain y {{ type filter hook prerouting priority -300;\n{lines}\n}}\n}}")
    start()
    found = [
        row["message"]
        for row in ask(capsys, "doctor")
        if row["check"] == "tracking" and row["severity"] == "note"
    ]

    assert [each.startswith(note) for each, note in zip(found, notes, strict=True)] == [True] * len(notes)
    is_tracked = "ct state" in rule
    assert [each for each in read_problems(capsys) if is_tracked or "not tracked" not in each] == []


def test_a_table_that_is_nearly_full_is_a_problem(net: Network) -> None:
    hearing = Hearing(None, b"")
    found = []
    for share in (0.1, 0.96, 0.1):
        hearing.note(Look(True, 1, 10, share), 1)
        found.append(hearing.faults)

    assert found == [(), (TABLE_FULL,), ()]
    assert hearing.pop_gap(2) is None
