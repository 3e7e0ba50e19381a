"""A record for each flow, on real connections through a gateway, against what the kernel's table says."""

import re
import signal
import socket
import subprocess
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.bus.private import PrivateBus
from tests.live import traffic
from tests.live.control import ask, start_flood
from tests.live.daemon import Running, daemon, settle
from tests.live.network import SNAT, TRACKING, Network, call_inside, inside, list_connections, network

pytestmark = pytest.mark.privileged

UDP_FLOWS = 300
TCP_FLOWS = 20
# One packet each way, with IP's header and the protocol's.
UDP_BYTES, PING_BYTES = 20 + 8 + len(b"hello"), 20 + 8


def prepare(net: Network, accounting: int) -> None:
    net.load(TRACKING + SNAT)
    for name in ("acct", "timestamp"):
        net.set(f"net.netfilter.nf_conntrack_{name}", accounting)


def talk(net: Network) -> None:
    call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", UDP_FLOWS)
    call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", 0, TCP_FLOWS)
    call_inside(net.client, traffic.ping, socket.AF_INET, "10.2.0.2", 77)


def identify(record: dict[str, Any]) -> tuple[int, int]:
    """Of 10,000 flows two have the same id in one run of a hundred."""
    return record["flow"], record.get("sport", 0)


def end_all(net: Network, running: Running, records: int) -> dict[tuple[int, int], dict[str, Any]]:
    """All flows end now; what the table said of them before."""
    table = {identify(flow): flow for flow in list_connections(net)}
    inside(net.router, "conntrack", "-F")
    running.wait_for_events(records)
    assert running.stop() == 0
    return table


def read_ns(text: str) -> int:
    """Nanoseconds since the epoch."""
    whole, _, rest = text.partition(".")
    return int(datetime.fromisoformat(whole + rest[9:]).timestamp()) * 10**9 + int(rest[:9])


def read_duration(line: bytes) -> int:
    """Of a record, in nanoseconds: a float has not so many digits."""
    match = re.search(rb'"duration":(\d+)\.(\d{9})', line)
    assert match, line
    return int(match[1] + match[2])


@pytest.mark.parametrize("accounting", [0, 1], ids=["bare", "accounting"])
def test_a_flow_is_one_record_with_all_that_is_known_of_it(accounting: int) -> None:
    with network() as net:
        prepare(net, accounting)
        arguments = ["--conntrack.netns", net.router, "--conntrack.protocols", "tcp,udp,icmp"]
        arguments += ["--conntrack.records", "flows", "--community_id.enable", "--sink.stream.enable"]
        with traffic.serve(net.server), daemon(*arguments) as running:
            running.wait_for_start()
            began = time.time_ns()
            talk(net)
            table = end_all(net, running, UDP_FLOWS + TCP_FLOWS + 1)
            ended = time.time_ns()
    records, groups = running.events, next(line for line in running.said if "listening to" in line)

    # The kernel is asked for NEW only where it does not tell the start itself.
    assert ("listening to DESTROY events" in groups) == (accounting == 1)
    assert Counter(record["prot"] for record in records) == {"UDP": UDP_FLOWS, "TCP": TCP_FLOWS, "ICMP": 1}
    assert {record["type"] for record in records} == {"FLOW"}
    assert len({record["community_id"] for record in records}) == len(records)
    for record in records:
        expected = table[identify(record)]
        assert {name: record[name] for name in expected} == expected
        assert record["nat"] == "SNAT"
    assert ["packets" in record for record in records] == [accounting == 1] * len(records)
    first = "start" if accounting else "first_seen"
    for record, line in zip(records, running.lines, strict=True):
        assert ("start" in record, "first_seen" in record) == (accounting == 1, accounting == 0)
        assert began <= read_ns(record[first]) <= ended
        last = read_ns(record["stop"] if accounting else record["time"])
        assert read_duration(line) == last - read_ns(record[first])
    if accounting:
        assert_counters(records)


def assert_counters(records: list[dict[str, Any]]) -> None:
    """What was sent, and what the message says of it."""
    for record in records:
        sums = [record[f"{prefix}{name}"] for prefix in ("", "reply_") for name in ("packets", "bytes")]
        if record["prot"] == "TCP":  # SYN, data and FIN at least each way
            assert min(sums[0], sums[2]) >= 3
            assert min(sums[1], sums[3]) > 3 * 40
        else:
            size = UDP_BYTES if record["prot"] == "UDP" else PING_BYTES
            assert sums == [1, size, 1, size]
    udp = next(record for record in records if record["prot"] == "UDP")
    assert re.fullmatch(
        rf"FLOW UDP connection from 10\.1\.0\.2:{udp['sport']} to 10\.2\.0\.2:8080, "
        rf"sent {UDP_BYTES} B in 1 packet, received {UDP_BYTES} B in 1 packet, lasted \d+\.\d{{3}} s",
        udp["msg"],
    )


def test_both_are_written_by_several_readers_and_rules_are_asked_about_the_destroy() -> None:
    with network() as net:
        prepare(net, 0)
        arguments = ["--conntrack.netns", net.router, "--conntrack.records", "both"]
        arguments += ["--conntrack.readers", "2", "--sink.stream.enable"]
        arguments += ["--filter", "drop type UPDATE", "--filter", "drop type DESTROY and protocol TCP"]
        with traffic.serve(net.server), daemon(*arguments) as running:
            running.wait_for_start()
            talk(net)
            end_all(net, running, 3 * UDP_FLOWS + TCP_FLOWS)
    records = running.events

    assert Counter((record["type"], record["prot"]) for record in records) == {
        ("NEW", "UDP"): UDP_FLOWS,
        ("NEW", "TCP"): TCP_FLOWS,
        ("DESTROY", "UDP"): UDP_FLOWS,
        ("FLOW", "UDP"): UDP_FLOWS,
    }
    began = {identify(record): record["time"] for record in records if record["type"] == "NEW"}
    ended: dict[tuple[int, int], dict[str, Any]] = {}
    for record in records:
        if record["type"] == "DESTROY":
            ended[identify(record)] = record
        elif record["type"] == "FLOW":  # its DESTROY is before it
            assert record["first_seen"] == began[identify(record)]
            twin = ended.pop(identify(record))
            assert {**record, "type": "DESTROY", "msg": twin["msg"]} == twin


def test_a_flow_whose_beginning_was_lost_or_came_before_the_daemon_says_so(net: Network) -> None:
    net.set("net.netfilter.nf_conntrack_events", 1)  # an older flow ends with an event, too
    words = ["--conntrack.netns", net.router, "--conntrack.records", "both", "--conntrack.protocols", "udp"]
    start_flood(net, 10_000, 10).join()
    with daemon(*words, "--conntrack.buffer", "64K", "--sink.stream.enable") as running:
        running.wait_for_start()
        running.process.send_signal(signal.SIGSTOP)
        start_flood(net, 20_000, 1000).join()
        running.process.send_signal(signal.SIGCONT)
        running.wait(lambda: any(b'"LOST"' in line for line in running.lines), "a LOST record")
        inside(net.router, "conntrack", "-D", "-p", "udp", "--orig-port-src", "10009")
        inside(net.router, "conntrack", "-F")
        running.wait(lambda: sum(b'"FLOW"' in line for line in running.lines) > 10, "the ends")
        settle(running)
        assert running.stop() == 0
    ports = {
        kind: {record["sport"] for record in running.events if record["type"] == kind}
        for kind in ("NEW", "FLOW")
    }
    incomplete = {record["sport"] for record in running.events if "incomplete" in record}

    assert {record["incomplete"] for record in running.events if "incomplete" in record} == {True}
    assert {record["type"] for record in running.events if "incomplete" in record} == {"FLOW"}
    assert incomplete == ports["FLOW"] - ports["NEW"]
    assert 10_009 in incomplete
    assert max(incomplete) >= 20_000


def test_the_kernel_drops_by_the_rules_where_nothing_is_remembered() -> None:
    """And by protocol alone where a flow's beginning is: its end has it forgotten, whatever the rules say."""
    with network() as net:
        prepare(net, 1)
        asked = ["ip", "netns", "exec", net.router, "conntrack", "-C"]
        assert subprocess.run(asked, check=True, capture_output=True).stdout.strip() == b"0"
        arguments = ["--conntrack.netns", net.router, "--conntrack.records", "flows"]
        arguments += ["--filter", "drop destination port 8080 and protocol UDP", "--sink.stream.enable"]
        for accounting, received in ((1, TCP_FLOWS), (0, 2 * (TCP_FLOWS + UDP_FLOWS))):
            prepare(net, accounting)
            with traffic.serve(net.server), daemon(*arguments) as running:
                running.wait_for_start()
                talk(net)
                end_all(net, running, TCP_FLOWS)
            assert {(record["type"], record["prot"]) for record in running.events} == {("FLOW", "TCP")}
            summary = f"received {received} events, lost 0, logged {TCP_FLOWS}"
            assert any(summary in line for line in running.said)


def write_configuration(path: Path, records: str) -> None:
    path.write_text(
        f"conntrack: {{records: {records}, protocols: udp}}\n"
        f"community_id.enable: {str(records == 'flows').lower()}\n"
        "filter: [drop source port 10000-10099]\nsink.stream.enable: true\n"
    )


def compute_imbalance(stats: dict[str, Any]) -> tuple[int, int]:
    """Events that came less what became of them, and records less those that the sink was given."""
    counters, sink = stats["counters"], stats["sinks"]["stream"]
    became = sum(counters[f"events_{name}_total"] for name in ("malformed", "filtered", "accepted"))
    events = sum(counters[f"events_{name}_total"] for name in ("new", "update", "destroy", "snapshot"))
    return (
        counters["events_received_total"] - became,
        events + counters["flows_total"] - sink["sink_events_taken_total"],
    )


def test_the_sums_hold_at_every_moment_and_a_reload_changes_what_is_written(
    bus: PrivateBus, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configuration(configuration, "both")
    with network() as net:
        prepare(net, 0)
        arguments = ["--config", str(configuration), "--conntrack.netns", net.router]
        arguments += ["--bus.address", bus.address]
        with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as running:
            running.wait_for_start()
            running.wait_for_words("org.conntrackd1 is on")
            load = start_flood(net, 10_000, 4000)
            imbalances = set()
            while load.is_alive():
                inside(net.router, "conntrack", "-F")
                imbalances.add(compute_imbalance(ask(capsys, "stats")))
            inside(net.router, "conntrack", "-F")
            running.wait_for_events(11_700)
            imbalances.add(compute_imbalance(ask(capsys, "stats")))

            for records, port, lines in (("flows", 20_000, 11_800), ("events", 30_000, 12_000)):
                write_configuration(configuration, records)
                assert f"conntrack.records is {records}" in ask(capsys, "reload")["changes"]
                start_flood(net, port, 100).join()
                inside(net.router, "conntrack", "-F")
                running.wait_for_events(lines)
            imbalances.add(compute_imbalance(ask(capsys, "stats")))
            assert running.stop() == 0
    found = Counter(
        (record["type"], record["sport"] // 10_000, "community_id" in record) for record in running.events
    )

    assert imbalances == {(0, 0)}
    assert found == {
        **{(kind, 1, False): 3900 for kind in ("NEW", "DESTROY", "FLOW")},
        ("FLOW", 2, True): 100,
        **{(kind, 3, False): 100 for kind in ("NEW", "DESTROY")},
    }
