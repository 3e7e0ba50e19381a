"""The same events through three sinks, read back from each: the same records, whatever the time zone."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conntrackd.flow import EventType, Flow, Lost
from conntrackd.history.files import FileSource
from conntrackd.history.journal import JournalSource
from conntrackd.history.loki import PATH, LokiSource
from conntrackd.history.source import Source
from conntrackd.history.times import Span
from conntrackd.sinks.journal import JournalSink
from conntrackd.sinks.loki import Loki
from conntrackd.sinks.stream import StreamSink
from tests.history.written import load, select, write_lines
from tests.rendering import render_all
from tests.sinks.flows import make_flows
from tests.sinks.loki_client import make_settings
from tests.sinks.loki_query import query_range
from tests.sinks.loki_server import Store, run_server
from tests.sinks.test_journal import journald

MILLI = 1_000_000
COUNT = 2000
RULES = ("log destination port 53 and type NEW", "drop any")


@pytest.fixture
def zones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterator[str]]:
    """A time zone more for each that is asked for."""

    def change() -> Iterator[str]:
        for zone in itertools.cycle(("UTC", "XYZ-5:45", "ABC+9:30")):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            yield zone

    yield change()
    monkeypatch.undo()
    time.tzset()


def make_records(begin: int) -> list[Flow | Lost]:
    """An event each millisecond. Of now: what is in the journal is not much older than its entry."""
    flows = make_flows(COUNT)
    for number, flow in enumerate(flows):
        flow.time = begin + number * MILLI
        flow.type = (EventType.NEW, EventType.UPDATE, EventType.DESTROY)[number % 3]
        flow.dport = flow.reply_sport = (53, 443, 22, 8080)[number % 4]
    return [*flows[:700], Lost(5, begin, begin + 699_500_000, "kernel"), *flows[700:]]


def read(source: Source) -> list[dict[str, Any]]:
    """Without the host, which a file does not have, and with times as the stream would write them here."""
    records = [{name: value for name, value in record.items() if name != "host"} for record in source.read()]
    source.close()
    return records


@pytest.mark.privileged
def test_three_sinks_have_the_same_events(tmp_path: Path, zones: Iterator[str]) -> None:
    begin = time.time_ns() // MILLI * MILLI - 10 * 10**9
    records = make_records(begin)
    path, store = tmp_path / "events.json", Store(answers={PATH: query_range})
    next(zones)
    with journald() as journal, run_server(store) as server:
        settings = make_settings(server.port, host="gw")
        for sink in (StreamSink(path), JournalSink(journal.socket), Loki(settings)):
            sink.open()
            for part in render_all(sink.template, records):
                sink.write([part])
            sink.close()
        journal.wait_for(len(records))
        directory = f"/proc/{journal._namespace}/root/run/log/journal"
        for first, last in ((0, COUNT), (600, 1500)):
            chosen = select(*RULES, span=Span(begin + first * MILLI, begin + last * MILLI))
            wanted = [
                record
                for record in map(load, write_lines(records))
                if record["type"] == "LOST" or (record["dport"], record["type"]) == (53, "NEW")
                if first <= record.get("flow", 699) <= last
            ]
            assert len(wanted) == 1 + len(range(first, min(last + 1, COUNT), 12))
            assert read(FileSource(path, chosen)) == wanted
            assert read(JournalSource(directory, chosen)) == wanted
            assert read(LokiSource(settings, chosen)) == wanted

        zone = next(zones)  # the sinks wrote in another one than who reads has now
        late = select(*RULES, span=Span(begin + 600 * MILLI, begin + 700 * MILLI))
        sources = (
            FileSource(path, late),
            JournalSource(directory, late),
            LokiSource(settings, late),
        )
        for source in sources:
            assert [record.get("flow", -1) for record in read(source)] == [
                *range(600, 700, 12),
                -1,
            ], zone
