"""Sinks that write other addresses than the kernel says, beside one that does not, through a reload."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from conntrackd.render.cryptopan import CryptoPan
from tests.live import traffic
from tests.live.daemon import Running, daemon, settle
from tests.live.network import SNAT, TRACKING, Network, call_inside, inside

pytestmark = pytest.mark.privileged
RULESET = TRACKING + SNAT

KEYS = (bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96)))
CONFIGURATION = """\
conntrack: {{events: 'new, destroy', protocols: udp, netns: {netns}}}
community_id.enable: true
# Of the addresses that there are.
sink.stream: {{enable: true, filter: ['log source address 10.1.0.2', 'log source address fd01::2', drop any]}}
sinks:
  audit:
    kind: stream
    writer: file://{folder}/audit
    filter: ['log source address 10.1.0.2', 'log source address fd01::2', drop any]
    anonymize: pseudonym
    anonymize_key_file: {folder}/audit.key
  partner:
    kind: stream
    writer: file://{folder}/partner
    anonymize: pseudonym
    anonymize_which: source
    anonymize_key_file: {folder}/partner.key
  short: {{kind: stream, writer: 'file://{folder}/short', anonymize: truncate}}
"""
ADDRESSES = ("src", "dst", "nat_src", "nat_dst")


def talk(net: Network) -> None:
    call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 2)
    call_inside(net.client, traffic.talk_udp, socket.AF_INET6, "fd02::2", 2)


def write_key(path: Path, key: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key)


@contextmanager
def run(net: Network, folder: Path) -> Iterator[Running]:
    """A daemon that has started, with a key for each of the sinks that need one."""
    for name, key in zip(("audit", "partner"), KEYS[:2], strict=True):
        write_key(folder / f"{name}.key", key)
    configuration = folder / "conntrackd.yaml"
    inside(net.router, "conntrack", "-F")
    configuration.write_text(CONFIGURATION.format(netns=net.router, folder=folder))
    with daemon("--config", str(configuration)) as running:
        running.wait_for_start()
        yield running


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def conceal(event: dict[str, Any], key: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """What an event of the clear sink is to be, but for what follows from addresses."""
    pan = CryptoPan(key)
    shown = {
        name: str(ip_address(pan.write([ip_address(event[name]).packed])[0]))
        for name in names
        if name in event
    }
    return strip({**event, **shown})


def strip(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("msg", "community_id")}


def test_each_sink_writes_its_own_pseudonyms_and_a_reload_takes_another_key(
    net: Network, tmp_path: Path
) -> None:
    with run(net, tmp_path) as running:
        talk(net)
        settle(running)
        before = len(running.lines)
        write_key(tmp_path / "audit.key", KEYS[2])
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_words("nothing has changed")
        inside(net.router, "conntrack", "-F")  # a DESTROY of each
        settle(running)
        assert running.stop() == 0

    clear = running.events
    audit, partner, short = (read(tmp_path / name) for name in ("audit", "partner", "short"))
    assert before >= 2
    assert {(event["type"], event["src"]) for event in clear} == {
        (kind, address) for kind in ("NEW", "DESTROY") for address in ("10.1.0.2", "fd01::2")
    }
    assert [strip(event) for event in audit] == [
        conceal(event, KEYS[0] if number < before else KEYS[2], ADDRESSES)
        for number, event in enumerate(clear)
    ]
    expected = [conceal(event, KEYS[1], ("src", "nat_src")) for event in clear]
    assert [event for event in map(strip, partner) if event["dst"] in ("10.2.0.2", "fd02::2")] == expected
    assert {event["src"] for event in short} >= {"10.1.0.0", "fd01::"}
    for name in ("audit", "short"):
        text = (tmp_path / name).read_text()
        assert not [address for address in ("10.1.0.2", "fd01::2", "10.2.0.2") if address in text]
    ids = {event["community_id"] for event in clear}
    assert not ids & {event["community_id"] for event in (*audit, *partner, *short)}


def test_a_reload_with_a_key_that_is_none_changes_nothing(net: Network, tmp_path: Path) -> None:
    with run(net, tmp_path) as running:
        write_key(tmp_path / "audit.key", KEYS[2][:-1])
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_words("has 31 bytes")
        talk(net)
        settle(running)
        assert running.stop() == 0

    assert [strip(event) for event in read(tmp_path / "audit")] == [
        conceal(event, KEYS[0], ADDRESSES) for event in running.events
    ]
