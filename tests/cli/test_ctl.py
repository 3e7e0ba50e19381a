"""conntrackctl's verbs against the service on a private bus, and every way in which there is no answer."""

import asyncio
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from conntrackd import VERSION
from conntrackd.bus.client import ANSWER_SECONDS, PASSWORD_SECONDS, NotRunningError
from conntrackd.bus.control import FilterStatus, SinkStatus
from conntrackd.bus.names import MANAGER
from conntrackd.cli import ctl, daemon
from conntrackd.cli.common import print_changes, print_table
from conntrackd.cli.control import render_age
from conntrackd.cli.doctor import print_findings
from conntrackd.errors import ConntrackdError, NotPermittedError, UnavailableError, UsageError
from tests.bus.private import PrivateBus, Served, as_user

# The caller of most calls is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged


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


def test_flows_of_the_table_are_no_events(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    make_well(served)
    served.control.counters["events_snapshot_total"] = 7

    assert ctl.run(["status"]) == 0
    assert "events:    5 received, 0 logged, 0 lost; 7 flows from the table\n" in capsys.readouterr().out


def test_status_is_4_when_something_is_wrong_and_says_what(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["status", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["running"]
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


def test_status_in_json_is_an_object_where_no_daemon_answers(
    bus: PrivateBus, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for words in (["status", "--json"], ["status", "--json", "--bus.address", "unix:path=/nonexistent"]):
        with pytest.raises(NotRunningError) as caught:
            ctl.run(words)
        found.append((json.loads(capsys.readouterr().out), str(caught.value)))

    assert [told for told, _ in found] == [
        {"healthy": False, "running": False, "Problems": [said], "Sinks": {}} for _, said in found
    ]


def test_without_a_bus_a_sentence_says_so() -> None:
    with pytest.raises(NotRunningError, match="cannot connect to D-Bus"):
        ctl.run(["status", "--bus.address", "unix:path=/nonexistent"])


@pytest.mark.privileged
def test_who_may_not_reads_what_to_do(served: Served) -> None:
    with as_user(1), pytest.raises(NotPermittedError, match="only root may do this") as caught:
        ctl.run(["reload"])

    assert caught.value.hint == "run it as root, for example with sudo"


def test_a_daemon_that_does_not_answer_is_reported(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conntrackd.bus.client.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("conntrackd.bus.client.PASSWORD_SECONDS", 0.2)
    release = served.hold()

    with pytest.raises(UnavailableError, match="did not answer in time"):
        ctl.run(["reload"])
    assert ctl.run(["doctor", "--json"]) == 4  # which looks from here, then
    release()
    first, *others = json.loads(capsys.readouterr().out)
    assert (first["check"], first["message"]) == ("daemon", "conntrackd did not answer in time")
    assert {"buffer", "clock"} <= {row["check"] for row in others}


def test_who_only_looks_waits_for_no_password(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal a change may take as long as it takes to type one; of a hang one is told sooner."""
    waits: list[float] = []
    wait_for = asyncio.wait_for

    def note(awaited: Awaitable[Any], seconds: float) -> Any:
        waits.append(seconds)
        return wait_for(awaited, seconds)

    monkeypatch.setattr("conntrackd.bus.transport.asyncio.wait_for", note)
    monkeypatch.setattr(os, "isatty", lambda _: True)
    ctl.run(["status"])
    looked = max(waits)
    ctl.run(["reload"])

    assert (looked, max(waits)) == (ANSWER_SECONDS, PASSWORD_SECONDS)


def test_an_older_daemon_is_reported(
    bus: PrivateBus, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(served.service._interfaces[MANAGER].properties, "RunTimeChanges")
    with pytest.raises(UnavailableError, match="are of different versions: no property RunTime"):
        ctl.run(["status"])
    with bus.connect() as client, pytest.raises(UnavailableError, match="of different versions"):
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
    assert lines[-3:] == [
        "run time:  filter: for 2 min 5 s more",
        "run time:  sink loki: until a reload or",
        "           restart",
    ]


def test_what_has_a_time_is_not_said_to_last_until_a_reload(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    make_well(served)
    rules = FilterStatus(("log any",), "run time, for 600 s", expires_s=300)
    served.control.present = replace(served.control.present, filter=rules, run_time=("filter",))

    ctl.run(["status"])

    said = capsys.readouterr().out
    assert "run time:  filter: for 5 min more\n" in said
    assert "until a reload" not in said


def test_a_filter_of_a_sink_is_shown_with_its_time_and_its_matches(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    make_well(served)
    own = FilterStatus(("log type NEW",), "run time, for 600 s", expires_s=125)
    counters = {"sink_events_delivered_total": 9, "sink_events_filtered_total": 4}
    served.control.sinks["loki"] = SinkStatus("ok", "", counters, own, (4, 9))
    served.control.present = replace(served.control.present, run_time=("filter of sink loki",))

    ctl.run(["filter", "show", "--sink", "loki"])
    assert capsys.readouterr().out == "# from run time, for 600 s, reverts in 2 min 5 s\nlog type NEW\n"
    ctl.run(["filter", "show", "--sink", "loki", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "rules": ["log type NEW"],
        "origin": "run time, for 600 s",
        "expires_s": 125,
        "matches": [4, 9],
        "suppressed": [],
    }
    ctl.run(["status"])
    said = capsys.readouterr().out
    assert "sink:      loki ok, 9 delivered, 4 filtered\n" in said
    assert "run time:  filter of sink loki: for 2 min 5 s more\n" in said
    assert "until a reload" not in said


@pytest.mark.parametrize(("run", "name"), [(ctl.run, "conntrackctl"), (daemon.parse_and_run, "conntrackd")])
def test_both_programs_print_their_version(
    run: Callable[[list[str]], int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--version"])

    assert (caught.value.code, capsys.readouterr().out) == (0, f"{name} {VERSION}\n")


@pytest.mark.parametrize("verb", [(), *(verb.words for verb in ctl.VERBS)])
def test_every_help_ends_with_one_line_break(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ctl.run([*verb, "--help"])

    assert re.search(r"\S\n\Z", capsys.readouterr().out)


# ---- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "unknown command 'stauts'\nhint: did you mean status?"),
        (["stat"], "unknown command 'stat'\nhint: did you mean stats?"),
        (["relaod"], "unknown command 'relaod'\nhint: did you mean reload?"),
        (["start"], "unknown command 'start'\nhint: systemctl start conntrackd"),
        (["help"], "unknown command 'help'\nhint: conntrackctl --help"),
        (["filter", "help"], "unknown command 'help'\nhint: conntrackctl filter --help"),
        (["version"], "unknown command 'version'\nhint: conntrackctl --version"),
        (["fitler"], "unknown command 'fitler'\nhint: did you mean filter?"),
        (["sink", "flsh", "x"], "unknown command 'flsh'\nhint: did you mean flush?"),
        (["status", "--jsn"], "unknown option '--jsn'\nhint: did you mean --json?"),
        (["filter", "set", "log any", "--fro=9"], "unknown option '--fro'\nhint: did you mean --for?"),
        (
            ["status", "now"],
            "unknown argument 'now'\nhint: 'conntrackctl status --help' lists what is available",
        ),
        (["status", "--bus.address", "bogus"], "'bogus' is not a usable bus address\nhint: the "),
        (["doctor", "--bus.address", "tcp:host=a"], "'tcp:host=a' is not a usable bus address"),
        (["stats", "--bus.address", "unix:pth=/x"], "'unix:pth=/x' is not a usable bus address"),
        (["log-level", "7"], "unknown level '7'\nhint: one of: debug, info, warn, error"),
        (
            ["top", "--by", "\x1b"],
            "argument --by: '\\x1b' is not a field of an event\nhint: 'conntrackctl top --help' lists",
        ),
        (
            ["tail", "-n", "1.5"],
            "argument -n: '1.5' is not a whole number from 1 to 999999999\nhint: 'conntrackctl tail",
        ),
        (
            ["filter", "check", __file__],
            f"argument RULE: '{__file__}' is a file, and not a rule\nhint: 'conntrackctl filter",
        ),
        (["status", "--json=1"], "argument --json: does not take '1'"),
        (
            ["events", "log", "type", "NEW"],
            "argument RULE: a rule is one argument: put it in quotes, such as 'log type NEW'",
        ),
        (
            ["filter", "set", 'drop city "Z\udcfc"'],
            "argument RULE: 'drop city \"Z\\udcfc\"' is not UTF-8 text",
        ),
        (
            ["filter", "test", "drop any", "x.json"],
            "argument FILE: 'drop any' is a rule, and not a file: a rule stands behind --filter, in quotes",
        ),
        (
            ["filter", "test", "x.json", "drop any"],
            "unknown argument 'drop any'\nhint: a rule stands behind --filter, in quotes",
        ),
        (["sink", "list", "log any"], "unknown argument 'log any'\nhint: 'conntrackctl sink list --help'"),
        (["tail", "--filter", "DROP", "any"], "argument --filter: a rule is one argument: put it in quotes"),
        (
            ["--json", "status"],
            "unknown option '--json' before the command\nhint: options of a command stand behind it",
        ),
        ([], "the following arguments are required: COMMAND\nhint: 'conntrackctl --help' lists"),
    ],
)
def test_a_mistake_is_reported_with_what_was_meant(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ctl.run(words)

    assert str(caught.value).startswith(said)
    assert caught.value.exit_status == 64


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
            ["filter", "set", "--sink", "loki", "log any", "--for", "10m"],
            ("set_sink_filter", "loki", ("log any",), 600),
            "sink loki: 1 rules\n",
        ),
        (
            ["filter", "reset", "--sink", "loki", "--json"],
            ("reset_sink_filter", "loki"),
            '{"changes": ["sink loki: 0 rules"]}\n',
        ),
        (["sink", "enable", "loki"], ("enable_sink", "loki"), "sink loki is enabled\n"),
        (["sink", "disable", "loki"], ("disable_sink", "loki"), "sink loki is disabled\n"),
        (
            ["sink", "disable", "loki", "--json"],
            ("disable_sink", "loki"),
            '{"changes": ["sink loki is disabled"]}\n',
        ),
        (["sink", "flush", "loki"], ("flush_sink", "loki", 10.0), "sink loki: nothing waits\n"),
        (["sink", "flush", "loki", "--json"], ("flush_sink", "loki", 10.0), '{"emptied": true}\n'),
        (["log-level", "debug"], ("set_log_level", "debug"), "log level is debug\n"),
    ],
)
def test_a_verb_asks_the_daemon_and_prints_what_changed(
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
    with pytest.raises(UsageError, match="is not a valid time"):
        ctl.run(["filter", "set", "log any", f"--for={time}"])


def test_a_time_that_no_call_can_carry_is_refused_by_the_daemon(served: Served) -> None:
    with pytest.raises(ConntrackdError, match="a run-time change lasts 31 days at most"):
        ctl.run(["filter", "set", "log any", "--for=999999999d"])


def test_the_filter_is_shown_as_a_file_of_rules_would_have_it(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["filter", "show"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "# from configuration",
        "drop destination network LOCAL",
        "drop protocol UDP",
        "# rule 2: 3 of 4 events were beyond its limit",
    ]
    assert ctl.run(["filter", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["matches"], shown["suppressed"]) == ([3, 1, 4], [0, 0, 3])


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


def test_a_table_is_no_wider_than_the_terminal_and_obeys_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    print_table([["NAME", "N"], ["\x1b[31mred\nand more", "5"]])

    assert capsys.readouterr().out.splitlines() == ["NAME       …", "\\x1b[31mred…"]


# ---- the rest -----------------------------------------------------------------------------------------


def test_the_doctors_findings_come_with_the_line_that_fixes(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.run(["doctor"]) == 4
    assert capsys.readouterr().out.splitlines() == [
        "ok       daemon: conntrackd runs",
        "WARNING  acct: nf_conntrack_acct is 0",
        "         fix: sysctl -w net.netfilter.nf_conntrack_acct=1",
    ]


def test_a_long_finding_goes_on_below_and_its_fix_stays_in_one_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_findings([("error", "tracking", "nothing \x1b is tracked in this place", "x" * 50)], colour=True)

    assert capsys.readouterr().out.splitlines() == [
        "\x1b[31mERROR  \x1b[0m  tracking: nothing \\x1b is",
        "         tracked in this place",
        f"         fix: {'x' * 50}",
    ]


def test_what_has_changed_is_wrapped_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_changes(Namespace(json=False), ["1 rule in force; 55 instructions in the kernel"])

    assert capsys.readouterr().out == "1 rule in force; 55 instructions in the\n  kernel\n"


def test_the_lines_of_a_warning_about_a_change_stay_below_each_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "warning: rule 2: this rule can never match\n  log port 443\n      ^^^^\nhint: remove it"
    print_changes(Namespace(json=False), [text])

    assert capsys.readouterr().out == text.replace("never ", "never\n  ") + "\n"


def test_the_doctor_works_without_a_daemon(bus: PrivateBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["doctor", "--json"]) == 4
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["check"] == "daemon"
    assert {"buffer", "clock", "packages"} <= {row["check"] for row in rows}


def test_without_a_bus_the_doctors_fix_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["doctor", "--json", "--bus.address", "unix:path=/nonexistent"]) == 4
    command, _, note = json.loads(capsys.readouterr().out)[0]["remedy"].partition("  # ")
    assert (command, note) == (
        "pgrep -af 'conntrackd run'",
        "shows whether the daemon runs, which works without D-Bus",
    )


def test_status_imports_little() -> None:
    program = "import sys; from conntrackd.cli import ctl; import conntrackd.bus.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    heavy = {"_hashlib", "_ssl", "gi", "ply", "yaml", "pyroute2"}
    heavy |= {"conntrackd.config.options", "conntrackd.config.read", "conntrackd.flow"}
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
