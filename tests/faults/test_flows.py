"""10,000 flows through a gateway: each is one record, with the sums that the table and its own ends give."""

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from conntrackd.engine import SLOTS
from tests.faults.conversations import (
    COUNTERS,
    FIRST_PORT,
    HEADERS,
    TARGETS,
    Counted,
    Flow,
    converse,
    gateway,
    identify,
    list_table,
)
from tests.live.daemon import Event, Running, daemon, settle
from tests.live.network import Network, call_inside, inside
from tests.live.service import Store, service
from tests.live.test_flows import read_ns

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

FLOWS, RATE = 10_000, 2000
EVERY = "new,update,destroy"
ENDS = {"events": ["DESTROY"], "flows": ["FLOW"], "both": ["DESTROY", "FLOW"]}


@pytest.mark.parametrize(("records", "timestamps"), [("events", 0), ("flows", 0), ("both", 1)])
def test_each_flow_is_one_record_with_the_sums_of_the_table_and_of_its_ends(
    records: str, timestamps: int
) -> None:
    with gateway() as net:
        net.set("net.netfilter.nf_conntrack_timestamp", timestamps)
        arguments = ["--conntrack.netns", net.router, "--conntrack.records", records, "--sink.stream.enable"]
        with daemon(*arguments) as running:
            running.wait_for_start()
            counted = call_inside(net.client, converse, 0, FLOWS, RATE)
            table = list_table(net)
            inside(net.router, "conntrack", "-F")
            running.wait(lambda: count_lines(running, ENDS[records][-1]) >= FLOWS, "every end", 60)
            assert running.stop() == 0
    found = divide(running.events)

    assert table.keys() == counted.keys()
    expected = ENDS[records] if records == "flows" else ["NEW", "UPDATE", *ENDS[records]]
    assert sorted(found) == sorted(expected)
    for kind in {*expected} - {"UPDATE"}:
        assert Counter(map(identify, found[kind])) == Counter(dict.fromkeys(counted, 1))
    for kind in ENDS[records]:
        for record in found[kind]:
            flow = identify(record)
            assert_sums(record, table[flow], counted[flow])
            assert_beginning(record, counted[flow], kind, timestamps)


def count_lines(running: Running, kind: str) -> int:
    mark = f'"type":"{kind}"'.encode()
    return sum(mark in line for line in list(running.lines))


def divide(records: list[Event]) -> dict[str, list[Event]]:
    """By their type."""
    found = defaultdict(list)
    for record in records:
        found[record["type"]].append(record)
    return found


def assert_sums(record: Event, listed: dict[str, Any], counted: Counted) -> None:
    """Tuples and counters: as the kernel lists the flow, and as its ends have counted."""
    assert {name: record[name] for name in listed} == listed
    sums = tuple(record[name] for name in COUNTERS)
    if counted.counters is not None:
        assert sums == counted.counters
    else:  # of TCP the handshake, the data and the end each way
        assert min(sums[0], sums[2]) >= 3


def assert_beginning(record: Event, counted: Counted, kind: str, timestamps: int) -> None:
    """When the flow began, by the kernel's clock, or of a record of it by ours."""
    name = "start" if timestamps else "first_seen"
    assert (name in record) == (kind == "FLOW" or bool(timestamps))
    if timestamps:
        assert counted.began_ns <= read_ns(record[name]) <= counted.ended_ns
    elif name in record:
        assert counted.began_ns <= read_ns(record[name])


# ---- restarts ---------------------------------------------------------------------------------------------

ROUNDS = 10
# What a killed process may have had in its memory: what it had taken from its socket, and not yet written.
MOST_IN_MEMORY = 4 * SLOTS


class Load(threading.Thread):
    """Flows that come and end in rounds; what their ends and the table say of them."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net
        self.counted: dict[Flow, Counted] = {}
        self.table: dict[Flow, dict[str, Any]] = {}
        self.ended: dict[Flow, tuple[int, int]] = {}
        """Between which times the kernel has ended it."""

    def run(self) -> None:
        for number in range(ROUNDS):
            count = FLOWS // ROUNDS
            counted = call_inside(self.net.client, converse, number * count, count, RATE)
            self.counted |= counted
            self.table |= list_table(self.net)
            begin = time.time_ns()
            inside(self.net.router, "conntrack", "-F")
            self.ended |= dict.fromkeys(counted, (begin, time.time_ns()))


def is_later(running: Running, when: int) -> bool:
    """Whether the last line is of an event after this time."""
    return bool(running.lines) and read_ns(json.loads(running.lines[-1])["time"]) > when


def test_killed_again_and_again_no_record_is_written_twice_and_what_it_had_not_read_is_written(
    store: Store, tmp_path: Path
) -> None:
    """What it had read and not written is within the period that the next one reports."""
    chooser, records, kills, died = random.Random(19), list[Event](), 0, 0
    words = ["--conntrack.records", "both"]
    settings = {"STATE_DIRECTORY": os.fspath(tmp_path)}
    with gateway() as net:
        load = Load(net)
        while load.ident is None or load.is_alive():
            store.catch_up()
            passed = dict(store.all)
            with service(net, store, None, *words, passed=passed, events=EVERY, **settings) as running:
                if load.ident is None:
                    load.start()
                began, more = time.time_ns(), chooser.randrange(1, 3000)
                caught_up = 0  # lines by then: what had waited in the socket is written
                while load.is_alive() and (not caught_up or len(running.lines) < caught_up + more):
                    load.join(0.01)
                    if not caught_up and is_later(running, began):
                        caught_up = len(running.lines)
                running.stop(signal.SIGKILL)
            kills += 1
            records += running.events
        with service(net, store, None, *words, passed=dict(store.all), events=EVERY, **settings) as running:
            settle(running, 1)
            assert running.stop() == 0
        records += running.events
    found = divide(records)

    assert load.table.keys() == load.counted.keys()
    lost = found.pop("LOST")
    assert {(event["where"], event["reason"]) for event in lost} == {("daemon", "ended without a stop")}
    assert len(lost) == kills
    periods = [(read_ns(event["since"]), read_ns(event["until"])) for event in lost]
    assert found.keys() == {"NEW", "UPDATE", "DESTROY", "FLOW"}
    for kind in ("NEW", "DESTROY", "FLOW"):
        seen = Counter(map(identify, found[kind]))
        assert set(seen.values()) == {1}
        died = FLOWS - len(seen)
        print(f"{kills} kills: {died} {kind} died")
        assert seen.keys() <= load.counted.keys()
        assert died <= kills * MOST_IN_MEMORY
        for flow in load.counted.keys() - seen.keys():
            counted = load.counted[flow]
            begin, end = (counted.began_ns, counted.ended_ns) if kind == "NEW" else load.ended[flow]
            assert any(since <= end and begin <= until for since, until in periods)
    for record in (*found["DESTROY"], *found["FLOW"]):
        assert_sums(record, load.table[identify(record)], load.counted[identify(record)])
    # What a killed process remembered of the beginnings is gone.
    assert all(("first_seen" in record) != ("incomplete" in record) for record in found["FLOW"])
    assert any("incomplete" in record for record in found["FLOW"])


# ---- heartbeats -------------------------------------------------------------------------------------------

LIVING, SECONDS = 300, 30
BEAT = 2
DELTAS = tuple(f"{name}_delta" for name in COUNTERS)


def transfer(count: int, seconds: float) -> dict[int, tuple[int, int]]:
    """So many flows at once, each in bursts at its own times; what each has sent, by its port."""
    chooser, found = random.Random(count), {}
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        sockets = []
        for number in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(10)
            sock.bind(("10.1.0.2", FIRST_PORT + number))
            sock.connect((TARGETS[4][number % 2], 8080))
            sockets.append(sock)
            found[FIRST_PORT + number] = (0, 0)
        while time.monotonic() < end:
            for number in chooser.sample(range(count), max(1, count // 10)):
                size, sock = chooser.randrange(100), sockets[number]
                sock.send(bytes(size))
                assert len(sock.recv(100)) == size
                packets, data = found[FIRST_PORT + number]
                found[FIRST_PORT + number] = (packets + 1, data + HEADERS[4] + size)
            time.sleep(0.01)
    return found


def test_heartbeats_and_the_end_of_a_flow_add_up_to_its_counters() -> None:
    sent: dict[int, tuple[int, int]] = {}
    with gateway() as net:
        arguments = ["--conntrack.netns", net.router, "--conntrack.heartbeat", f"{BEAT}s"]
        arguments += ["--conntrack.records", "flows", "--sink.stream.enable"]
        with daemon(*arguments) as running:
            running.wait_for_start()
            # Its first reading of the table finds what there was before, and writes nothing.
            sent |= call_inside(net.client, transfer, 1, 2 * BEAT)
            running.wait(lambda: count_lines(running, "ALIVE"), "the second reading")
            inside(net.router, "conntrack", "-F")
            running.wait(lambda: count_lines(running, "FLOW"), "its end")
            before = len(running.lines)
            sent |= call_inside(net.client, transfer, LIVING, SECONDS)
            table = list_table(net)
            inside(net.router, "conntrack", "-F")
            running.wait(lambda: count_lines(running, "FLOW") == LIVING + 1, "every end")
            assert running.stop() == 0
    by_flow = defaultdict(list)
    for record in running.events[before:]:
        by_flow[identify(record)].append(record)

    assert by_flow.keys() == table.keys()
    assert len(by_flow) == LIVING
    for flow, records in by_flow.items():
        *alive, end = records
        assert {record["type"] for record in alive} == {"ALIVE"}
        assert end["type"] == "FLOW"
        assert len(alive) > 3
        for name, delta in zip(COUNTERS, DELTAS, strict=True):
            assert sum(record[delta] for record in records) == end[name] == table[flow][name]
        assert (end["packets"], end["bytes"]) == (end["reply_packets"], end["reply_bytes"]) == sent[flow.port]
