"""conntrackctl's views: stats, tail and top, in a pipe and on a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from conntrackd.bus.client import Client
from conntrackd.cli import ctl, top
from conntrackd.cli import talkers as counting
from conntrackd.cli.lines import SIZES, Style, render_full, render_json, render_short
from conntrackd.cli.screen import Paper
from conntrackd.cli.stats import StatisticsView, cut_rows, render_rows, show
from conntrackd.cli.tail import print_chunk
from conntrackd.errors import UnavailableError, UsageError
from conntrackd.flow import EventType, Location, Lost
from conntrackd.render.json import TEMPLATE
from tests.bus.private import PrivateBus, Served
from tests.cli.teller import Teller
from tests.live.daemon import ctl_command
from tests.rendering import render
from tests.sinks.flows import make_flow

# The caller of most calls is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged

EVENT = {
    "time": "2025-11-22T10:34:43.000000000+00:00",
    "level": "INFO",
    "msg": "NEW TCP connection",
    "type": "NEW",
    "flow": 7,
    "prot": "TCP",
    "src": "10.0.0.1",
    "dst": "2001:db8::1",
    "sport": 40000,
    "dport": 443,
    "state": "SYN_SENT",
}
LOST = {"time": EVENT["time"], "level": "WARN", "msg": "LOST 5 events", "type": "LOST", "lost": 5}


# ---- stats --------------------------------------------------------------------------------------------


def test_stats_has_counters_sinks_and_rules(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "counters": {"events_received_total": 5, "events_lost_total": 0},
        "sinks": {"journal": {"sink_events_delivered_total": 7}, "loki": {"sink_events_delivered_total": 0}},
        "rates": {},
        "rule_matches": [3, 1, 4],
        "sink_rule_matches": {},
        "rule_suppressed": [0, 0, 3],
        "sink_rule_suppressed": {},
    }


def test_rules_of_a_sink_are_counted_beside_those_of_all(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl.run(["filter", "set", "--sink", "loki", "log type NEW", "drop any"])
    capsys.readouterr()

    ctl.run(["stats", "--json"])
    assert json.loads(capsys.readouterr().out)["sink_rule_matches"] == {"loki": [0, 0, 0]}
    ctl.run(["stats"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "decided by" in line]
    assert [" ".join(line) for line in lines] == [
        "decided by no rule 3",
        "decided by rule 1 1",
        "decided by rule 2 4",
        "decided by no rule{loki} 0",
        "decided by rule 1{loki} 0",
        "decided by rule 2{loki} 0",
    ]


def test_a_view_that_was_reset_counts_from_now_on_with_rates(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["stats", "--reset-view", "-n", "2", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["counters"] == second["counters"] == {"events_received_total": 0, "events_lost_total": 0}
    assert (first["rates"], second["rates"]["events_received_total"]) == ({}, 0.0)


@pytest.mark.parametrize("words", [["-n", "3"], ["--interval", "1"]])
def test_updates_of_a_view_that_is_shown_once_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="a view that is refreshed"):
        ctl.run(["stats", *words])


def test_stats_for_people_have_units_and_leave_out_what_is_0() -> None:
    view = {
        "events_lost_total": 0,
        "events_forged_total": 0,
        "buffer_bytes": 2048,
        "process_cpu_us_total": 1_500_000,
        "sink_oldest_event_ns{loki}": 10**9,
        "sink_bytes_total{loki}": 3 << 20,
    }
    rates = {"events_lost_total": 0.0, "process_cpu_us_total": 12_000.0, "sink_bytes_total{loki}": 512.0}

    assert render_rows(view, rates, {}, 66 * 10**9)[1:] == [
        ["events_lost_total", "0", "0.0"],
        ["buffer_bytes", "2.0 KiB", ""],
        ["process_cpu_us_total", "1.5 s", "1.2 %"],
        ["sink_oldest_event_ns{loki}", "1 min 5 s", ""],
        ["sink_bytes_total{loki}", "3.0 MiB", "512 B"],
    ]


def test_stats_of_a_moment_have_no_column_of_rates_and_keep_their_values_where_it_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = StatisticsView(cast(Client, None), resets=False)
    view.numbers = {"sink_events_delivered_total{stream}": 123_456}
    monkeypatch.setenv("COLUMNS", "30")
    show(view, Namespace(json=False, watch=False, reset_view=False), Paper())
    heading, row = capsys.readouterr().out.splitlines()

    assert heading.split() == ["COUNTER", "VALUE"]
    assert (row[:4], row[-8:], len(row)) == ("sink", "  123456", 30)


def test_a_view_is_no_higher_than_the_terminal() -> None:
    rows = [[str(number), "", ""] for number in range(9)]

    assert cut_rows(rows, 11) == rows
    assert cut_rows(rows, 6) == [*rows[:4], ["and 5 more: --json has all", "", ""]]


def test_stats_for_people_name_each_rule(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["stats"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "events_received_total 5"
    assert lines[-3:] == ["decided by rule 1 1", "decided by rule 2 4", "beyond the limit of rule 2 3"]


# ---- tail and top -------------------------------------------------------------------------------------


def set_tail(served: Served, *records: dict[str, Any]) -> None:
    assert isinstance(served.control, Teller)
    served.control.text = b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_a_tail_in_a_pipe_is_json_as_it_came(served: Served, capfdbinary: Any) -> None:
    set_tail(served, EVENT, EVENT)
    assert ctl.run(["tail", "-n", "2", "-o", "json", "--filter", "log any"]) == 0
    assert served.control.asked == [("open_tail", ("log any",), 2)]
    assert [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()] == [EVENT, EVENT]


@pytest.mark.parametrize("words", [["tail", "-n", "1"], ["top", "-n", "1", "--json"]])
def test_rules_of_a_tail_that_leave_nothing_out_are_noticed(
    words: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    set_tail(served, EVENT)
    served.control.is_endless = words[0] == "top"  # type: ignore[attr-defined]
    told = []
    for more in (
        *(["log port 53"], ["log port 53", "drop any"]),
        *(["log address @known_there"], ["drop address @known_there"], []),
    ):
        ctl.run([*words, *more])
        told.append(capsys.readouterr().err.partition("\n")[0])

    warning = "conntrackctl: warning: no rule drops anything, so all events are shown"
    assert told == [warning, "", warning, "", ""]


def test_a_tail_that_the_daemon_ends_is_reported(served: Served) -> None:
    set_tail(served, EVENT)

    with pytest.raises(UnavailableError, match="the daemon has closed the tail"):
        ctl.run(["tail"])


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time zone of this process, and back."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "shown"), [("UTC", "10:34:43.000"), ("Asia/Kolkata", "16:04:43.000"), ("XYZ+5", "05:34:43.000")]
)
def test_the_time_of_day_is_that_of_status_and_json_has_utc(
    name: str, shown: str, zone: Callable[[str], None]
) -> None:
    zone(name)

    assert render_short(EVENT).startswith(f"{shown} NEW")
    assert json.loads(render_json(EVENT))["time"] == EVENT["time"]


@pytest.mark.parametrize("text", ["", "never", "2025-11-22T10:34:43.000000000", "9999-12-31T23:59:59+00:00"])
def test_a_time_of_any_form_is_shown_somehow(text: str) -> None:
    assert "NEW" in render_short(EVENT | {"time": text})


def test_the_short_form_has_what_a_person_looks_for(zone: Callable[[str], None]) -> None:
    zone("UTC")
    assert render_short(EVENT) == (
        "10:34:43.000 NEW      TCP   10.0.0.1:40000 -> [2001:db8::1]:443      SYN_SENT"
    )
    assert render_short(LOST) == "10:34:43.000 LOST 5 events"
    assert render_short(EVENT, Style(colour=True)).startswith("10:34:43.000 \x1b[32mNEW ")


@pytest.mark.parametrize(
    ("nat", "shown"),
    [
        ("SNAT", "SYN_SENT, SNAT 198.51.100.1:1025"),
        ("DNAT", "SYN_SENT, DNAT [2001:db8::9]:8443"),
        ("BOTH", "SYN_SENT, SNAT 198.51.100.1:1025, DNAT [2001:db8::9]:8443"),
        ("NONE", "SYN_SENT"),
    ],
)
def test_the_short_form_has_what_an_address_is_translated_to(nat: str, shown: str) -> None:
    ends = {"nat_src": "198.51.100.1", "nat_sport": 1025, "nat_dst": "2001:db8::9", "nat_dport": 8443}

    assert render_short(EVENT | ends | {"nat": nat}).endswith(f"  {shown}")
    assert render_short(EVENT | {"nat": nat}).endswith("  SYN_SENT")  # as sink.stream.fields can


def test_the_short_form_says_how_long_a_connection_lasted() -> None:
    flow = make_flow(1, EventType.DESTROY)
    flow.start, flow.stop = 10**18, 10**18 + 1_250_000_000

    assert render_short(json.loads(render(TEMPLATE, [flow]).text)).endswith("  SYN_SENT, 1.2 s")


def test_the_names_are_those_that_the_sinks_write() -> None:
    flow = make_flow(1, EventType.DESTROY)
    flow.orig_packets, flow.orig_bytes, flow.reply_packets, flow.reply_bytes = 1, 100, 1, 20
    flow.src_location = Location(city="Nuremberg", country="DE")
    flow.dst_location = Location(city="Lyon", country="FR")
    record = json.loads(render(TEMPLATE, [flow]).text)
    talkers = counting.Talkers("country")
    talkers.add(record)

    assert render_short(record).endswith("  SYN_SENT, Nuremberg, DE, Lyon, FR, 120 bytes")
    assert talkers.list(1) == [("FR", 1, 120)]
    del record["bytes"]  # as sink.stream.fields can
    assert render_short(record).endswith("Lyon, FR")


def test_the_full_form_has_every_field() -> None:
    lines = render_full(EVENT).splitlines()

    assert lines == [*(f"{name}: {value}" for name, value in EVENT.items()), ""][: len(lines)]
    assert len(lines) == len(EVENT)


@pytest.mark.parametrize("form", ["short", "full", "json"])
def test_nothing_from_a_network_or_a_database_is_obeyed_by_a_terminal(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\u202e\x9b31m\n"
    record = EVENT | {"src_city": evil, "src": evil, "prot": evil, evil: evil}

    print_chunk(
        json.dumps(record, ensure_ascii=False).encode() + b"\n", form, is_terminal=True, style=Style()
    )

    text = capsys.readouterr().out
    assert text.count("\n") == {"short": 1, "full": len(record) + 1, "json": 1}[form]
    assert all(char.isprintable() for char in text.replace("\n", ""))


def run_on_terminal(bus: PrivateBus, *words: str) -> tuple[int, bytes]:
    """The exit status, and what a terminal was sent."""
    master, slave = pty.openpty()
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": bus.address, "TERM": "xterm", "PATH": os.environ["PATH"]}
    done = subprocess.run(ctl_command(*words), stdout=slave, env=environ, timeout=20, check=False)
    os.close(slave)
    text = os.read(master, 1 << 16)
    os.close(master)
    return done.returncode, text


def test_a_tail_on_a_terminal_is_in_colour(bus: PrivateBus, served: Served) -> None:
    set_tail(served, EVENT)

    status, text = run_on_terminal(bus, "tail", "-n", "1")

    assert status == 0
    assert b"\x1b[32mNEW" in text


def test_the_last_view_of_top_stays_on_the_terminal(bus: PrivateBus, served: Served) -> None:
    set_tail(served, EVENT)
    served.control.is_endless = True  # type: ignore[attr-defined]

    status, text = run_on_terminal(bus, "top", "-n", "1")

    assert status == 0
    assert b"10.0.0.1" in text.partition(b"\x1b[?1049l")[2]  # after the other screen was left


@pytest.mark.parametrize(
    "words",
    [["tail"], ["top"], ["top", "--json"], ["stats", "--watch"], ["stats", "--watch", "--json"]],
    ids=" ".join,
)
def test_an_interrupt_ends_a_view_without_a_word(words: list[str], bus: PrivateBus, served: Served) -> None:
    set_tail(served, EVENT)
    served.control.is_endless = True  # type: ignore[attr-defined]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(ctl_command(*words), stdout=pipe, stderr=pipe, env=environ) as process:
        assert process.stdout is not None
        has_view = bool(select.select([process.stdout], [], [], 20)[0])  # a pipe has it at once, too
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert (has_view, process.returncode, errors) == (True, 0, b"")


def test_top_counts_and_keeps_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_KEYS", 4)
    talkers = counting.Talkers("src")
    for number in range(4):
        talkers.add(EVENT | {"src": f"10.0.0.{number}"})
    talkers.add(EVENT | {"src": "10.0.0.3", "bytes": 100, "reply_bytes": 20})
    talkers.add(EVENT | {"src": "10.0.0.9"})
    talkers.add(LOST)

    assert talkers.list(5)[0] == ("10.0.0.3", 2, 120)
    assert len(talkers.list(10)) < 5
    assert (talkers.events, talkers.lost, talkers.gaps) == (6, 5, 0)


def test_what_a_limit_held_back_is_a_sentence_and_counted_by_itself() -> None:
    held = json.loads(TEMPLATE.render_loss(Lost(7, 0, 0, "filter", "log any limit 1/day", 1)).text)
    talkers = counting.Talkers("src")
    for record in (EVENT, held, held):
        talkers.add(record)

    assert (talkers.events, talkers.lost, talkers.suppressed) == (1, 0, 14)
    ranking = counting.Ranking(talkers, "bytes", 0.0)
    ranking.tick(2.0)
    assert top.to_json(ranking, ("src",))["suppressed"] == 14
    assert top.render_table(ranking, ("src",))[0] == (
        "1 events, 0.5 a second, 14 beyond a limit; sorted by bytes"
    )
    assert render_short(held)[12:] == " SUPPRESSED 7 events beyond the limit of rule 1 of filter"


def test_a_tail_of_so_many_events_does_not_count_reports(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(served.control, Teller)
    for rule in (0, 1):
        served.control.text += TEMPLATE.render_loss(Lost(7, 0, 0, "filter", "", rule)).text
    served.control.text += json.dumps(EVENT).encode() + b"\n"

    with pytest.raises(UnavailableError, match="the daemon has closed the tail"):
        ctl.run(["tail", "-n", "2"])


def test_top_takes_a_loss_of_which_nobody_knows_the_number(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop of the daemon, and what the kernel merged into later events."""
    gap = {name: value for name, value in LOST.items() if name != "lost"}
    talkers = counting.Talkers("src")
    for record in (EVENT, LOST, gap, gap | {"lost": None}):
        talkers.add(record)

    assert (talkers.events, talkers.lost, talkers.gaps) == (1, 5, 2)
    ranking = counting.Ranking(talkers, "bytes", 0.0)
    ranking.tick(2.0)
    assert top.to_json(ranking, ("src",)) == {
        "by": "src",
        "sort": "bytes",
        "events": 1,
        "events_per_second": 0.5,
        "sampled": 0,
        "lost": 5,
        "gaps": 2,
        "suppressed": 0,
        "top": [
            {
                "key": EVENT["src"],
                "values": {"src": EVENT["src"]},
                "events": 1,
                "events_per_second": 0.5,
                "bytes": 0,
                "bytes_per_second": 0.0,
            }
        ],
    }
    assert top.render_table(ranking, ("src",))[0] == (
        "1 events, 0.5 a second, 5 lost, 2 gaps of unknown size; sorted by bytes"
    )


def test_top_says_that_sums_by_samples_are_estimates() -> None:
    talkers = counting.Talkers("src")
    for record in (EVENT, EVENT | {"sample_rate": 1}, EVENT | {"sample_rate": 100}):
        talkers.add(record)
    ranking = counting.Ranking(talkers, "bytes", 0.0)
    ranking.tick(2.0)

    assert (top.to_json(ranking, ("src",))["events"], top.to_json(ranking, ("src",))["sampled"]) == (102, 1)
    assert top.render_table(ranking, ("src",))[0] == (
        "102 events, 51.0 a second, estimated by 1 record of samples; sorted by bytes"
    )
    talkers.add(EVENT | {"sample_rate": 2})
    assert "estimated by 2 records of samples" in top.render_totals(ranking)


def test_top_counts_by_several_fields_together() -> None:
    by = ("src", "dport", "country")
    talkers = counting.Talkers(*by)
    for dport, country in ((443, "Peru"), (53, "Peru"), (443, "Peru"), (443, "Chad")):
        talkers.add(EVENT | {"dport": dport, "country": country})
    ranking = counting.Ranking(talkers, "events", 0.0)
    ranking.tick(1.0)

    rows = {tuple(row["values"].values()): row["events"] for row in top.to_json(ranking, by)["top"]}
    assert rows == {
        ("10.0.0.1", "443", "Peru"): 2,
        ("10.0.0.1", "53", "Peru"): 1,
        ("10.0.0.1", "443", "Chad"): 1,
    }
    _, heading, first, *_ = top.render_table(ranking, by)
    assert heading.split()[:3] == ["SRC", "DPORT", "COUNTRY"]
    assert first.split()[:4] == ["10.0.0.1", "443", "Peru", "2"]


def test_top_has_the_bytes_of_connections_while_they_live() -> None:
    """What heartbeats say is new, at a rate, and the rest at the end: each byte once."""
    talkers = counting.Talkers("src")
    ranking, seen = counting.Ranking(talkers, "bytes", 0.0), []
    flow = make_flow(1)
    for moment, (kind, size) in enumerate(
        ((EventType.NEW, 0), (EventType.ALIVE, 1000), (EventType.ALIVE, 5000), (EventType.DESTROY, 5500)), 1
    ):
        before, flow.type, flow.orig_bytes = max(0, flow.orig_bytes), kind, size
        flow.reply_bytes = flow.reply_bytes_delta = 0
        flow.orig_bytes_delta = size - before
        talkers.add(json.loads(render(TEMPLATE, [flow]).text))
        ranking.tick(float(moment))
        (row,) = ranking.list(9)
        seen.append((row.size, row.byte_rate))

    assert seen == [(0, 0.0), (1000, 1000.0), (5000, 4000.0), (5500, 500.0)]


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("src", "10.0.0.1"),
        ("dst", "2001:db8::1"),
        ("port", "TCP 443"),
        ("country", "unknown"),
        ("flow", "TCP 10.0.0.1:40000 -> [2001:db8::1]:443"),
    ],
)
def test_top_counts_by_what_is_asked(by: str, key: str) -> None:
    assert counting.make_key(EVENT, by) == key


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("sort", counting.SORTS)
@pytest.mark.parametrize("by", [("src",), ("src", "dst", "dport"), ("src", "dst", "sport", "dport", "prot")])
def test_top_shows_the_column_that_it_sorts_by_whatever_the_width(
    by: tuple[str, ...], sort: str, width: int
) -> None:
    talkers = counting.Talkers(*by)
    talkers.add(EVENT | {"src": "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", SIZES[0]: 123_456_789_000})
    ranking = counting.Ranking(talkers, sort, 0.0)
    ranking.tick(1.0)

    _, heading, row = top.render_table(ranking, by, (width, 24))
    assert max(len(heading), len(row)) <= width
    assert sort == "key" or sort.upper() in heading.split()
    assert {"bytes": "115.0 GiB", "bytes/s": "115.0 GiB", "events/s": "1.0"}.get(sort, "20") in row


@pytest.mark.parametrize(("by", "end"), [(("src",), 80), (("src", "dst"), 121), (("flow",), 145)])
def test_the_numbers_of_top_stand_beside_the_longest_key_on_a_wide_terminal(
    by: tuple[str, ...], end: int
) -> None:
    heading = top.render_table(counting.Ranking(counting.Talkers(*by), "bytes", 0.0), by, (200, 24))[1]

    assert len(heading) == end


def test_top_leaves_out_the_columns_that_have_no_room_beside_an_address() -> None:
    assert [len(top.choose_columns(1, "events/s", width)) for width in (20, 40, 60, None)] == [1, 2, 4, 4]
    assert [top.HEADINGS[number] for number in top.choose_columns(1, "events/s", 40)] == ["EVENTS/S", "BYTES"]


def test_the_table_of_top_takes_no_text_for_commands() -> None:
    talkers = counting.Talkers("src")
    talkers.add(EVENT | {"src": "\x1b[31m\n"})
    ranking = counting.Ranking(talkers, "bytes", 0.0)
    ranking.tick(1.0)

    assert top.render_table(ranking, ("src",), (60, 24))[2].startswith("\\x1b[31m\\n  ")
