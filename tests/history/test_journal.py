"""Events out of a real journal, by a real journalctl, and what it is asked for."""

import io
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from conntrackd.errors import NotPermittedError, UnavailableError
from conntrackd.filter.ast import Rule
from conntrackd.filter.evaluate import evaluate
from conntrackd.flow import EventType, Flow, Location, Lost
from conntrackd.history import journal as reading
from conntrackd.history.journal import MAX_LINE, JournalSource, list_matches, read_entry, read_export
from conntrackd.history.selection import find_conditions, fulfils_any
from conntrackd.history.times import Span
from conntrackd.render.journal import EVENT_ID, LOST_ID, SUPPRESSED_ID
from conntrackd.sinks.journal import JournalSink
from tests.filter import strategies
from tests.history.written import list_flows, load, select, write_lines
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.test_journal import Journald, journald, send

EVENT = f"MESSAGE_ID={EVENT_ID}"
REPORTS = (f"MESSAGE_ID={LOST_ID}", f"MESSAGE_ID={SUPPRESSED_ID}")


@pytest.fixture(scope="module")
def running() -> Iterator[Journald]:
    with journald() as made:
        yield made


@pytest.fixture(scope="module")
def records() -> list[Flow | Lost]:
    flows = make_flows(40)
    for flow in flows[::4]:
        flow.dport = flow.reply_sport = 53
    flows[1].type = EventType.DESTROY
    flows[1].orig_packets, flows[1].orig_bytes, flows[1].reply_packets, flows[1].reply_bytes = 1, 2, 3, 4
    flows[1].dst_location = Location("Nuremberg", "Germany", 49.5, 11.0, 64496, "Example", "DE")
    return [*flows[:20], Lost(5, BASE, BASE + 19_000_000, "kernel"), *flows[20:]]


@pytest.fixture(scope="module")
def directory(running: Journald, records: list[Flow | Lost]) -> str:
    send(JournalSink(running.socket), records)
    running.wait_for(len(records))
    return f"/proc/{running._namespace}/root/run/log/journal"


def read(directory: str, *rules: str, last: int | None = None, span: Span = Span()) -> list[dict[str, Any]]:  # noqa: B008
    source = JournalSource(directory, select(*rules, span=span))
    try:
        return list(source.read()) if last is None else source.read_last(last)
    finally:
        source.close()


@pytest.mark.privileged
def test_what_was_sent_is_read_with_every_field(directory: str, records: list[Flow | Lost]) -> None:
    found = read(directory)

    assert {record.pop("host") for record in found} == {os.uname().nodename}
    assert found == [load(line) for line in write_lines(records)]
    assert [list(record) for record in found] == [list(load(line)) for line in write_lines(records)]


@pytest.mark.privileged
def test_rules_times_and_the_last_ones(directory: str) -> None:
    assert list_flows(read(directory, "log destination port 53", "drop any")) == [
        *range(0, 20, 4),
        -1,
        *range(20, 40, 4),
    ]
    assert list_flows(read(directory, "log type DESTROY", "drop any")) == [1, -1]
    assert list_flows(read(directory, "drop destination port 443", last=3)) == [28, 32, 36]
    # Events are of another time than the journal's, which is when they came: sooner, as always.
    assert list_flows(read(directory, span=Span(BASE + 38_000_000, None))) == [38, 39]


@pytest.mark.privileged
def test_what_comes_is_followed_behind_what_was_read() -> None:
    with journald() as running:
        send(JournalSink(running.socket), make_flows(5))
        running.wait_for(5)
        source = JournalSource(f"/proc/{running._namespace}/root/run/log/journal", select())
        first = source.read_last(2)
        send(JournalSink(running.socket), make_flows(3, 5))
        coming = source.follow()
        found = list(itertools.islice(coming, 3))
        source.close()
        running.end(signal.SIGTERM)

    assert (list_flows(first), list_flows(found)) == ([3, 4], [5, 6, 7])


@pytest.mark.privileged
def test_a_journal_of_two_boots_is_read_from_its_beginning() -> None:
    with journald() as running:
        send(JournalSink(running.socket), make_flows(5))
        running.wait_for(5)
        running.boot("01234567-89ab-4def-8123-456789abcdef")
        send(JournalSink(running.socket), make_flows(3, 5))
        entries = running.wait_for(8)
        directory = f"/proc/{running._namespace}/root/run/log/journal"
        found = list_flows(read(directory)), list_flows(read(directory, last=4))

    boots = itertools.groupby(entries, key=lambda entry: entry["_BOOT_ID"])
    assert [len(list(group)) for _, group in boots] == [5, 3]
    assert found == ([*range(8)], [4, 5, 6, 7])


@pytest.mark.privileged
def test_a_directory_without_a_journal_has_no_events(tmp_path: Path) -> None:
    assert read(str(tmp_path)) == []
    with pytest.raises(UnavailableError, match=r"journalctl: .*No such file or directory"):
        read(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "No journal files were opened due to insufficient permissions.",
            NotPermittedError,
            "you may not read",
        ),
        ("Failed to do a thing", UnavailableError, "journalctl: Failed to do a thing"),
        ("", UnavailableError, "journalctl: exit status 1"),
    ],
)
def test_what_journalctl_reports_is_reported(
    text: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_journalctl(tmp_path, monkeypatch, f"echo '{text}' >&2; exit 1")

    with pytest.raises(error, match=message):
        read("")


def set_journalctl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_is_hidden_or_damaged_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "__CURSOR=x\\nEVENT_TIME=2025-11-22T10:34:43.000000000+00:00\\nEVENT_TYPE=OLD\\n"
    hint = "Hint: You are currently not seeing messages from other users and the system."
    script = f"echo '{hint}' >&2; echo x=nonsense; echo; echo '{entry}'"
    set_journalctl(tmp_path, monkeypatch, script)
    selection = select()

    assert list(JournalSource("", selection).read()) == []
    assert [str(warning).splitlines()[0] for warning in selection.damage.list_warnings()] == [
        "you see only a part of the journal",
        "journal: 2 records are damaged and left out, the first one here: this is not what journalctl prints",
    ]


def test_without_journalctl_there_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(UnavailableError, match="journalctl cannot be started"):
        read("")


# ---- matches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        ([], [EVENT, "+", *REPORTS]),
        (["log destination port 443"], [EVENT, "+", *REPORTS]),
        (["log destination port 443", "drop any"], [EVENT, "EVENT_DPORT=443", "+", *REPORTS]),
        (["drop protocol UDP", "log state CLOSE", "drop any"], [EVENT, "EVENT_STATE=CLOSE", "+", *REPORTS]),
        (["log any"], [EVENT, "+", *REPORTS]),
        (["drop any", "log port 1"], [*REPORTS]),
        (["log destination port 1-2", "drop any"], [EVENT, "EVENT_DPORT=1", "EVENT_DPORT=2", "+", *REPORTS]),
        (["log destination port 1-999", "drop any"], [EVENT, "+", *REPORTS]),
        (["log port 443", "drop any"], [EVENT, "+", *REPORTS]),  # of either side
        (["log not destination port 443", "drop any"], [EVENT, "+", *REPORTS]),
        (
            ["log type NEW and source address 10.0.0.1", "log destination port 53", "drop any"],
            [EVENT, "EVENT_TYPE=NEW", "EVENT_SRC=10.0.0.1", "+", EVENT, "EVENT_DPORT=53", "+", *REPORTS],
        ),
        (
            ["log destination address ::/0 and source port 5", "drop any"],
            [EVENT, "EVENT_SPORT=5", "+", *REPORTS],
        ),
        (["log zone 0", "drop any"], [EVENT, "+", *REPORTS]),  # which is not written
    ],
)  # fmt: skip
def test_the_simple_parts_of_rules_become_matches(rules: list[str], matches: list[str]) -> None:
    assert list_matches(select(*rules).rules) == matches


def test_there_are_only_so_many_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_MATCHES", 3)
    rules = [f"log destination port {number}" for number in range(5)]

    assert list_matches(select(*rules, "drop any").rules) == [EVENT, "+", *REPORTS]


@given(strategies.rules, strategies.flows())
def test_the_matches_never_leave_out_what_the_rules_keep(rules: list[Rule], flow: Flow) -> None:
    conditions = find_conditions(rules)
    record = load(write_lines([flow])[0])

    assert conditions is None or fulfils_any(record, conditions) or not evaluate(rules, flow).keep


# ---- what journalctl prints ---------------------------------------------------------------------------


def test_an_entry_is_the_record_of_the_stream() -> None:
    flow = make_flow(1)
    entry = {
        f"EVENT_{name.upper()}".encode(): str(value).encode()
        for name, value in load(write_lines([flow])[0]).items()
        if name not in {"level", "msg"}
    }
    odd = {b"EVENT_ASN": b"x", b"EVENT_NEWS": b"5"}
    entry |= {b"MESSAGE": b"m", b"PRIORITY": b"4", b"_HOSTNAME": b"gw", **odd}

    assert read_entry(entry) == load(write_lines([flow])[0]) | {
        "level": "WARN",
        "host": "gw",
        "msg": "m",
        "asn": "x",
    }


@pytest.mark.parametrize(
    "odd",
    [
        b"EVENT_CITY\n" + (4).to_bytes(8, "little") + b"\n\n=\xff\n",
        b"EVENT_CITY\n" + (MAX_LINE * 3).to_bytes(8, "little") + b"\n" * MAX_LINE * 3 + b"\n",
        b"EVENT_CITY=" + b"=" * MAX_LINE * 3 + b"\n",
        b"EVENT_CITY=" + b"x" * (MAX_LINE - 11) + b"\n",
    ],
    ids=["binary", "long binary", "long", "longer by its end"],
)
def test_what_no_sink_writes_is_passed_over(odd: bytes) -> None:
    output = b"__CURSOR=1\n" + odd + b"EVENT_TYPE=NEW\n\n__CURSOR=2\nEVENT_TYPE=UP"

    assert list(read_export(io.BytesIO(output))) == [{b"__CURSOR": b"1", b"EVENT_TYPE": b"NEW"}]
