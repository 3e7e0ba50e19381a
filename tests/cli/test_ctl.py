"""conntrackctl's verbs against the service on a private bus, and every way in which there is no answer."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from conntrackd.bus.client import MANAGER, NotRunningError
from conntrackd.bus.control import FilterStatus, SinkStatus
from conntrackd.cli import ctl, top
from conntrackd.cli.control import render_age
from conntrackd.cli.daemonlink import print_table
from conntrackd.cli.doctor import print_findings
from conntrackd.cli.stats import cut_rows, render_rows
from conntrackd.cli.tail import print_chunk, render_full, render_short
from conntrackd.errors import ConntrackdError, NotPermittedError, UnavailableError, UsageError
from conntrackd.flow import EventType, Location
from conntrackd.sinks.encode import JsonEncoder
from tests.bus.private import PrivateBus, Served, as_user
from tests.bus.recorder import Recorder
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


class Teller(Recorder):
    """A Recorder whose tails carry these bytes."""

    text = b""
    is_endless = False

    async def open_tail(self, rules: list[str], limit: int) -> int:
        await self._note("open_tail", tuple(rules), limit)
        reading, writing = os.pipe()
        os.write(writing, self.text)
        if self.is_endless:
            self.pipes.append(writing)
        else:
            os.close(writing)
        return reading


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBus]:
    made = PrivateBus()
    made.start()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
    yield made
    made.close()


@pytest.fixture
def served(bus: PrivateBus) -> Iterator[Served]:
    made = Served(bus.address, Teller())
    made.wait_ready()
    yield made
    made.close()
    for pipe in made.control.pipes:
        os.close(pipe)


def make_well(served: Served) -> None:
    served.control.sinks["loki"] = SinkStatus("ok", "", {"sink_events_delivered_total": 9})


# ---- status -------------------------------------------------------------------------------------------


def test_status_is_0_when_all_is_well(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    make_well(served)

    assert ctl.run(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "conntrackd 2.0.0: healthy"
    assert [line for line in lines if not line.startswith("since:")][1:] == [
        "files:     /etc/conntrackd/conntrackd.yaml",
        "filter:    2 rules, from configuration",
        "kernel:    events new, destroy; filter of 42 instructions",
        "events:    5 received, 0 logged, 0 lost",
        "log level: info",
        "sink:      journal ok, 7 delivered",
        "sink:      loki ok, 9 delivered",
    ]


def test_status_is_4_when_something_is_wrong_and_says_what(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["status", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert (found["healthy"], found["Problems"]) == (False, ["sink loki is retrying: connection refused"])
    assert found["Sinks"]["journal"]["State"] == "ok"


@pytest.mark.parametrize("words", [["status"], ["stats"], ["reload"], ["tail"], ["sink", "list"]])
def test_without_a_daemon_a_sentence_says_so_and_the_status_is_3(words: list[str], bus: PrivateBus) -> None:
    with pytest.raises(NotRunningError) as caught:
        ctl.run(words)

    assert str(caught.value) == (
        "conntrackd is not running, or not on this bus\nhint: systemctl start conntrackd"
    )
    assert caught.value.exit_status == 3


def test_without_a_bus_a_sentence_says_so() -> None:
    with pytest.raises(NotRunningError, match="there is no D-Bus to reach conntrackd over"):
        ctl.run(["status", "--bus.address", "unix:path=/nonexistent"])


@pytest.mark.privileged
def test_who_may_not_is_told_what_to_do(served: Served) -> None:
    with as_user(1), pytest.raises(NotPermittedError, match="only root may do this") as caught:
        ctl.run(["reload"])

    assert caught.value.hint == "run it as root, such as with sudo"


def test_a_daemon_that_does_not_answer_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conntrackd.bus.client.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("conntrackd.bus.client.PASSWORD_SECONDS", 0.2)
    release = served.hold()

    with pytest.raises(UnavailableError, match="did not answer in time"):
        ctl.run(["reload"])
    release()


def test_an_older_daemon_is_told(bus: PrivateBus, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(served.service._interfaces[MANAGER].properties, "RunTimeChanges")
    with pytest.raises(UnavailableError, match="of another version than conntrackctl: it has no RunTime"):
        ctl.run(["status"])
    with bus.connect() as client, pytest.raises(UnavailableError, match="of another version"):
        client.call("Explode")


def test_what_lasts_until_a_reload_is_named(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_well(served)
    control = served.control
    rules = FilterStatus(("log any",), "run time, for 600 s", expires_s=125)
    control.present = replace(control.present, filter=rules, run_time=("filter", "sink loki"))
    monkeypatch.setenv("COLUMNS", "40")

    assert ctl.run(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("filter:    1 rule, from run time, for")
    assert lines[at + 1] == "           600 s, reverts in 2 min 5 s"
    assert lines[-2:] == ["run time:  filter, sink loki: until a", "           reload or restart"]


# ---- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "there is no command 'stauts'\nhint: did you mean stats?"),
        (["sink", "flsh", "x"], "there is no command 'flsh'\nhint: did you mean flush?"),
        (["log-level", "7"], "there is no level '7'\nhint: one of: debug, info, warn, error"),
        (["top", "--by", "\x1b"], "there is no --by '\\x1b'\nhint: one of: src, dst, port, country, flow"),
        (["tail", "-n", "0"], "argument -n: '0' is no number from 1\nhint: 'conntrackctl tail --help'"),
        ([], "the following arguments are required: COMMAND\nhint: 'conntrackctl --help' shows"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ctl.run(words)

    assert str(caught.value).startswith(said)


# ---- changes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "asked", "out"),
    [
        (["reload"], ("reload",), "filter: 2 rules\n"),
        (["reload", "--json"], ("reload",), '{"changes": ["filter: 2 rules"]}\n'),
        (["reload-filter"], ("reload_filter",), "filter: 2 rules\n"),
        (
            ["filter", "set", "drop protocol UDP", "log any", "--for", "10m"],
            ("set_filter", ("drop protocol UDP", "log any"), 600),
            "filter: 2 rules, until a restart or reload\n",
        ),
        (["filter", "reset"], ("reset_filter",), ""),
        (
            ["sink", "enable", "loki"],
            ("enable_sink", "loki"),
            "sink loki is enabled\n",
        ),
        (
            ["sink", "disable", "loki"],
            ("disable_sink", "loki"),
            "sink loki is disabled\n",
        ),
        (
            ["sink", "disable", "loki", "--json"],
            ("disable_sink", "loki"),
            '{"changes": ["sink loki is disabled"]}\n',
        ),
        (["sink", "flush", "loki"], ("flush_sink", "loki", 10.0), "sink loki: nothing waits\n"),
        (["sink", "flush", "loki", "--json"], ("flush_sink", "loki", 10.0), '{"emptied": true}\n'),
        (
            ["log-level", "debug"],
            ("set_log_level", "debug"),
            "log level is debug\n",
        ),
    ],
)
def test_a_verb_asks_the_daemon_and_tells_what_changed(
    words: list[str], asked: tuple[Any, ...], out: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(words) == 0
    assert served.control.asked == [asked]
    assert capsys.readouterr().out == out


def test_a_mistake_in_a_rule_comes_with_its_place_and_caret(served: Served) -> None:
    with pytest.raises(ConntrackdError) as caught:
        ctl.run(["filter", "set", "log any", "bad rule"])

    assert str(caught.value) == "rule 2: unknown word 'bad'\n  bad rule\n  ^^^"


@pytest.mark.parametrize("time", ["", "0", "-5", "10 m", "1w", "1e3", "10000000000"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        ctl.run(["filter", "set", "log any", f"--for={time}"])


def test_the_filter_is_shown_as_a_file_of_rules_would_have_it(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["filter", "show"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "# from configuration",
        "drop destination network LOCAL",
        "drop protocol UDP",
    ]
    assert ctl.run(["filter", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matches"] == [3, 1, 1]


def test_the_rules_in_force_are_explained_by_the_daemon(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["filter", "explain", "--running"]) == 0
    assert capsys.readouterr().out == "def select(batch): ...\n"
    assert served.control.asked == [("explain_filter", ())]
    for more in (["log any"], ["--filter", "log any"], ["--bpf"]):
        with pytest.raises(UsageError, match="--running"):
            ctl.run(["filter", "explain", "--running", *more])


def test_sinks_are_a_table_that_fits(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["sink", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "SINK     STATE     DELIVERED  WAITING  DROPPED  LAST ERROR",
        "journal  ok                7        0        0",
        "loki     retrying          0        0        0  connection refused",
    ]


def test_a_table_is_no_wider_than_the_terminal_and_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["NAME", "N"], ["\x1b[31mred\nand more", "5"]], width=12)

    assert capsys.readouterr().out.splitlines() == ["NAME       …", "\\x1b[31mred…"]


# ---- stats --------------------------------------------------------------------------------------------


def test_stats_has_counters_sinks_and_rules(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "counters": {"events_received_total": 5, "events_lost_total": 0},
        "sinks": {"journal": {"sink_events_delivered_total": 7}, "loki": {"sink_events_delivered_total": 0}},
        "rates": {},
        "rule_matches": [3, 1, 1],
    }


def test_a_view_that_was_reset_counts_from_now_on_with_rates(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["stats", "--reset-view", "-n", "2", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["counters"] == second["counters"] == {"events_received_total": 0, "events_lost_total": 0}
    assert (first["rates"], second["rates"]["events_received_total"]) == ({}, 0.0)


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

    assert render_rows(view, rates, [], 66 * 10**9)[1:] == [
        ["events_lost_total", "0", "0.0"],
        ["buffer_bytes", "2.0 KiB", ""],
        ["process_cpu_us_total", "1.5 s", "1.2 %"],
        ["sink_oldest_event_ns{loki}", "1 min 5 s", ""],
        ["sink_bytes_total{loki}", "3.0 MiB", "512 B"],
    ]


def test_a_view_is_no_higher_than_the_terminal() -> None:
    rows = [[str(number), "", ""] for number in range(9)]

    assert cut_rows(rows, 11) == rows
    assert cut_rows(rows, 6) == [*rows[:4], ["and 5 more: --json has all", "", ""]]


def test_stats_for_people_name_each_rule(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["stats"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "events_received_total 5"
    assert lines[-2:] == ["decided by rule 1 1", "decided by rule 2 1"]


# ---- tail and top -------------------------------------------------------------------------------------


def set_tail(served: Served, *records: dict[str, Any]) -> None:
    assert isinstance(served.control, Teller)
    served.control.text = b"".join(json.dumps(each).encode() + b"\n" for each in records)


def test_a_tail_in_a_pipe_is_json_as_it_came(served: Served, capfdbinary: Any) -> None:
    set_tail(served, EVENT, EVENT)
    assert ctl.run(["tail", "-n", "2", "-o", "json", "--filter", "log any"]) == 0
    assert served.control.asked == [("open_tail", ("log any",), 2)]
    assert [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()] == [EVENT, EVENT]


def test_a_tail_that_the_daemon_ends_is_told(served: Served) -> None:
    set_tail(served, EVENT)

    with pytest.raises(UnavailableError, match="the daemon has ended the tail"):
        ctl.run(["tail"])


def test_the_short_form_has_what_a_person_looks_for() -> None:
    assert render_short(EVENT, False) == (
        "10:34:43.000 NEW      TCP   10.0.0.1:40000 -> [2001:db8::1]:443  SYN_SENT"
    )
    assert render_short(LOST, False) == "10:34:43.000 LOST 5 events"
    assert render_short(EVENT, True).startswith("10:34:43.000 \x1b[32mNEW ")


def test_the_names_are_those_that_the_sinks_write() -> None:
    flow = make_flow(1, EventType.DESTROY)
    flow.orig_packets, flow.orig_bytes, flow.reply_packets, flow.reply_bytes = 1, 100, 1, 20
    flow.src_location = Location(city="Nuremberg", country="DE")
    flow.dst_location = Location(city="Lyon", country="FR")
    record = json.loads(JsonEncoder().encode([flow]))
    talkers = top.Talkers("country")
    talkers.add(record)

    assert render_short(record, False).endswith("  SYN_SENT, Nuremberg, DE, Lyon, FR, 120 bytes")
    assert talkers.list(1) == [("FR", 1, 120)]


def test_the_full_form_has_every_field() -> None:
    lines = render_full(EVENT, False).splitlines()

    assert lines == [*(f"{name}: {value}" for name, value in EVENT.items()), ""][: len(lines)]
    assert len(lines) == len(EVENT)


@pytest.mark.parametrize("form", ["short", "full", "json"])
def test_nothing_from_a_network_or_a_database_is_obeyed_by_a_terminal(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\u202e\x9b31m\n"
    record = EVENT | {"src_city": evil, "src": evil, "prot": evil, evil: evil}

    print_chunk(json.dumps(record, ensure_ascii=False).encode() + b"\n", form, is_terminal=True, colour=False)

    text = capsys.readouterr().out
    assert text.count("\n") == {"short": 1, "full": len(record) + 1, "json": 1}[form]
    assert all(char.isprintable() for char in text.replace("\n", ""))


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from conntrackd.cli.ctl import main; main()", *words]


def run_on_terminal(bus: PrivateBus, *words: str) -> tuple[int, bytes]:
    """The exit status, and what a terminal was sent."""
    master, slave = pty.openpty()
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": bus.address, "TERM": "xterm", "PATH": os.environ["PATH"]}
    done = subprocess.run(command(*words), stdout=slave, env=environ, timeout=20, check=False)
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


@pytest.mark.parametrize("words", [["tail"], ["top"], ["stats", "--watch"]], ids=" ".join)
def test_an_interrupt_ends_a_view_without_a_word(words: list[str], bus: PrivateBus, served: Served) -> None:
    set_tail(served, EVENT)
    served.control.is_endless = True  # type: ignore[attr-defined]
    with subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert (len(first), process.returncode, errors) == (1, 0, b"")


def test_top_counts_and_keeps_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "MAX_KEYS", 4)
    talkers = top.Talkers("src")
    for number in range(4):
        talkers.add(EVENT | {"src": f"10.0.0.{number}"})
    talkers.add(EVENT | {"src": "10.0.0.3", "bytes": 100, "reply_bytes": 20})
    talkers.add(EVENT | {"src": "10.0.0.9"})
    talkers.add(LOST)

    assert talkers.list(5)[0] == ("10.0.0.3", 2, 120)
    assert len(talkers.list(10)) < 5
    assert (talkers.events, talkers.lost) == (6, 5)


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
    assert top.find_key(EVENT, by) == key


def test_the_table_of_top_takes_no_text_for_markup_or_commands() -> None:
    from rich.console import Console  # noqa: PLC0415

    talkers = top.Talkers("src")
    talkers.add(EVENT | {"src": "[red]\x1b[31m"})
    console = Console(width=60, force_terminal=False)
    with console.capture() as capture:
        console.print(top.render_table(talkers, "src", 5))

    assert "[red]\\x1b[31m" in capture.get()


# ---- the rest -----------------------------------------------------------------------------------------


def test_the_doctors_findings_come_with_the_line_that_mends(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["doctor"]) == 4
    assert capsys.readouterr().out.splitlines() == [
        "ok       daemon: conntrackd runs",
        "WARNING  acct: nf_conntrack_acct is 0",
        "         mend: sysctl -w net.netfilter.nf_conntrack_acct=1",
    ]


def test_a_finding_that_is_long_goes_on_below_and_what_mends_it_stays_in_one_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_findings([("error", "tracking", "nothing \x1b is tracked in this place", "x" * 50)], colour=True)

    assert capsys.readouterr().out.splitlines() == [
        "\x1b[31mERROR  \x1b[0m  tracking: nothing \\x1b is",
        "         tracked in this place",
        f"         mend: {'x' * 50}",
    ]


def test_the_doctor_works_without_a_daemon(bus: PrivateBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["doctor", "--json"]) == 4
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["check"] == "daemon"
    assert {"buffer", "clock", "packages"} <= {row["check"] for row in rows}


def test_status_imports_little() -> None:
    program = "import sys; from conntrackd.cli import ctl; import conntrackd.bus.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    heavy = {"asyncio", "dbus_fast", "rich", "ply", "yaml", "pyroute2", "logging", "subprocess"}
    heavy |= {"conntrackd.options", "conntrackd.config", "conntrackd.flow"}
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (3600, "1 h"), (93784, "1 d 2 h"), (125, "2 min 5 s")]
)
def test_an_age_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert render_age(seconds) == text


def test_help_of_every_verb_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ctl.VERBS:
        with pytest.raises(SystemExit):
            ctl.build_parser().parse_args([*verb.words, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
