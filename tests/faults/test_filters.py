"""A filter for each of ten sinks, 500 rule sets: of each event one generation of them decides, for all."""

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import pytest

from conntrackd.bus.client import Client
from conntrackd.flow import EventType, Flow, Protocol
from tests.bus.private import PrivateBus
from tests.faults.conversations import converse, gateway
from tests.faults.random_rules import RuleSet, make_rules
from tests.faults.rig import wait_until
from tests.filter.rows import FLOW
from tests.live.daemon import Event, daemon, settle
from tests.live.network import Network, call_inside, inside
from tests.messages import build_message

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

SINKS: Final = tuple(f"sink-{number}" for number in range(10))  # as many as can be named, but one
GENERATIONS: Final = 50
ODD: Final = "odd"  # has every event of each second generation; standard output has all, in order
ROUND, RATE = 200, 2000


class Load(threading.Thread):
    """Flows that come and end until somebody has enough."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net
        self.enough = get_context("fork").Event()
        self.flows = 0

    def run(self) -> None:
        while not self.enough.is_set():
            self.flows += len(call_inside(self.net.client, converse, self.flows, ROUND, RATE))
            inside(self.net.router, "conntrack", "-F")


def configure(path: Path, number: int, rules: dict[str, RuleSet]) -> None:
    """The rules of a generation; the filter of one more sink says whether its number is odd."""
    filters = {name: own.texts for name, own in rules.items()}
    filters[ODD] = [] if number % 2 else ["drop any"]
    sinks = {
        name: {"kind": "stream", "writer": f"file://{path.parent / name}", "filter": texts}
        for name, texts in filters.items()
    }
    path.write_text(json.dumps({"sinks": sinks, "sink.stream.enable": True}))


def read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def wait_for_batches(client: Client) -> None:
    """Two of them: what is decided after a reload is not of the first, which may have been under way."""

    def count() -> int:
        return int(client.call("GetStatistics")[0]["batches_received_total"])

    before = count()
    wait_until(lambda: count() >= before + 2, 10, lambda: "no events")


def test_each_sink_gets_what_its_rules_say_through_500_rule_sets_under_load(
    bus: PrivateBus, tmp_path: Path
) -> None:
    """Where events begin or cease to be in the file of odd generations, the next generation begins."""
    chooser = random.Random(20)
    generations = [{name: make_rules(chooser) for name in SINKS} for _ in range(GENERATIONS)]
    path = tmp_path / "conntrackd.json"
    configure(path, 0, generations[0])
    words = ["--config", str(path), "--bus.address", bus.address]
    with (
        gateway() as net,
        daemon(*words, "--conntrack.netns", net.router, CONNTRACKD_BUS_ENABLE="true") as running,
    ):
        running.wait_for_words("org.conntrackd1 is on")
        load = Load(net)
        load.start()
        with bus.connect() as client:
            for number in range(GENERATIONS):
                if number:
                    configure(path, number, generations[number])
                    client.call("Reload")
                wait_for_batches(client)
        load.enough.set()
        load.join()
        settle(running, 1)
        assert running.stop() == 0
    every, odd = [line.rstrip() for line in running.lines], set(read_lines(tmp_path / ODD))

    judged = [list(lines) for _, lines in itertools.groupby(every, lambda line: line in odd)]
    records = [[json.loads(line) for line in lines] for lines in judged]
    assert len(judged) == GENERATIONS
    assert len(set(every)) == len(every) > load.flows
    assert {record["type"] for some in records for record in some} == {"NEW", "UPDATE", "DESTROY"}
    kept = 0
    for name in SINKS:
        expected = [
            line
            for rules, lines, some in zip(generations, judged, records, strict=True)
            for line, record in zip(lines, some, strict=True)
            if rules[name].keeps(record)
        ]
        assert read_lines(tmp_path / name) == expected
        kept += len(expected)
    print(f"{len(every)} events, {load.flows} flows; {kept} of {len(SINKS) * len(every)} kept")
    assert 0.2 < kept / len(every) / len(SINKS) < 0.8  # rules that keep all, or nothing, would prove nothing


# ---- limits -----------------------------------------------------------------------------------------------

EVENTS: Final = 1_000_000
BLOCK: Final = 1000
LIMITS: Final = (
    "log protocol TCP and destination port 443 limit 100/second burst 400 per source",
    "log protocol UDP limit 2000/second",
    "drop type UPDATE",
    "log any limit 50/second per network/24",
)


OWN: Final = "log any limit 1/second burst 1000"


def make_flow(number: int) -> Flow:
    return replace(
        FLOW,
        id=number,
        type=(EventType.NEW, EventType.UPDATE, EventType.DESTROY)[number % 3].value,
        protocol=(Protocol.TCP, Protocol.UDP)[number % 2].value,
        src=bytes((10, 0, number % 7, number % 50)),
        dport=(443, 80, 53, 22, 8080)[number % 5],
    )


def compute_rule(kind: str, protocol: str, port: int) -> int:
    """The number of the first one that matches."""
    if protocol == "TCP" and port == 443:
        return 1
    if protocol == "UDP":
        return 2
    return 3 if kind == "UPDATE" else 4


def count_rules(records: Iterable[Event]) -> Counter[int]:
    return Counter(compute_rule(record["type"], record["prot"], record["dport"]) for record in records)


def count_held(records: Iterable[Event], setting: str) -> Counter[int]:
    """What is suppressed, by rule of this setting."""
    held = Counter[int]()
    for record in records:
        if record["where"] == setting:
            held[record["rule"]] += record["suppressed"]
    return held


def test_logged_and_suppressed_are_what_each_rule_matched_of_a_million_events(tmp_path: Path) -> None:
    """They are read as fast as they can be: some 600,000 a second on two cores."""
    flows = [make_flow(number) for number in range(BLOCK)]
    (tmp_path / "flood").write_bytes(b"".join(map(build_message, flows)) * (EVENTS // BLOCK))
    (tmp_path / "conntrackd.json").write_text(
        json.dumps(
            {
                "conntrack.replay": str(tmp_path / "flood"),
                "filter": LIMITS,
                "sink.stream": {"enable": True, "filter": [OWN]},
                "sinks": {"every": {"kind": "stream", "writer": f"file://{tmp_path / 'every'}"}},
            }
        )
    )
    began = time.monotonic()
    with daemon("--config", str(tmp_path / "conntrackd.json")) as running:
        assert running.process.wait(60) == 0
        print(f"{EVENTS / (time.monotonic() - began):,.0f} events/s with the start")
        running.stop()
    every = [json.loads(line) for line in read_lines(tmp_path / "every")]
    logged, reports = divide(every)
    own_logged, own_reports = divide(running.events)
    matched: Counter[int] = Counter()
    for flow in flows:
        rule = compute_rule(EventType(flow.type).name or "", Protocol(flow.protocol).name, flow.dport)
        matched[rule] += EVENTS // BLOCK

    held = count_held(reports, "filter")
    assert matched.total() == EVENTS
    assert held.keys() == {1, 2, 4}  # by their numbers
    assert count_rules(logged) + held == matched - Counter({3: matched[3]})
    # Behind it the filter of one sink, which is told of both.
    assert len(own_logged) >= 1000
    assert count_held(own_reports, "filter") == held
    assert len(own_logged) + count_held(own_reports, "sink.stream.filter").total() == len(logged)


def divide(records: Iterable[Event]) -> tuple[list[Event], list[Event]]:
    """Events, and reports of what was suppressed."""
    events, reports = list[Event](), list[Event]()
    for record in records:
        (reports if record["type"] == "SUPPRESSED" else events).append(record)
    return events, reports
