"""The parts of the benchmark that need no clock: what it reads, what it prints, the packets it sends."""

import json
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from bench.arena import Traffic, compile_program
from bench.flood import Flood, summarize_floods
from bench.parts import Part
from bench.proc import Listener, parse_listeners
from bench.rows import PORTS, list_rows
from bench.soak import Step
from bench.subject import Measurement, count_lines, parse_shown
from bench.table import (
    Report,
    Row,
    render_floods,
    render_json,
    render_markdown,
    render_parts,
    render_tables,
    summarize,
)

PROC_NET_NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000027e0e50d 12  9608       00000000 0        0        0     2        0        15147
00000000c57da97f 12  3119569829 00000007 89600    0        0     2        262978   15148
0000000001fbe4b5 0   1          00000011 0        0        0     2        0        9328
"""


def make_run(cpu_us: float = 300.0, events: int = 100, lost: int = 0) -> Measurement:
    return Measurement("a subject", events + lost, events, lost, cpu_us, 2048, 5000.0)


def test_only_sockets_that_joined_netfilter_groups_are_listeners() -> None:
    assert parse_listeners(PROC_NET_NETLINK) == [Listener(inode=15148, groups=7, queued=89600, drops=262978)]


def test_traffic_counts_the_events_of_the_groups_that_a_subject_joins() -> None:
    traffic = Traffic(flows=10, packets=60, events=55, new=10, update=35, destroy=10, rate=1.0)

    assert [traffic.count(groups) for groups in (1, 2, 4, 7)] == [10, 35, 10, 55]


def test_a_row_is_the_middle_run_and_the_worst_loss() -> None:
    runs = [make_run(cpu_us=300), make_run(cpu_us=900), make_run(cpu_us=200, lost=7)]

    assert summarize(runs, floor=2.0) == Row("a subject", 100, 3.0, 1.5, 7, 2.0, 5000)


def test_a_row_of_calls_is_the_middle_run_and_the_worst_loss() -> None:
    runs = [
        Flood("root", 10_000, 500_000, lost, cost, 7.0, 20.0) for lost, cost in ((0, 5.0), (3, 7.0), (0, 6.0))
    ]

    row = summarize_floods(runs)

    assert row == Flood("root", 10_000, 500_000, 3, 6.0, 7.0, 20.0)
    assert render_floods([row]).splitlines()[2] == (
        "| root     |   10,000 | 500,000 |    3 |       6.00 us |       7.0 % |       20.0 ms |"
    )


def test_without_the_floor_there_is_no_ratio() -> None:
    assert summarize([make_run()], floor=None).ratio is None


def test_an_event_that_was_lost_costs_nothing() -> None:
    assert make_run(cpu_us=300, events=100, lost=900).us_per_event == 3.0


def test_the_table_is_markdown_with_aligned_columns() -> None:
    rows = [Row("floor", 1_000_000, 2.0, 1.0, 0, 1.5, 5000), Row("other", 10, 12.345, None, 7, 30.0, 5000)]

    assert render_markdown(rows).splitlines() == [
        "| subject |    events | lost | arrived | CPU per event | to the floor | peak memory |",
        "|---------|----------:|-----:|--------:|--------------:|-------------:|------------:|",
        "| floor   | 1,000,000 |    0 | 100.0 % |       2.00 us |         1.00 |     1.5 MiB |",
        "| other   |        10 |    7 |  30.0 % |      12.35 us |              |    30.0 MiB |",
    ]


def test_parts_are_a_table_too() -> None:
    assert render_parts([Part("decode", 1.5), Part("load 1,000 rules", 250000.0, "list")]).splitlines() == [
        "| part             |           CPU | for each |",
        "|------------------|--------------:|---------:|",
        "| decode           |       1.50 us |    event |",
        "| load 1,000 rules | 250,000.00 us |     list |",
    ]


def test_tables_without_rows_are_left_out() -> None:
    assert render_tables(Report(soak=[Step(1_000_000, 30.5, 9, 1000)])).splitlines() == [
        "| events so far |   memory | descriptors |  lost |",
        "|---------------|---------:|------------:|------:|",
        "| 1,000,000     | 30.5 MiB |           9 | 1,000 |",
    ]


def test_the_json_has_one_object_a_row() -> None:
    row = Row("floor", 10, 2.0, 1.0, 0, 1.5, 5000)

    assert json.loads(render_json(Report([row], [Step(1000, 30.5, 9, 0)], parts=[Part("decode", 1.5)]))) == {
        "rows": [
            {
                "subject": "floor",
                "events": 10,
                "us_per_event": 2.0,
                "ratio": 1.0,
                "lost": 0,
                "peak_mib": 1.5,
                "events_per_second": 5000,
            }
        ],
        "soak": [{"events": 1000, "resident_mib": 30.5, "descriptors": 9, "lost": 0}],
        "idle": [],
        "parts": [{"name": "decode", "us": 1.5, "unit": "event"}],
        "floods": [],
    }


def test_lines_are_counted_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * (1 << 20) + b"\n" + b"y\n" * 3)

    assert count_lines(path, "") == 4


def test_conntrack_says_how_many_events_it_has_shown() -> None:
    assert (
        parse_shown(Path(), "conntrack v1.4.7 (conntrack-tools): 191949 flow events have been shown.")
        == 191949
    )


@pytest.mark.parametrize("last", [3, 1])
@pytest.mark.parametrize("syslog", [{"syslog": 4, "syslog-tcp": 0}, {"syslog": 0, "syslog-tcp": 4}])
def test_what_four_sinks_delivered_is_what_the_worst_of_them_has(
    tmp_path: Path, last: int, syslog: dict[str, int]
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x\n" * 2)
    received = {"journal": 5, **syslog, "loki": last}
    count = list_rows(tmp_path, PORTS, lambda: received)["sinks"].count

    assert count is not None
    assert count(path, "") == min(2, last)


def test_each_subject_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = [subject.name for subject in list_rows(tmp_path, PORTS).values()]

    assert len(set(names)) == len(names)


# ---- the generator ----


def add(data: bytes) -> int:
    """The ones' complement sum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def split_packet(packet: bytes) -> tuple[bytes, int, bytes]:
    """Addresses, protocol and what follows the IP header, whose own checksum is looked at."""
    if packet[0] >> 4 == 6:
        return packet[8:40], packet[6], packet[40:]
    assert add(packet[:20]) == 0xFFFF
    return packet[12:20], packet[9], packet[20:]


def read_packets(*options: str) -> list[bytes]:
    output = subprocess.run(
        [compile_program("generator"), "-d", *options], stdout=subprocess.PIPE, check=True
    ).stdout
    packets, position = [], 0
    while position < len(output):
        (length,) = struct.unpack_from("!H", output, position)
        packets.append(output[position + 2 : position + 2 + length])
        position += 2 + length
    return packets


@pytest.mark.parametrize("percent", ["0", "100"])
def test_the_generator_sends_packets_with_valid_checksums(percent: str) -> None:
    for packet in read_packets("-f", "500", "-6", percent):
        addresses, protocol, payload = split_packet(packet)

        assert add(addresses + struct.pack("!HH", protocol, len(payload)) + payload) == 0xFFFF


def test_a_udp_checksum_of_zero_is_sent_as_the_other_zero() -> None:
    sent = [split_packet(packet) for packet in read_packets("-f", "65536", "-U", "100")]

    assert not [payload for _, _, payload in sent if payload[6:8] == b"\0\0"]
    assert [payload for _, _, payload in sent if payload[6:8] == b"\xff\xff"]


def test_the_generator_sends_whole_life_cycles_of_unique_flows() -> None:
    flows: Counter[bytes] = Counter()
    for packet in read_packets("-f", "3000", "-U", "50", "-6", "25"):
        addresses, protocol, payload = split_packet(packet)
        half = len(addresses) // 2
        ends = sorted([addresses[:half] + payload[:2], addresses[half:] + payload[2:4]])
        flows[bytes([protocol]) + b"".join(ends)] += 1

    assert Counter((flow[0], count) for flow, count in flows.items()) == {(6, 7): 1500, (17, 2): 1500}
