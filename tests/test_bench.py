"""The parts of the benchmark that need no clock: what it reads, what it prints, the packets it sends."""

import json
import struct
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as program
from bench.__main__ import NAMES, choose, measure_all
from bench.arena import BenchError, Load, Traffic, compile_program
from bench.backlog import Backlog, Reading
from bench.flood import Flood, summarize_floods
from bench.heartbeat import Heartbeats
from bench.latency import Chunk, Latency, compute_p99, list_delays
from bench.parts import Part
from bench.proc import Listener, add_listeners, parse_listeners, parse_switches
from bench.receivers import SYSLOG_EVENT
from bench.rows import PORTS, list_backlogs, list_rows
from bench.soak import Memory, Step
from bench.subject import Measurement, Subject, count_lines, parse_shown
from bench.table import (
    Report,
    Row,
    render_floods,
    render_json,
    render_markdown,
    render_parts,
    render_tables,
    summarize,
    summarize_all,
)
from conntrackd.render.journal import EVENT_ID

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

    assert summarize(runs, floor=[make_run(cpu_us=200)] * 3) == Row("a subject", 100, 3.0, 1.5, 7, 2.0, 5000)


def test_a_ratio_is_the_middle_of_the_rounds_and_not_one_of_middles() -> None:
    # Twice the floor in two rounds, the second of which was slow for both.
    runs = [make_run(cpu_us=cpu_us) for cpu_us in (200, 2000, 500)]
    floor = [make_run(cpu_us=cpu_us) for cpu_us in (100, 1000, 400)]

    assert summarize(runs, floor).ratio == 2.0


def test_a_row_is_compared_with_another_that_was_measured_too() -> None:
    subjects = {
        name: Subject(name, (), floor="floor", other=other)
        for name, other in (("floor", ""), ("file", "conntrack"), ("new", "gone"))
    } | {"conntrack": Subject("conntrack", ())}
    runs = {
        "floor": [make_run(100)],
        "file": [make_run(200)],
        "new": [make_run(50)],
        "conntrack": [make_run(400)],
    }

    rows = summarize_all(subjects, runs)

    assert [(row.ratio, row.other, row.other_ratio) for row in rows] == [
        (1.0, "", None),
        (2.0, "conntrack", 0.5),
        (0.5, "", None),
        (4.0, "", None),
    ]


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
    assert summarize([make_run()], floor=[]).ratio is None


def test_an_event_that_was_lost_costs_nothing() -> None:
    assert make_run(cpu_us=300, events=100, lost=900).us_per_event == 3.0


def test_the_table_is_markdown_with_aligned_columns() -> None:
    rows = [
        Row("floor", 1_000_000, 2.0, 1.0, 0, 1.5, 5000),
        Row("other", 10, 12.345, None, 7, 30.0, 5000, "file", 6.17),
    ]

    assert render_markdown(rows).splitlines() == [
        "| subject |    events | lost | arrived | CPU per event | to the floor |  to another | peak memory |",
        "|---------|----------:|-----:|--------:|--------------:|-------------:|------------:|------------:|",
        "| floor   | 1,000,000 |    0 | 100.0 % |       2.00 us |         1.00 |             |     1.5 MiB |",
        "| other   |        10 |    7 |  30.0 % |      12.35 us |              | 6.17 x file |    30.0 MiB |",
    ]


def test_latency_backlog_and_memory_are_tables_of_their_own() -> None:
    report = Report(
        latency=[Latency("floor", 0, 0, 0.0, 0.0), Latency("file", 1000, 8, 1.25, 119.0, 5.5, 9.75)],
        backlog=[
            Backlog(
                "file",
                330_000,
                7,
                [Reading(300_000, 1.5), Reading(200_000, 1.75), Reading(100_000, 2)],
                [Reading(600_000, 1.5), Reading(300_000, 1.5), Reading(180_000, 1.25)],
            )
        ],
        heartbeats=[Heartbeats("file", 100_000, 9.5, 1.583)],
        memory=[Memory("file", 28.0, 29.5, 33.0)],
    )

    assert render_tables(report).splitlines() == [
        "| subject | events/s | lost | of a core | woken/s | late by (median) | late by (99 %) |",
        "|---------|---------:|-----:|----------:|--------:|-----------------:|---------------:|",
        "| floor   |        0 |    0 |    0.00 % |     0.0 |                  |                |",
        "| file    |    1,000 |    8 |    1.25 % |   119.0 |           5.5 ms |         9.8 ms |",
        "",
        "| subject | readers | events queued | lost |                read a second |              to one |"
        "          CPU per event |",
        "|---------|--------:|--------------:|-----:|-----------------------------:|--------------------:|"
        "-----------------------:|",
        "| file    |       1 |       330,000 |    7 | 200,000 (100,000 to 300,000) |                     |"
        " 1.75 (1.50 to 2.00) us |",
        "| file    |       2 |       330,000 |    7 | 300,000 (180,000 to 600,000) | 1.80 (1.50 to 2.00) |"
        " 1.50 (1.25 to 1.50) us |",
        "",
        "| subject |   flows | CPU per flow | of a core |",
        "|---------|--------:|-------------:|----------:|",
        "| file    | 100,000 |      9.50 us |    1.58 % |",
        "",
        "| subject |  started | idle after events |     peak |",
        "|---------|---------:|------------------:|---------:|",
        "| file    | 28.0 MiB |          29.5 MiB | 33.0 MiB |",
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
                "other": "",
                "other_ratio": None,
            }
        ],
        "soak": [{"events": 1000, "resident_mib": 30.5, "descriptors": 9, "lost": 0}],
        "memory": [],
        "latency": [],
        "backlog": [],
        "heartbeats": [],
        "parts": [{"name": "decode", "us": 1.5, "unit": "event"}],
        "floods": [],
        "scrapes": [],
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
    count = list_rows(tmp_path, PORTS, lambda: received)["sinks-udp"].count

    assert count is not None
    assert count(path, "") == min(2, last)


def test_each_subject_has_a_name_of_its_own(tmp_path: Path) -> None:
    for subjects in (list_rows(tmp_path, PORTS).values(), [one for one, _ in list_backlogs(tmp_path)]):
        names = [subject.name for subject in subjects]

        assert len(set(names)) == len(names)


def test_a_row_is_compared_with_rows_of_its_own_load(tmp_path: Path) -> None:
    rows = list_rows(tmp_path, PORTS)

    for row in rows.values():
        for name in filter(None, (row.floor, row.other)):
            compared = rows[name]
            assert (compared.rate, compared.is_gateway) == (row.rate, row.is_gateway)


def test_rows_are_chosen_by_patterns_in_the_order_of_the_table() -> None:
    assert choose([]) == NAMES
    assert choose(["file-60k", "f*-60k", "soak"]) == [
        "floor-60k",
        "file-60k",
        "floor-gateway-60k",
        "file-gateway-60k",
        "file-filter-60k",
        "soak",
    ]
    with pytest.raises(BenchError, match="unknown row flie"):
        choose(["file", "flie"])


def test_a_row_that_cannot_be_measured_is_reported_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(subject: Subject, _load: Load) -> Measurement:
        if subject.name == "two readers":
            raise BenchError("unknown variable")
        return make_run()

    monkeypatch.setattr(program, "measure", measure)
    subjects = {name: Subject(name, ()) for name in ("one reader", "two readers")}

    assert measure_all(subjects, Load(), repeat=2) == {"one reader": [make_run(), make_run()]}
    assert "bench: two readers is left out: unknown variable" in capsys.readouterr().err


def test_a_load_with_a_rate_ends_after_its_time() -> None:
    load = Load(flows=200_000, is_translated=True)

    assert load.at(0, 8.0) == load
    assert load.at(1_000, 11.0) == replace(load, flows=2_000, rate=1_000)
    assert load.at(1_000_000, 11.0) == replace(load, rate=1_000_000)


# ---- lateness ----


def test_a_line_is_as_late_as_the_reading_of_its_end() -> None:
    line = b'{"time":"1970-01-01T01:00:0%d.250000999+01:00","type":"NEW"}'
    chunks = [
        Chunk(1.5, line % 1 + b"\n" + (line % 2)[:20]),
        Chunk(2.5, (line % 2)[20:] + b"\n[17.5]\t[NEW] tcp\n" + line % 3),
    ]

    assert [round(delay, 3) for delay in list_delays(chunks)] == [0.25, 0.25]


def test_ninety_nine_of_a_hundred_are_not_later_than_the_most() -> None:
    assert compute_p99([3.0]) == 3.0
    assert compute_p99([float(number) for number in range(100, 0, -1)]) == 99.0
    assert compute_p99([float(number) for number in range(1, 1002)]) == 991.0


def test_a_thread_left_its_core_by_its_own_will_or_not() -> None:
    status = "Name:\tconntrackd\nThreads:\t3\nvoluntary_ctxt_switches:\t120\nnonvoluntary_ctxt_switches:\t3\n"

    assert parse_switches(status) == 123


def test_the_sockets_of_one_process_are_counted_together() -> None:
    assert add_listeners([]) is None
    assert add_listeners([Listener(1, 7, 1280, 5), Listener(2, 7, 2560, 0)]) == Listener(1, 7, 3840, 5)


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


def test_the_generator_answers_to_the_address_that_the_rules_translate_to() -> None:
    clients, answered = set[bytes](), set[bytes]()
    for packet in read_packets("-f", "1000", "-n", "-U", "100"):
        addresses, _, payload = split_packet(packet)
        half = len(addresses) // 2
        is_query = payload[:2] == struct.pack("!H", 1024)  # the port of each client's first flow
        (clients if is_query else answered).add(addresses[:half] if is_query else addresses[half:])

    def translate(client: bytes) -> bytes:
        if len(client) == 4:
            return bytes((198, 18)) + client[2:]
        return bytes.fromhex("20010db8ffff0000") + client[8:]

    assert len(clients) == 1000
    assert answered == {translate(client) for client in clients}


def test_the_system_calls_are_those_of_texts_that_the_receivers_count(tmp_path: Path) -> None:
    rows = list_rows(tmp_path, PORTS)

    _, way, _, _, line, entry, message, *_ = rows["syscalls-tcp-40k"].argv
    assert (way, line.count("\n"), entry.count(EVENT_ID)) == ("tcp", 1, 1)
    length, _, framed = message.partition(" ")
    assert int(length) == len(framed)
    assert framed.startswith(SYSLOG_EVENT)
    assert len(rows["syscalls-segments-40k"].argv[6]) % 64 == 0


def test_system_calls_need_the_whole_command_line() -> None:
    assert subprocess.run([compile_program("syscalls"), "udp"], check=False).returncode == 2
