"""contrib/recipes: each configuration is good, and does with events what its comments say."""

import configparser
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any, Final

import pytest

from conntrackd.cli import ctl
from conntrackd.cli.daemon import parse_and_run
from tests.live import traffic
from tests.live.daemon import daemon
from tests.live.network import SNAT, TRACKING, Network, call_inside, inside, ip

FOLDER: Final = Path(__file__).parents[2] / "contrib/recipes"
NAMES: Final = sorted(path.parent.name for path in FOLDER.glob("*/conntrackd.yaml"))
CUSTOMER: Final = {"prot": "UDP", "src": "100.64.0.9", "dst": "8.8.8.8", "sport": 5000, "dport": 53}
TRANSLATED: Final = {"nat": "SNAT", "nat_src": "198.51.100.7", "nat_sport": 40001}
UNREPLIED: Final = 0  # what the kernel's bits of the status are then
SEEN_REPLY: Final = 2
HOME: Final = {"prot": "TCP", "src": "192.168.1.20", "sport": 5000}
HOST: Final = {"prot": "TCP", "src": "10.0.0.5", "sport": 5000}
POD: Final = {"prot": "TCP", "src": "10.244.1.7", "sport": 5000}
# Recipe -> events, and the rule that logs them: 0 where no rule decides, None where they are dropped.
CASES: Final[dict[str, list[tuple[dict[str, Any], int | None]]]] = {
    "cgnat": [
        (CUSTOMER | TRANSLATED | {"type": "DESTROY"}, 1),
        (CUSTOMER | {"type": "DESTROY"}, None),
    ],
    "home-router": [
        (HOME | {"type": "NEW", "dst": "93.184.216.34", "dport": 443}, 0),
        (HOME | {"type": "NEW", "dst": "224.0.0.251", "dport": 5353}, None),
        (HOME | {"type": "NEW", "dst": "192.168.1.1", "dport": 53}, None),
    ],
    "bastion": [
        (HOST | {"type": "NEW", "dst": "10.0.0.1", "dport": 22}, 0),
        (HOST | {"type": "DESTROY", "dst": "10.9.0.1", "dport": 5432}, 0),
        (HOST | {"type": "NEW", "prot": "UDP", "dst": "10.0.0.53", "dport": 53}, None),
        (HOST | {"type": "NEW", "prot": "UDP", "dst": "8.8.8.8", "dport": 53}, 0),
        (HOST | {"type": "NEW", "src": "127.0.0.1", "dst": "127.0.0.1", "dport": 25}, None),
    ],
    "kubernetes-node": [
        (POD | {"type": "NEW", "dst": "10.96.0.20", "dport": 80, "nat": "DNAT", "nat_dst": "10.244.2.2"}, 3),
        (POD | {"type": "NEW", "dst": "1.1.1.1", "dport": 443}, 4),
        (POD | {"type": "NEW", "src": "198.51.100.1", "dst": "10.0.0.5", "dport": 30080}, 4),
        (POD | {"type": "NEW", "src": "10.0.0.5", "dst": "10.0.0.6", "dport": 10250}, None),
    ],
    "scan-detection": [
        (HOST | {"type": "NEW", "src": "192.0.2.200", "dst": "10.0.0.1", "dport": 23}, None),
        (HOST | {"type": "DESTROY", "src": "203.0.113.9", "dst": "10.0.0.1", "status": SEEN_REPLY}, 2),
        (HOST | {"type": "NEW", "src": "198.51.100.1", "dst": "10.0.0.1", "dport": 3389}, 3),
        (HOST | {"type": "DESTROY", "src": "198.51.100.1", "dst": "10.0.0.1", "status": UNREPLIED}, 4),
        (HOST | {"type": "DESTROY", "src": "198.51.100.1", "dst": "10.0.0.1", "status": SEEN_REPLY}, None),
        (HOST | {"type": "NEW", "dst": "93.184.216.34", "dport": 443}, None),
    ],
}
# One flow of so many, and the rule.
SAMPLES: Final[dict[str, tuple[dict[str, Any], int, int]]] = {
    "home-router": (HOME | {"type": "NEW", "prot": "UDP", "dst": "9.9.9.9", "dport": 53}, 100, 4),
    "kubernetes-node": (POD | {"type": "NEW", "dst": "10.244.3.3", "dport": 8080}, 100, 5),
    "scan-detection": (HOST | {"type": "NEW", "src": "8.8.4.4", "dst": "10.0.0.1", "dport": 443}, 100, 5),
}
FLOWS: Final = 3000


def install(name: str, folder: Path) -> Path:
    """The recipe where it belongs, below a folder."""
    shutil.copytree(FOLDER / name, folder, dirs_exist_ok=True)
    path = folder / "conntrackd.yaml"
    text = path.read_text().replace("/etc/conntrackd/", f"{folder}/")
    path.write_text(text.replace("/var/log/conntrackd/", f"{folder}/"))
    return path


def evaluate(
    path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> list[int | None]:
    """The rule that logs each of the records, as in CASES, by `conntrackctl filter test`."""
    events = path.parent / "events.json"
    events.write_text("".join(f"{json.dumps({'flow': 1} | record)}\n" for record in records))
    assert ctl.run(["filter", "test", "--json", "--config", str(path), str(events)]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return [(line["rule"] or 0) if line["decision"] == "log" else None for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_good_and_keeps_what_it_is_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = install(name, tmp_path)

    assert parse_and_run(["check", "--config", str(path), "--state_directory", str(tmp_path / "state")]) == 0
    assert "warning" not in capsys.readouterr().err

    assert evaluate(path, [record for record, _ in CASES[name]], capsys) == [rule for _, rule in CASES[name]]
    if name in SAMPLES:
        record, rate, rule = SAMPLES[name]
        found = evaluate(path, [record | {"flow": flow} for flow in range(FLOWS)], capsys)
        assert set(found) == {rule, None}
        assert FLOWS / rate / 2 < found.count(rule) < FLOWS / rate * 2


def test_the_page_names_every_recipe_and_its_files() -> None:
    rows = re.findall(
        r"(?m)^\| `([\w-]+)` \|.*\| (.*) \|$|^\| `([\w-]+)` \|.*\|\s*\|$", (FOLDER / "README.md").read_text()
    )
    found = {first or second: set(re.findall(r"`(\S+)`", files)) for first, files, second in rows}

    assert found == {
        name: {path.name for path in (FOLDER / name).iterdir()} - {"conntrackd.yaml"} for name in NAMES
    }
    assert sorted(CASES) == NAMES


def test_the_drop_in_and_the_sysctl_are_what_systemd_reads() -> None:
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((FOLDER / "bastion/bastion.conf").read_text())
    lines = (FOLDER / "cgnat/sysctl.conf").read_text().splitlines()

    assert {section: dict(unit[section]) for section in unit.sections()} == {
        "Unit": {"Before": "ssh.service sshd.service ssh.socket"},
        "Service": {"Restart": "always"},
    }
    settings = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    assert [Path("/proc/sys", *name.split(".")).exists() for name in settings] == [True]


@pytest.mark.privileged
def test_a_carrier_has_one_line_for_a_translated_flow(net: Network, tmp_path: Path) -> None:
    net.load(TRACKING + SNAT)
    net.set("net.netfilter.nf_conntrack_timestamp", 1)
    path = install("cgnat", tmp_path)
    with daemon(
        *("--config", str(path), "--conntrack.netns", net.router, "--sink.stream.writer", "stdout")
    ) as running:
        running.wait_for_start()
        call_inside(net.client, traffic.ping, socket.AF_INET, "10.1.0.1")  # the router: not translated
        call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2")
        inside(net.router, "conntrack", "-F")
        running.wait_for_events(1)
        assert running.stop() == 0

    [record] = running.events
    assert record.items() >= {"type": "FLOW", "src": "10.1.0.2", "nat_src": "10.2.0.1"}.items()
    assert {"sport", "nat_sport", "start", "stop"} <= record.keys()
    assert not {"dst", "dport"} & record.keys()


@pytest.mark.privileged
def test_a_node_writes_the_network_of_a_client_from_the_outside(net: Network, tmp_path: Path) -> None:
    path = install("kubernetes-node", tmp_path)
    ip("-n", net.client, "address", "add", "203.0.113.77/32", "dev", "eth0")
    ip("-n", net.router, "route", "add", "203.0.113.77", "via", "10.1.0.2")
    options = ("--conntrack.netns", net.router, "--conntrack.events", "new", "--sink.stream.writer", "stdout")
    with daemon("--config", str(path), *options) as running:
        running.wait_for_start()
        call_inside(net.client, send, "203.0.113.77", "10.2.0.2")
        call_inside(net.server, send, "10.2.0.2", "203.0.113.77")
        running.wait_for_events(2)
        assert running.stop() == 0

    assert {(event["src"], event["dst"]) for event in running.events} == {
        ("203.0.113.0", "10.2.0.2"),
        ("10.2.0.2", "203.0.113.77"),
    }


def send(source: str, target: str) -> None:
    """A datagram to nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.sendto(b"", (target, 9))


@pytest.mark.privileged
def test_a_knock_on_a_closed_port_is_seen_and_a_service_in_use_is_not(net: Network, tmp_path: Path) -> None:
    path = install("scan-detection", tmp_path)
    (tmp_path / "watched.txt").write_text("fd01::2\n")
    options = ("--sink.journal.enable", "false", "--sink.stream.enable")
    with daemon("--config", str(path), "--conntrack.netns", net.router, *options) as running:
        running.wait_for_start()
        call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", 0)
        call_inside(net.client, knock, "10.2.0.2", 23)
        call_inside(net.client, traffic.talk_stream, socket.AF_INET6, "fd02::2", 0)
        running.wait_for_events(2)
        assert running.stop() == 0

    assert [(event["type"], event["src"], event["dport"]) for event in running.events] == [
        ("NEW", "10.1.0.2", 23),
        ("NEW", "fd01::2", 8080),
    ]


def knock(address: str, port: int) -> None:
    """As a scan does, at a port that is closed."""
    with socket.socket() as sock:
        sock.settimeout(10)
        assert sock.connect_ex((address, port)) != 0
