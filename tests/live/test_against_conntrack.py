"""The daemon beside `conntrack -E`, on the same real connections: the same events, field by field."""

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conntrackd.flow import Protocol
from tests.live import traffic
from tests.live.daemon import Running, daemon, settle
from tests.live.network import DNAT, SNAT, TRACKING, Network, call_inside, inside, network

pytestmark = pytest.mark.privileged

LINE = re.compile(r"\s*\[\d+\.\d+\]\s+\[(\w+)\]\s+\w+\s+(\d+)\s+(.*)")
PROTOCOLS = "tcp,udp,icmp,icmpv6,sctp"


class Peer:
    """conntrack-tools' `conntrack -E`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._gather)
        self._thread.start()

    def _gather(self) -> None:
        assert self.process.stdout is not None
        self.lines += [line.decode() for line in self.process.stdout]

    def stop(self) -> list[dict[str, Any]]:
        self.process.terminate()
        self._thread.join(10)
        return [parse(line) for line in self.lines if LINE.match(line)]


@contextmanager
def conntrack(namespace: str) -> Iterator[Peer]:
    arguments = ["conntrack", "-E", "-o", "id,timestamp", "--buffer-size", "8388608"]
    with subprocess.Popen(
        ["ip", "netns", "exec", namespace, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        peer = Peer(process)
        try:
            yield peer
        finally:
            peer.stop()


def parse(line: str) -> dict[str, Any]:
    """One line of conntrack -E, in our words."""
    match = LINE.match(line)
    assert match, line
    event, number, rest = match[1], int(match[2]), match[3]
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"([a-z]+)=(\S+)", rest):
        found.setdefault(key, []).append(value)
    states = re.findall(
        r"\b(?!SRC|DST)([A-Z_0-9]*[A-Z]{2}[A-Z_0-9]*)\b(?=.*src=)", rest.split("src=")[0] + "src="
    )
    parsed: dict[str, Any] = {
        "type": event,
        "flow": int(found["id"][-1]),
        "prot": Protocol(number).name,
        "src": found["src"][0],
        "dst": found["dst"][0],
    }
    has_ports = "sport" in found
    if has_ports:
        parsed |= {"sport": int(found["sport"][0]), "dport": int(found["dport"][0])}
    if number == Protocol.TCP and states:
        parsed["state"] = states[0]
    sports, dports = found.get("sport", ["0", "0"]), found.get("dport", ["0", "0"])
    ids = [int(entry) for entry in found["id"][:2]] if "type" in found else [0, 0]
    snat = (found["dst"][1], dports[1], ids[1]) != (found["src"][0], sports[0], ids[0])
    dnat = (found["src"][1], sports[1]) != (found["dst"][0], dports[0])
    if snat or dnat:
        parsed["nat"] = "BOTH" if snat and dnat else "SNAT" if snat else "DNAT"
        parsed |= {"nat_src": found["dst"][1], "nat_dst": found["src"][1]}
        if has_ports:
            parsed |= {"nat_sport": int(dports[1]), "nat_dport": int(sports[1])}
        if "type" in found:
            parsed["nat_icmp_id"] = ids[1]
    if found.get("mark", ["0"])[0] != "0":
        parsed["mark"] = int(found["mark"][0])
    if "packets" in found:
        parsed |= {"packets": int(found["packets"][0]), "bytes": int(found["bytes"][0])}
        parsed |= {"reply_packets": int(found["packets"][1]), "reply_bytes": int(found["bytes"][1])}
    if "type" in found:
        parsed |= {"icmp_type": int(found["type"][0]), "icmp_code": int(found["code"][0])}
        parsed["icmp_id"] = ids[0]
    return parsed


def reduce(event: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name in names}


# What conntrack prints too. It leaves the state of a DESTROY out.
COMPARED = {
    *("type", "flow", "prot", "src", "dst", "sport", "dport", "nat", "nat_src", "nat_dst", "nat_sport"),
    *("nat_dport", "mark", "packets", "bytes", "reply_packets", "reply_bytes", "icmp_type", "icmp_code"),
    *("icmp_id", "nat_icmp_id"),
}


EXPECTED = {"": None, SNAT: "SNAT", DNAT: "DNAT", SNAT + DNAT: "BOTH"}


def talk(net: Network, address4: str, address6: str) -> None:
    for family, address in ((socket.AF_INET, address4), (socket.AF_INET6, address6)):
        call_inside(net.client, traffic.talk_stream, family, address, socket.IPPROTO_TCP, 3)
        call_inside(net.client, traffic.talk_udp, family, address, 3)
        call_inside(net.client, traffic.ping, family, address)
        if traffic.has_sctp():
            call_inside(net.client, traffic.talk_stream, family, address, socket.IPPROTO_SCTP)


def finish(net: Network, running: Running) -> None:
    """All flows end now, whatever their timeouts are."""
    settle(running)
    inside(net.router, "conntrack", "-F")
    settle(running)


@pytest.mark.parametrize("accounting", [0, 1])
@pytest.mark.parametrize("rules", ["", SNAT, DNAT, SNAT + DNAT], ids=["plain", "SNAT", "DNAT", "both"])
def test_the_events_are_those_of_conntrack_in_their_order(rules: str, accounting: int) -> None:
    with network() as net:
        net.load(TRACKING + rules)
        net.set("net.netfilter.nf_conntrack_acct", accounting)
        net.set("net.netfilter.nf_conntrack_timestamp", accounting)
        arguments = ["--conntrack.netns", net.router, "--conntrack.protocols", PROTOCOLS]
        with (
            traffic.serve(net.server),
            conntrack(net.router) as peer,
            daemon(*arguments, "--sink.stream.enable") as running,
        ):
            running.wait_for_start()
            talk(net, *(("10.1.0.1", "fd01::1") if "dnat ip" in rules else ("10.2.0.2", "fd02::2")))
            finish(net, running)
            assert running.stop() == 0
            theirs = peer.stop()
        ours = running.events

    assert [reduce(event, COMPARED) for event in ours] == [reduce(event, COMPARED) for event in theirs]
    assert [event.get("state") for event in ours if event["type"] != "DESTROY"] == [
        event.get("state") for event in theirs if event["type"] != "DESTROY"
    ]
    assert {event["type"] for event in ours} == {"NEW", "UPDATE", "DESTROY"}
    ended = [event for event in ours if event["type"] == "DESTROY"]
    assert all(("packets" in run, "duration" in run) == (accounting == 1,) * 2 for run in ended)
    nats = {event.get("nat") for event in ours if ":" not in event["src"]}
    assert nats == {
        ("BOTH" if rules == SNAT + DNAT else "SNAT" if rules == SNAT else "DNAT") if rules else None
    }


def test_an_identifier_that_alone_is_translated_is_reported_and_asked_for() -> None:
    with network() as net:
        net.load(TRACKING + SNAT)
        rules = ["--filter", "log nat SNAT and icmp id 77 and not reply icmp id 77", "--filter", "drop any"]
        arguments = ["--conntrack.netns", net.router, "--conntrack.protocols", "icmp", *rules]
        with daemon(*arguments, "--sink.stream.enable") as running:
            running.wait_for_start()
            for namespace in (net.client, net.router):  # one after the other, to one host from one address
                call_inside(namespace, traffic.ping, socket.AF_INET, "10.2.0.2", 77)
            settle(running)
            assert running.stop() == 0

    found = [(event["src"], event["nat_src"], event["nat_icmp_id"] != 77) for event in running.events]
    assert set(found) == {("10.2.0.1", "10.2.0.1", True)}
