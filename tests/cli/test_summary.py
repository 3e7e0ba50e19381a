"""conntrackctl summary: totals and tops of a time."""

import json
from pathlib import Path

import pytest

from conntrackd.cli import ctl
from conntrackd.cli.summary import Summary, render_bar, render_summary
from conntrackd.cli.talkers import MAX_ENDS, Sizes, Talkers
from conntrackd.errors import UsageError
from conntrackd.flow import ABSENT, EventType, Location, Lost
from tests.history.written import load, write_file, write_lines
from tests.sinks.flows import BASE, make_flow


@pytest.fixture
def lines() -> list[bytes]:
    """Three of one source, one of another, which has the bytes; two losses, one of a number nobody knows."""
    flows = [make_flow(1), make_flow(1), make_flow(1), make_flow(2, EventType.DESTROY)]
    flows[3].orig_packets = flows[3].reply_packets = 1
    flows[3].orig_bytes, flows[3].reply_bytes = 1000, 24
    flows[3].dport = flows[3].reply_sport = 53
    flows[0].dst_location = Location(country="Germany")
    held = Lost(7, BASE, BASE, "filter", "log any limit 1/day", 1)
    return write_lines([*flows, held, Lost(5, BASE, BASE, "kernel"), Lost(ABSENT, BASE, BASE, "daemon")])


@pytest.fixture
def path(tmp_path: Path, lines: list[bytes]) -> Path:
    return write_file(tmp_path / "events.json", lines)


def summarize(lines: list[bytes], *by: str) -> Summary:
    summary = Summary(by)
    for line in lines:
        summary.add(load(line))
    return summary


def test_totals_and_tops_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["summary", "--from", f"file:{path}", "--by", "src,port,country,type", "-n", "1", "-o", "json"]

    assert ctl.run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found.pop("first") < found.pop("last")) is False  # of the loss, which was written last
    assert found == {
        "events": 4,
        "types": {"NEW": 3, "DESTROY": 1},
        "bytes": 1024,
        "sampled": 0,
        "lost": 5,
        "gaps": 1,
        "suppressed": 7,
        "by": {
            "src": [{"key": "10.0.0.2", "events": 1, "bytes": 1024}],
            "port": [{"key": "TCP 53", "events": 1, "bytes": 1024}],
            "country": [{"key": "unknown", "events": 3, "bytes": 1024}],
            "type": [{"key": "DESTROY", "events": 1, "bytes": 1024}],
        },
    }


def test_bytes_of_a_flow_are_counted_once_where_both_records_are_written() -> None:
    """conntrack.records: both; the second and the third flow differ in a field that is not written."""
    ends = [{"type": "DESTROY", "src": f"10.0.0.{end}", "bytes": 10, "reply_bytes": 5} for end in (1, 2, 2)]
    flows = [end | {"type": "FLOW"} for end in ends]
    alone = {"type": "FLOW", "src": "10.0.0.1", "bytes": 7}
    summary, top = Summary(["src"]), Talkers("src")
    for record in (*ends, *flows, alone):
        summary.add(record)
        top.add(record)

    assert (summary.size, summary.types) == (52, {"DESTROY": 3, "FLOW": 4})
    assert summary.talkers["src"].list(2) == top.list(2) == [("10.0.0.2", 4, 30), ("10.0.0.1", 3, 22)]


def test_bytes_of_flows_that_live_are_counted_once() -> None:
    flow = {"src": "10.0.0.1", "flow": 1, "reply_bytes": 0, "reply_bytes_delta": 0}
    living = [flow | {"type": "ALIVE", "bytes": size, "bytes_delta": 10} for size in (10, 20)]
    unknown = {"type": "ALIVE", "flow": 2, "bytes": 99, "reply_bytes": 99}
    end = flow | {"type": "DESTROY", "bytes": 25, "bytes_delta": 5}
    whole = {"type": "FLOW", "src": "10.0.0.1", "flow": 1, "bytes": 25, "reply_bytes": 0}
    sizes = Sizes()

    assert [sizes.count(record) for record in (*living, unknown, end, whole)] == [10, 10, 0, 5, 0]
    assert [Sizes().count(record) for record in (end | {"type": "FLOW"}, whole)] == [5, 25]


def test_ends_that_no_flow_repeats_do_not_add_up_in_memory() -> None:
    sizes = Sizes()
    for flow in range(MAX_ENDS + 1):
        assert sizes.count({"type": "DESTROY", "flow": flow, "bytes": 1}) == 1

    assert sizes.count({"type": "FLOW", "flow": 1, "bytes": 1}) == 0
    assert sizes.count({"type": "FLOW", "flow": 0, "bytes": 1}) == 1  # forgotten


def test_totals_and_bars_for_people(lines: list[bytes]) -> None:
    shown = list(render_summary(summarize(lines, "src", "mark"), 20))

    assert [shown[0], *shown[2:]] == [
        "events: 4 (3 NEW, 1 DESTROY)",
        "bytes:  1.0 KiB",
        "lost:   5, 1 gap of unknown size",
        "beyond a limit: 7",
        "",
        "SRC          EVENTS       BYTES",
        "10.0.0.2          1     1.0 KiB  ████████████████████",
        "10.0.0.1          3           -",
        "",
        "MARK     EVENTS       BYTES",
        "-             4     1.0 KiB  ████████████████████",
    ]
    only_new = list(render_summary(summarize(lines[:3], "src"), 20))
    assert only_new[-1] == "10.0.0.1          3           -  ████████████████████"


def test_bars_keep_their_proportions_where_there_is_little_room(lines: list[bytes]) -> None:
    cities = zip(lines, ["x", "x", "東京"], strict=False)
    records = [{**load(line), "city": city} for line, city in cities]
    summary = Summary(["city"])
    for record in records:
        summary.add(record)

    assert [list(render_summary(summary, 20, width))[-3:] for width in (35, 20)] == [
        [
            "CITY     EVENTS       BYTES",
            "x             2           -  ██████",
            "東京          1           -  ███",
        ],
        [
            "CITY     EVENTS       BYTES",
            "x             2           -",
            "東京          1           -",
        ],
    ]


def test_where_there_is_little_room_keys_are_narrowed_and_not_numbers(lines: list[bytes]) -> None:
    summary = Summary(["city"])
    for line in lines:
        summary.add({**load(line), "city": "Llanfairpwllgwyngyll"})

    assert list(render_summary(summary, 20, 36))[-2:] == [
        "CITY              EVENTS       BYTES",
        "Llanfa…yngyll          4     1.0 KiB",
    ]


def test_a_record_of_a_sample_counts_for_all_that_it_stands_for(lines: list[bytes]) -> None:
    records = [load(line) for line in lines]
    records[0]["sample_rate"], records[3]["sample_rate"] = 100, 10
    summary = Summary(["src"])
    for record in records:
        summary.add(record)

    top = Talkers("src")
    for record in records:
        top.add(record)

    assert dict(summary.types) == {"NEW": 102, "DESTROY": 10}
    assert (top.events, top.list(9)) == (112, summary.talkers["src"].list(9))
    assert summary.talkers["src"].list(9) == [("10.0.0.2", 10, 10_240), ("10.0.0.1", 102, 0)]
    assert (summary.size, summary.sampled, summary.losses.lost) == (10_240, 2, 5)
    shown = list(render_summary(summary, 20))
    assert shown[0] == "events: 112 (102 NEW, 10 DESTROY)"
    assert shown[2] == "estimated: 2 of the records are of samples, and count by their sample_rate"


def test_nothing_is_said_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_file(tmp_path / "empty.json", [])

    assert ctl.run(["summary", "--from", f"file:{path}", "--since", "1h"]) == 0
    assert capsys.readouterr().out == "events: 0\n"


@pytest.mark.parametrize(
    ("value", "largest", "bar"),
    [(0, 100, ""), (1, 1_000_000, "▏"), (100, 100, "█" * 20), (50, 100, "█" * 10), (3, 160, "▍"), (0, 0, "")],
)
def test_a_bar_has_eighths_of_a_column(value: int, largest: int, bar: str) -> None:
    assert render_bar(value, largest) == bar


def test_rules_and_times_hold_for_it_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["log destination port 53", "drop any"]

    assert ctl.run(["summary", "--from", f"file:{path}", "-o", "json", *rules]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == 1
    words = [f"--filter={rule}" for rule in rules]
    assert ctl.run(["summary", "--from", f"file:{path}", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == 1
    assert ctl.run(["summary", "--from", f"file:{path}", "-o", "json", "--since", "now"]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == 0


def test_what_nothing_can_be_counted_by_is_said() -> None:
    with pytest.raises(UsageError, match="'prt' is not a field of an event, did you mean"):
        ctl.run(["summary", "--by", "src,prt"])
    with pytest.raises(UsageError, match="'dst_ip' is not a field of an event, did you mean dst"):
        ctl.run(["summary", "--by", "dst_ip"])
