"""conntrackctl events: what was logged, in every form, in a pipe, a terminal and a pager."""

import csv
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli import ctl
from conntrackd.cli.lines import (
    TABLE,
    WIDE,
    Style,
    _name_service,
    fit,
    render_csv_record,
    render_full,
    render_heading,
    render_table_record,
)
from conntrackd.config.read import read_config
from conntrackd.errors import ConfigError, ManyErrors, UnavailableError, UsageError
from conntrackd.flow import EventType, Location, Lost
from conntrackd.history.source import list_readable_sinks, read_loki
from conntrackd.render.json import make_template
from conntrackd.render.parse import NAMES
from conntrackd.render.schema import ECS
from tests.cli.terminal import Terminal
from tests.history.written import load, write_file, write_lines
from tests.live.daemon import ctl_command, environment
from tests.rendering import list_texts, render
from tests.sinks.flows import BASE, make_flow, make_flows

ZONE = "UTC"
NANO = 10**9


@pytest.fixture
def lines() -> list[bytes]:
    flows = make_flows(3)
    flows[1].type = EventType.DESTROY
    flows[1].orig_packets = flows[1].reply_packets = 1
    flows[1].orig_bytes, flows[1].reply_bytes = 100, 20
    flows[2].dport = flows[2].reply_sport = 53
    return write_lines([*flows, Lost(5, BASE, BASE + 3_000_000, "kernel")])


@pytest.fixture
def path(tmp_path: Path, lines: list[bytes]) -> Path:
    return write_file(tmp_path / "events.json", lines)


def run(path: Path, *words: str) -> int:
    return ctl.run(["events", "--from", f"file:{path}", *words])


def show(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> str:
    assert run(path, *words) == 0
    written = capsys.readouterr()
    assert written.err == ""
    return written.out


# ---- forms --------------------------------------------------------------------------------------------


def test_the_short_form_is_that_of_tail_with_the_date(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, path, "--numeric").splitlines() == [
        "2025-11-22 10:34:43.000 NEW      TCP   10.0.0.0:40000 -> 192.0.2.1:443          SYN_SENT",
        "2025-11-22 10:34:43.001 DESTROY  TCP   10.0.0.1:40000 -> 192.0.2.1:443          SYN_SENT, 120 bytes",
        "2025-11-22 10:34:43.002 NEW      TCP   10.0.0.2:40000 -> 192.0.2.1:53           SYN_SENT",
        "2025-11-22 10:34:43.003 LOST 5 events in the kernel's buffer",
    ]


def test_times_are_local_or_utc(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()

    assert show(capsys, path, "-n", "1").startswith("2025-11-22 16:04:43.003 LOST")
    assert show(capsys, path, "--last", "1", "--utc").startswith("2025-11-22 10:34:43.003 LOST")
    assert show(capsys, path, "--since", "2025-11-22 16:04:43.002", "-o", "jsonl").count("\n") == 2
    assert show(capsys, path, "--since", "2025-11-22 10:34:43.002 UTC", "-o", "jsonl").count("\n") == 2


def test_json_is_one_list_and_jsonl_a_line_for_each(
    path: Path, lines: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    records = [load(line) for line in lines]

    assert json.loads(show(capsys, path, "-o", "json")) == records
    assert [json.loads(line) for line in show(capsys, path, "-o", "jsonl").splitlines()] == records
    assert show(capsys, path, "-o", "json", "--since", "now") == "[]\n"
    assert show(capsys, path, "-o", "jsonl", "--since", "now") == ""
    assert json.loads(show(capsys, path, "-o", "json", "--fields", "dport,src", "--last", "2")) == [
        {"dport": 53, "src": "10.0.0.2"},
        {},
    ]


def test_utc_keeps_every_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = b'{"time":"2025-11-22T11:34:43.123456789+01:00","type":"LOST","msg":"x"}\n'
    path = write_file(tmp_path / "x.json", [text])

    assert (
        json.loads(show(capsys, path, "-o", "jsonl", "--utc"))["time"]
        == "2025-11-22T10:34:43.123456789+00:00"
    )
    assert json.loads(show(capsys, path, "-o", "jsonl"))["time"] == "2025-11-22T11:34:43.123456789+01:00"


def test_csv_has_every_field_that_there_can_be_or_those_that_are_named(
    path: Path, lines: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(io.StringIO(show(capsys, path, "-o", "csv"))))
    assert tuple(rows[0]) == NAMES
    assert [{name: value for name, value in row.items() if value} for row in rows] == [
        {name: str(value) for name, value in load(line).items()} for line in lines
    ]
    assert show(capsys, path, "-o", "csv", "--fields", "src,bytes", "--no-hostname") == (
        "src,bytes\n10.0.0.0,\n10.0.0.1,100\n10.0.0.2,\n,\n"
    )


def test_a_table_has_columns_and_wide_more_of_them(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = show(capsys, path, "-o", "table", "--numeric").splitlines()
    assert [line.removeprefix("2025-11-22 10:34:") for line in table] == [
        f"TIME{' ' * 21}TYPE      PROT     SRC                SPORT  DST              DPORT    STATE"
        "          BYTES  REPLY_BYTES",
        "43.000  NEW       TCP      10.0.0.0           40000  192.0.2.1        443      SYN_SENT",
        "43.001  DESTROY   TCP      10.0.0.1           40000  192.0.2.1        443      SYN_SENT"
        "         100           20",
        "43.002  NEW       TCP      10.0.0.2           40000  192.0.2.1        53       SYN_SENT",
        "43.003  LOST 5 events in the kernel's buffer",
    ]
    wide = show(capsys, path, "-o", "wide").splitlines()
    assert wide[0].split() == [name.upper() for name in WIDE]
    assert set(TABLE) < set(WIDE) < set(NAMES)
    assert show(capsys, path, "--fields", "src,type").splitlines()[1] == "10.0.0.0         NEW"


def test_columns_stay_below_their_headings_whatever_a_duration_has_behind_its_point() -> None:
    style, record = Style(fields=("src", "duration", "country")), {"src": "192.0.2.1", "country": "Peru"}

    assert render_heading(style) == "SRC              DURATION  COUNTRY"
    for seconds, shown in ((2.000210205, "2.000"), (7, "7.000"), (86400.5, "86400.500")):
        row = render_table_record({**record, "duration": seconds}, style)
        assert row == f"192.0.2.1        {shown:>8}  Peru"
    assert "duration: 2.000210205" in render_full({**record, "duration": 2.000210205})


def test_a_table_is_no_wider_than_the_terminal() -> None:
    record = load(write_lines([make_flow(1)])[0])
    style = Style(fields=TABLE, width=40, has_dates=True)

    assert render_table_record(record, style) == "2025-11-22 10:34:43.001  NEW       TCP …"
    assert render_table_record({**record, "type": "LOST", "msg": "x" * 99}, style) == (
        "2025-11-22 10:34:43.001  xxxxxxxxxxxxxx…"
    )


def test_a_narrow_terminal_gets_both_ends_and_the_bytes(tmp_path: Path) -> None:
    record = load(write_lines([make_flow(1)])[0]) | {
        "type": "DESTROY",
        "src": "192.168.178.100",
        "bytes": 100,
    }
    ping = {"time": record["time"], "type": "SNAPSHOT", "prot": "ICMPV6", "bytes": 1234567890}
    ping |= {"src": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "dst": "2001:db8::1"}
    lost = {"time": record["time"], "type": "LOST", "msg": "5 events in the kernel's buffer"}
    path = write_file(tmp_path / "x.json", [json.dumps(it).encode() + b"\n" for it in (record, ping, lost)])

    words = ctl_command("events", "--from", f"file:{path}", "-o", "table", "--numeric", "--color", "never")
    environ = {"PYTHONPATH": environment()["PYTHONPATH"], "PAGER": "", "TZ": "UTC"}
    with Terminal(words, (80, 10), **environ) as terminal:
        assert terminal.finish() == 0
        assert [line for line in terminal.list_lines() if line] == [
            "TIME      TYPE      PROT   SOURCE                 DESTINATION              BYTES",
            "10:34:43  DESTROY   TCP    192.168.178.100:40000  192.0.2.1:443              100",
            "10:34:43  SNAPSHOT  ICMPV6  2001:db8:…ffff:ffff  2001:db8::1          1234567890",
            "10:34:43  5 events in the kernel's buffer",
        ]


def test_a_table_has_as_much_as_there_is_room_for() -> None:
    record = load(write_lines([make_flow(1)])[0])
    style = Style(fields=TABLE, has_dates=True)

    assert fit(style) is style
    assert fit(wide := replace(style, width=129)) is wide
    for width, shown in (
        (128, "2025-11-22 10:34:43.001  NEW "),
        (94, "10:34:43  NEW "),
        (40, "10:34:43  NEW "),
    ):
        narrow = fit(replace(style, width=width))
        rows = [render_heading(narrow), render_table_record(record, narrow)]
        assert rows[1].startswith(shown)
        assert max(map(len, rows)) <= width


def test_ports_of_destinations_have_the_names_of_services(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {(443, "tcp"): "https", (40000, "tcp"): "never"}

    def get_service(port: int, protocol: str) -> str:
        if (port, protocol) not in known:
            raise OSError("service/proto not found")
        return known[port, protocol]

    monkeypatch.setattr("socket.getservbyport", get_service)
    _name_service.cache_clear()
    shown = show(capsys, path).splitlines()
    _name_service.cache_clear()

    assert "10.0.0.0:40000 -> 192.0.2.1:https " in shown[0]
    assert "192.0.2.1:53 " in shown[2]


@pytest.mark.parametrize("form", ["short", "full", "json", "jsonl", "csv", "table", "wide"])
def test_no_form_hands_a_terminal_what_it_obeys(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\u202e\x9b31m\n"
    flow = make_flow(1)
    flow.src_location = Location("X")
    record = load(write_lines([flow])[0]) | {"src_city": evil, "as_org": evil, evil: evil, "msg": evil}
    lost = {"time": record["time"], "type": "LOST", "msg": evil, "where": evil, "reason": evil}
    path = write_file(
        tmp_path / "x.json",
        [json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in (record, lost)],
    )

    text = show(capsys, path, "-o", form)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert text.count("\n") == {"full": len(record) + 1 + len(lost) + 1, "csv": 3, "table": 3, "wide": 3}.get(
        form, 2
    )


def test_a_style_shows_what_it_is_asked_to() -> None:
    record = load(write_lines([make_flow(1)])[0])

    assert render_full(record, Style(fields=("src", "bytes", "dport"))) == "src: 10.0.0.1\ndport: 443\n"
    assert render_csv_record({"msg": 'a "b", c'}, Style(fields=("msg", "lost"))) == '"a ""b"", c",'


# ---- what is asked for --------------------------------------------------------------------------------


def test_rules_times_and_the_last_ones(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ("log destination port 53", "drop any")

    assert len(show(capsys, path, *rules).splitlines()) == 2
    assert len(json.loads(show(capsys, path, "--json", "--filter", rules[0], rules[1]))) == 2
    assert show(capsys, path, *rules, "--last", "2") == show(capsys, path, *rules)
    assert show(capsys, path, "--until", "2025-11-22 10:34:43.001").count("\n") == 2
    assert show(capsys, path, "--since", "-1h") == ""


def test_a_limit_is_refused_where_nobody_reports_what_it_holds_back(path: Path) -> None:
    with pytest.raises(ManyErrors, match="what was logged has passed its limits: nothing is limited here"):
        run(path, "log destination port 53 limit 1/day", "drop any")


def test_rules_that_leave_nothing_out_are_noticed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(path, "log destination port 53")

    written = capsys.readouterr()
    assert written.out.count("\n") == 4
    assert (
        written.err.splitlines()[0]
        == "conntrackctl: warning: no rule drops anything, so all events are shown"
    )


def test_a_sample_leaves_something_out(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(path, "log any sample 1/1000000")

    written = capsys.readouterr()
    assert (written.out.count("\n") < 4, written.err) == (True, "")


def test_damage_is_reported_at_the_end(
    path: Path, lines: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_file(path, [lines[0], b"broken\n", lines[1]])

    assert run(path) == 0
    written = capsys.readouterr()
    assert (written.out.count("\n"), written.err) == (
        2,
        f"conntrackctl: warning: {path}:2: one record is damaged and left out: not JSON\n",
    )


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--since", "soon"], UsageError, "--since: 'soon' is not a valid time"),
        (["--since", "-1h", "--until", "-2h"], UsageError, "--since is later than --until"),
        (["--fields", "time,sorce"], UsageError, "--fields: there is no field 'sorce'"),
        (
            ["--fields", "dst_port"],
            UsageError,
            "--fields: there is no field 'dst_port'\nhint: did you mean dport?",
        ),
        (["--fields", "src", "-o", "short"], UsageError, "-o short has no choice of fields"),
        (["-o", "json", "--follow"], UsageError, "-o json is one list, and has no end with --follow"),
        (["--until", "now", "--follow"], UsageError, "--follow has no end, and --until is one"),
        (["--from", "file:x.gz", "-f"], UsageError, "x.gz: nothing comes into a compressed file any more"),
        (["-o", "xml"], UsageError, "unknown form 'xml'"),
        (["--from", "tape"], UsageError, "--from: 'tape' is not a valid source"),
        (
            ["--from", "x.gz"],
            UsageError,
            "--from: 'x.gz' is not a valid source\nhint: did you mean file:x.gz?",
        ),
        (
            ["--from", "/a/b"],
            UsageError,
            "--from: '/a/b' is not a valid source\nhint: did you mean file:/a/b?",
        ),
        (["--from", "file:"], UsageError, "--from: 'file:' is not a valid source"),
        (["--from", "file:/nowhere/x"], UnavailableError, "/nowhere/x: no such file or directory"),
        (["log protocol TPC"], ManyErrors, "rule 1: unknown protocol 'TPC', did you mean TCP?"),
    ],
)
def test_mistakes_are_reported_before_anything_is_shown(
    words: list[str],
    error: type[Exception],
    message: str,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(path.parent)
    Path("x.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(error) as caught:
        ctl.run(["events", *words] if "--from" in words else ["events", "--from", f"file:{path}", *words])

    assert str(caught.value).startswith(message)
    assert capsys.readouterr().out == ""


# ---- the sink that is on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"sink.stream.enable": ["true"], "sink.stream.writer": ["file:///a%20b/c"]}, ["file:/a b/c"]),
        ({"sink.stream.enable": ["true"], "sink.journal.enable": ["true"]}, ["journal"]),
        ({"sink.stream.writer": ["file:///a"], "sink.journal.enable": ["true"]}, ["journal"]),
        (
            {
                "sink.stream.enable": ["true"],
                "sink.stream.writer": ["file:///a"],
                "sink.journal.enable": ["true"],
            },
            ["file:/a", "journal"],
        ),
        ({"sink.loki.enable": ["true"]}, ["loki"]),
        ({"sink.syslog.enable": ["true"]}, []),
        (
            {
                "sinks.a.kind": ["loki"],
                "sinks.b.kind": ["stream"],
                "sinks.b.writer": ["file:///b"],
                "sinks.c.kind": ["journal"],
                "sinks.d.kind": ["loki"],
                "sinks.d.enable": ["no"],
            },
            ["file:/b", "journal", "loki:a"],
        ),
        (
            {
                "sink.stream.enable": ["true"],
                "sink.stream.writer": ["file:///a"],
                "sink.stream.schema": ["ecs"],
                "sink.journal.enable": ["true"],
                "sink.loki.enable": ["true"],
                "sink.loki.schema": ["otel"],
                "sinks.a.kind": ["loki"],
                "sinks.b.kind": ["stream"],
                "sinks.b.writer": ["file:///b"],
                "sinks.b.schema": ["otel"],
            },
            ["journal", "loki:a"],
        ),
    ],
)
def test_the_source_is_that_of_a_sink_which_is_on(settings: dict[str, list[str]], found: list[str]) -> None:
    assert list_readable_sinks(read_config(settings, {}, None, Path("/nonexistent"))) == found


def test_of_named_sinks_of_kind_loki_one_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    path.write_text(
        "sink.loki.address: http://z\nsinks: {a: {kind: loki, address: 'http://a'}, b: {kind: stream}}"
    )

    assert [read_loki(name, path).address for name in ("", "a")] == ["http://z", "http://a"]
    for name in ("b", "c", "loki"):
        with pytest.raises(UsageError, match=f"there is no sink '{name}' of kind loki\nhint: .*: a$"):
            read_loki(name, path)


def test_a_compressed_file_that_the_configuration_names_is_not_followed_either(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    path.write_text(f"sink.stream: {{enable: true, writer: 'file://{tmp_path}/x.gz'}}")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b""))

    with pytest.raises(UsageError, match=r"x\.gz: nothing comes into a compressed file any more"):
        ctl.run(["events", "--follow", "--config", str(path)])


def test_the_configuration_says_where_events_are(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONNTRACKD_SINK_STREAM_ENABLE", "true")
    monkeypatch.setenv("CONNTRACKD_SINK_STREAM_WRITER", f"file://{path}")
    assert ctl.run(["events"]) == 0
    assert capsys.readouterr().out.count("\n") == 4

    monkeypatch.setenv("CONNTRACKD_SINK_STREAM_WRITER", "stdout")
    with pytest.raises(UnavailableError, match="no sink is on that can be read back"):
        ctl.run(["events"])
    monkeypatch.setenv("CONNTRACKD_SINK_STREAM_WRITER", "nonsense")
    with pytest.raises(ConfigError, match="the configuration does not say where events are: ") as caught:
        ctl.run(["events"])
    assert "--from" in caught.value.hint


def test_what_has_other_names_is_refused_by_whoever_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONNTRACKD_SINK_LOKI_SCHEMA", "otel")
    with pytest.raises(UnavailableError, match=r"sink\.loki\.schema is otel: conntrackctl reads") as caught:
        ctl.run(["events", "--from", "loki"])
    assert "--config" in caught.value.hint

    texts = list_texts(render(make_template(None, ECS, "gw1"), make_flows(3)))
    path = write_file(tmp_path / "ecs.json", texts)
    assert ctl.run(["events", "--from", f"file:{path}"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "3 records are damaged and left out" in shown.err
    assert "its fields have the names of ecs" in shown.err
    assert "sink.stream.schema: native" in shown.err


def test_another_configuration_says_where_events_are_and_has_its_sets(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("10.0.0.0/8\n")
    other = tmp_path / "other.yaml"
    other.write_text(f"sink.stream: {{enable: true, writer: 'file://{path}'}}\nsets: {{hosts: hosts}}\n")

    assert ctl.run(["events", "--config", str(other), "drop address @hosts"]) == 0
    assert capsys.readouterr().out.count("\n") == 1  # the LOST record


# ---- pipes and terminals ------------------------------------------------------------------------------


def run_on_terminal(*words: str, **extra: str) -> tuple[int, str]:
    """The exit status, and what a terminal was sent."""
    master, slave = pty.openpty()
    environ = {**environment(), "TERM": "xterm", "TZ": "UTC", **extra}
    environ.pop("NO_COLOR", None)
    done = subprocess.run(
        ctl_command("events", *words), stdin=slave, stdout=slave, env=environ, timeout=30, check=False
    )
    os.close(slave)
    text = b""
    while True:
        try:
            text += os.read(master, 1 << 16)
        except OSError:  # EIO: all of it was read
            break
    os.close(master)
    return done.returncode, text.decode()


def test_a_terminal_gets_colours_and_its_pager(path: Path, tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text('#!/bin/sh\nif [ "$LESSSECURE" = 1 ]; then sed "s/^/paged: /"; fi\n')
    pager.chmod(0o755)
    source = ("--from", f"file:{path}")

    status, text = run_on_terminal(*source, PAGER=f"{pager} -x")
    assert (status, text.count("paged: ")) == (0, 4)
    assert "\x1b[32mNEW" in text
    assert "\x1b[1;31m2025-11-22 10:34:43.003 LOST" in text
    status, text = run_on_terminal(*source, "--no-pager", "--color", "never", PAGER=str(pager))
    assert (status, text.count("2025-11-22"), "paged" in text, "\x1b" in text) == (0, 4, False, False)
    for wrong in ("/nonexistent/pager", "less '", ""):
        assert run_on_terminal(*source, PAGER=wrong)[1].count("2025-11-22") == 4


def test_on_a_terminal_nothing_is_not_silence(path: Path) -> None:
    words = ctl_command("events", "--from", f"file:{path}", "--until", "2020-01-01")
    with Terminal(words, (100, 10), PYTHONPATH=environment()["PYTHONPATH"], PAGER="") as terminal:
        assert terminal.finish() == 0
        assert [line for line in terminal.list_lines() if line] == [
            "conntrackctl: nothing was found",
            "hint: rules, --since and --until choose; --from names another source",
        ]


def test_a_pager_that_is_left_early_ends_it_quietly(path: Path) -> None:
    write_file(path, write_lines(make_flows(5000)))

    status, text = run_on_terminal("--from", f"file:{path}", PAGER="head -n 1")
    assert (status, text.count("\n")) == (0, 1)


def test_a_pipe_has_no_colours_unless_it_is_to(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in show(capsys, path)
    assert show(capsys, path, "--color", "always").count("\x1b[32mNEW") == 2


def test_a_pipe_that_is_closed_ends_it_quietly(path: Path) -> None:
    write_file(path, write_lines(make_flows(5000)))
    with subprocess.Popen(
        ctl_command("events", "--from", f"file:{path}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(30)) == (b"", 0)


def test_what_comes_is_followed_until_an_interrupt(path: Path, lines: list[bytes]) -> None:
    with subprocess.Popen(
        ctl_command(
            "events",
            "--from",
            f"file:{path}",
            "--follow",
            "--last",
            "1",
            "-o",
            "jsonl",
            "drop destination port 53",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        found: list[dict[str, Any]] = [json.loads(process.stdout.readline())]
        with path.open("ab") as file:
            file.write(lines[2] + lines[0])
        found.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)

    assert [record["type"] for record in found] == ["LOST", "NEW"]
    assert (found[1]["dport"], rest, errors, process.returncode) == (443, b"", b"", 0)
