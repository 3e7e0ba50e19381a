"""conntrackctl filter check, explain and test, without a daemon."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conntrackd.render.parse import OTHER_NAMES
from tests.cli.terminal import Terminal
from tests.live.daemon import ROOT, ctl_command, environment

EVENTS = ROOT / "tests" / "netlink" / "corpus" / "tcp.nl"


def ctl(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    program = "import sys; from conntrackd.cli.ctl import main; sys.argv[0] = 'conntrackctl'; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "filter", *arguments],
        input=text,
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
        env=environment(),
    )


@pytest.fixture(scope="module")
def events() -> str:
    """What the stream sink writes of the corpus."""
    arguments = ["run", "--conntrack.replay", str(EVENTS), "--sink.stream.enable"]
    done = subprocess.run(
        [sys.executable, "-m", "conntrackd", *arguments],
        text=True,
        capture_output=True,
        timeout=30,
        check=True,
        env=environment(),
    )
    return done.stdout


def test_events_are_asked_for_where_a_terminal_is_the_input() -> None:
    words = ctl_command("filter", "test")
    with Terminal(words, (100, 10), PYTHONPATH=environment()["PYTHONPATH"]) as terminal:
        terminal.wait(lambda lines: lines[0].startswith("conntrackctl: reading events from this terminal"))
        terminal.press("\x04")
        assert terminal.finish() == 0


def test_good_rules_are_good_and_bad_ones_are_all_shown() -> None:
    good = ctl("check", "--filter", "log type NEW", "--filter", "drop any")
    bad = ctl("check", "--filter", "log type NWE", "--filter", "drop port x")

    plain = ctl("check", "log type NEW", "drop any")

    assert (good.returncode, good.stderr) == (0, "")
    assert (plain.returncode, plain.stdout) == (0, good.stdout)
    assert bad.returncode == 78
    assert bad.stderr.count("^") >= 2
    assert "did you mean NEW?" in bad.stderr


def test_a_mistake_stands_where_the_rule_was_typed() -> None:
    both = ctl("check", "--filter", "log type NWE", "log any", "drop port x")
    of_sink = ctl("check", "--sink", "loki", "drop port x")

    places = [line.split(": ")[1] for line in both.stderr.splitlines() if line.startswith("conntrackctl: ")]
    assert places == ["--filter", "rule 3"]
    assert of_sink.stderr.startswith("conntrackctl: rule 1: ")


def test_rules_are_checked_for_a_program_too() -> None:
    good = ctl("check", "--json", "log type NEW", "drop any", "drop any")
    bad = ctl("check", "--json", "log type NWE", "drop port x")

    found, mistakes = json.loads(good.stdout), json.loads(bad.stdout)["mistakes"]
    assert (good.returncode, good.stderr, found["rules"]) == (0, "", ["log type NEW", "drop any", "drop any"])
    assert [entry["hint"] for entry in found["warnings"]] == ["remove it, or move it up"]
    silent = json.loads(ctl("check", "--json", "drop any", "log port 5 and protocol ICMP").stdout)["warnings"]
    assert [entry["message"] for entry in silent] == [
        "this rule can never match: no event of its protocol has this",
        "the filter logs no event",
    ]
    assert (bad.returncode, bad.stderr, len(mistakes)) == (78, "", 2)
    assert mistakes[0]["excerpt"] == "log type NWE\n         ^^^"


def test_what_becomes_of_rules_is_said_for_a_program_too() -> None:
    found = json.loads(ctl("explain", "--json", "--bpf", "DROP any").stdout)

    assert (found["rules"], found["settings"]["conntrack.events"]) == (["drop any"], "new, update, destroy")
    assert {"groups", "program_in_the_kernel", "left_to_the_core", "bpf"} <= found.keys()
    assert json.loads(ctl("explain", "--json", "log type new").stdout)["groups"] == [
        "new",
        "update",
        "destroy",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"drop source address {'1.2.3.4,' * 1_250_000}", "rules: is larger than 8 MiB"),
        ("log any\n" * 1_000_000, "rules:1001: more than 1,000 rules"),
        (f"log {'(' * 10_000}any{')' * 10_000}", "rules:1: a rule of 20,007 characters: at most 4,096"),
        (f"log {'(' * 2_000}any{')' * 2_000}", "rules:1: parentheses in more than 64 levels"),
    ],
    ids=["10 MB", "a million rules", "10,000 parentheses", "2,000 parentheses"],
)
def test_more_than_a_filter_may_have_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(text)

    done = ctl("check", "--filter-file", str(tmp_path / "rules"))

    assert done.returncode == 78
    assert said in done.stderr
    assert "RecursionError" not in done.stderr


def test_a_file_of_rules_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("# comment\n\nlog type NEW\ndrop prt 80\n")
    bad = ctl("check", "--filter-file", str(path))

    assert bad.returncode == 78
    assert f"{path}:4" in bad.stderr
    missing = ctl("check", "--filter-file", f"{path}.gone").stderr
    assert missing.startswith(f"conntrackctl: --filter-file: {path}.gone: cannot be read")


def test_a_rule_in_vain_is_a_warning() -> None:
    done = ctl("check", "--filter", "drop any", "--filter", "log type NEW")

    assert done.returncode == 0
    assert "warning" in done.stderr


def test_rules_that_leave_nothing_out_are_noted() -> None:
    note = "no rule drops anything: events that no rule matches are logged, too"
    hint = "a last rule 'drop any' leaves out what no other one logs"

    done = ctl("check", "log port 443")
    assert (done.returncode, done.stderr) == (0, f"conntrackctl: note: {note}\nhint: {hint}\n")
    notes = json.loads(ctl("check", "--json", "log port 443").stdout)["notes"]
    assert [(entry["message"], entry["hint"]) for entry in notes] == [(note, hint)]


@pytest.mark.parametrize(
    "rules",
    [
        ["log port 443", "drop any"],
        ["log port 443", "log any"],
        ["log port 443 sample 1/2"],
        ["log port 443 limit 1/second"],
    ],
)
def test_nothing_is_noted_of_rules_that_leave_something_out_or_ask_for_all(rules: list[str]) -> None:
    done = ctl("check", *rules)

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(ctl("check", "--json", *rules).stdout)["notes"] == []


def test_what_becomes_of_rules_is_shown_with_both_programs() -> None:
    rules = ["--filter", "drop destination port 53", "--filter", "log country DE"]
    done = ctl("explain", *rules, "--core", "--bpf")

    assert done.returncode == 0
    for words in (
        "1  drop destination port 53",
        "Groups joined",
        "instructions",
        "rule 2: locations are looked up there",
        "begin at 0",
        "destination country is DE: rule 2 (log), else no rule (log)",
        "ret #0",
    ):
        assert words in done.stdout


def test_events_are_evaluated_with_the_number_of_the_rule(events: str, tmp_path: Path) -> None:
    rules = ["--filter", "log type NEW and family IPV4", "--filter", "drop family IPV4"]
    path = tmp_path / "events"
    path.write_text(events)
    piped, from_file = ctl("test", *rules, text=events), ctl("test", *rules, str(path))
    objects = [json.loads(line) for line in events.splitlines()]

    expected = [
        "log\t-" if ":" in entry["src"] else "log\t1" if entry["type"] == "NEW" else "drop\t2"
        for entry in objects
    ]
    assert (piped.returncode, piped.stdout.splitlines()) == (0, expected)
    assert from_file.stdout == piped.stdout
    assert set(expected) == {"log\t-", "log\t1", "drop\t2"}


def test_a_file_that_was_rotated_and_compressed_is_read(events: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "events.json.1.gz", tmp_path / "events.json.2.gz"
    whole.write_bytes(gzip.compress(events.encode()))
    cut.write_bytes(whole.read_bytes()[:-9])
    read, damaged = (ctl("test", "--filter", "drop port 53", str(path)) for path in (whole, cut))

    assert (read.returncode, read.stdout) == (0, ctl("test", "--filter", "drop port 53", text=events).stdout)
    assert damaged.returncode == 65
    assert damaged.stderr.startswith(f"conntrackctl: {cut}:")
    assert "the file cannot be read any further: " in damaged.stderr


def test_verdicts_as_objects(events: str) -> None:
    done = ctl("test", "--json", "--filter", "drop any", "-", text=events)

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(events.splitlines())
    assert all("drop" in entry.values() for entry in found)


def test_a_line_that_is_not_an_event_is_reported_after_the_others_were_evaluated(events: str) -> None:
    lines = events.splitlines()
    done = ctl("test", "--filter", "drop any", text="\n".join([lines[0], "nonsense", lines[1], '{"a": 1}']))

    assert (done.returncode, done.stdout) == (65, "drop\t1\ndrop\t1\n")
    assert [line for line in done.stderr.splitlines() if not line.startswith("hint")] == [
        "conntrackctl: standard input:2: not JSON",
        "conntrackctl: standard input:4: the required field 'src' is missing",
    ]


def test_many_lines_that_are_no_events_are_not_all_reported() -> None:
    lines = [f'{{"src": "{number}"}}\n' for number in range(1000)]
    done = ctl("test", "--filter", "drop any", text="".join(lines))

    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.count("is not a valid src") == 100
    assert done.stderr.splitlines()[-1] == "conntrackctl: 900 more lines are not events"


def test_what_is_wrong_with_every_line_is_said_once_with_what_to_do() -> None:
    ecs = '{"source.ip": "192.0.2.1", "ecs.version": "9.4.0"}\n'
    done = ctl("test", "--filter", "drop any", text=ecs * 1000 + "x\n" * 2)

    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.splitlines() == [
        "conntrackctl: standard input:1: its fields have the names of ecs; the same in 999 more lines",
        f"hint: {OTHER_NAMES}",
        "conntrackctl: standard input:1001: not JSON; the same in 1 more line",
    ]


def test_rules_with_mistakes_evaluate_nothing(events: str) -> None:
    done = ctl("test", "--filter", "drop anx", text=events)

    assert (done.returncode, done.stdout) == (78, "")
    assert "did you mean any?" in done.stderr


def test_no_filter_reaches_what_was_lost_and_an_empty_line_is_nothing() -> None:
    done = ctl("test", "--filter", "drop any", text='{"type":"LOST"}\n\n{"type":"LOST"}')

    assert (done.returncode, done.stdout) == (0, "log\t-\nlog\t-\n")


def test_identifiers_are_those_of_both_tuples_and_the_same_without_a_translation() -> None:
    ping = '{"type":"NEW","src":"10.0.0.1","dst":"10.0.0.2","prot":"ICMP","icmp_id":17'
    lines = [ping + "}", ping + ',"nat":"SNAT","nat_src":"192.0.2.1","nat_icmp_id":4711}']
    rules = ["--filter", "drop reply icmp id 17", "--filter", "drop icmp id 17 and reply icmp id 4711"]

    assert ctl("test", *rules, text="\n".join(lines)).stdout == "drop\t1\ndrop\t2\n"


def test_a_record_of_a_flow_is_decided_as_its_destroy() -> None:
    line = '{"type":"FLOW","src":"10.0.0.1","dst":"10.0.0.2","prot":"UDP","bytes":7,"duration":61.5}'
    rules = ["drop type NEW,UPDATE", "drop type DESTROY and duration > 1m and bytes = 7"]

    assert ctl("test", *(f"--filter={rule}" for rule in rules), text=line).stdout == "drop\t2\n"


def test_a_limit_stands_beside_the_decision_of_its_rule() -> None:
    lines = "\n".join(
        f'{{"type":"{kind}","prot":"UDP","src":"10.0.0.1","dst":"10.0.0.2"}}'
        for kind in ("NEW", "NEW", "UPDATE")
    )
    rules = ["--filter", "log type NEW limit 1/day per src", "--filter", "drop any"]
    limited = {"decision": "log", "rule": 1, "limit": "1/day per source"}

    assert ctl("test", *rules, text=lines).stdout == "log\t1\tlimit 1/day per source\n" * 2 + "drop\t2\n"
    objects = [json.loads(line) for line in ctl("test", "--json", *rules, text=lines).stdout.splitlines()]
    assert objects == [
        {"line": 1, **limited},
        {"line": 2, **limited},
        {"line": 3, "decision": "drop", "rule": 2},
    ]


def test_a_sample_is_not_guessed_of_a_record_without_the_flows_number() -> None:
    line = '{"type":"NEW","prot":"UDP","src":"10.0.0.1","dst":"10.0.0.2"}\n'

    done = ctl("test", "--filter", "log any sample 1/2", text=line)

    assert (done.returncode, done.stdout) == (65, "")
    assert "the required field 'flow' is missing, which a sample asks for" in done.stderr


def test_a_missing_standard_input_is_reported() -> None:
    words = ["sh", "-c", 'exec "$@" <&-', "-", *ctl_command("filter", "test")]
    done = subprocess.run(words, text=True, capture_output=True, timeout=30, check=False, env=environment())

    assert (done.returncode, done.stderr.splitlines()[0]) == (64, "conntrackctl: standard input is closed")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"type":["NEW"],"src":"::1","dst":"::1"}',
        '{"type":"NEW","src":"1.2.3.4","dst":"::1"}',
        '{"type":"NEW","src":"1.2.3.4","dst":"1.2.3.4","prot":"TCP","sport":true}',
        '{"type":"NEW","src":"1.2.3.4","dst":"1.2.3.4","prot":"TCP","duration":NaN}',
        '{"type":"NEW","src":"1.2.3.4","dst":"1.2.3.4","prot":"TCP","bytes":1e99}',
        '{"type":"NEW","src":"1.2.3.4","dst":"1.2.3.4","prot":"ICMP","icmp_id":65536}',
        '{"type":"NEW","src":"1.2.3.4","dst":"1.2.3.4","prot":"\\ud800"}',
        "[" * 10_000,
        "x" * 70_000,
    ],
)
def test_a_line_of_any_kind_is_an_event_or_reported(text: str) -> None:
    done = ctl("test", "--filter", "drop any", text=text)

    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.startswith("conntrackctl: standard input:1: ")
    assert len(done.stderr) < 300


def test_the_rules_of_a_sink_are_checked_and_explained_from_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    path.write_text("filter: [log any]\nsink.loki.filter:\n  - drop country DE\n  - log protocol TPC\n")
    bad = ctl("check", "--sink", "loki", "--config", str(path))
    good = ctl("check", "--config", str(path))
    path.write_text("sink.loki.filter: [DENY country DE]\n")
    explained = ctl("explain", "--sink", "loki", "--core", "--json", "--config", str(path))

    assert (bad.returncode, good.returncode) == (78, 0)
    assert f"{path}:4: unknown protocol 'TPC'" in bad.stderr
    assert json.loads(explained.stdout) == {
        "rules": ["drop country DE"],
        "evaluated": ["in the core, for sink loki alone, on events that the global filter keeps"],
        "table_in_the_core": [
            "begin at 0",
            "   0  source country is DE: rule 1 (drop), else 1",
            "   1  destination country is DE: rule 1 (drop), else no rule (log)",
        ],
    }


def test_the_rules_of_a_named_sink_are_those_of_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    path.write_text("sink.loki.filter: [log prot]\nsinks: {audit: {kind: loki, filter: [drop port 5]}}\n")
    words = ["check", "--json", "--config", str(path), "--sink"]

    assert json.loads(ctl(*words, "audit").stdout)["rules"] == ["drop port 5"]
    assert json.loads(ctl(*words, "audit", "log any").stdout)["rules"] == ["log any"]
    unknown = ctl("check", "--config", str(path), "--sink", "audti")
    assert (unknown.returncode, unknown.stderr.splitlines()) == (
        64,
        ["conntrackctl: unknown sink 'audti'", "hint: did you mean audit?"],
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain", "--sink", "lokki", "log any"], "unknown sink 'lokki'\nhint: did you mean loki?"),
        (
            ["explain", "--sink", "loki", "--bpf", "log any"],
            "of the global filter, and of no sink's\nhint: con",
        ),
        (["check", "--sink", "loki", "--filter-file", "x"], "stand in no file of rules"),
    ],
)
def test_what_cannot_be_asked_of_the_rules_of_a_sink_is_reported(words: list[str], said: str) -> None:
    done = ctl(*words)

    assert (done.returncode, done.stdout) == (64, "")
    assert said in done.stderr
