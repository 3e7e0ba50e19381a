"""What was sent, through three sinks and read back from each: through rotations, a boot and time zones."""

import gzip
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli.lines import TIMES, to_utc
from conntrackd.delivery.sink import Sink
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
COUNT = 20_000
BOOT = "01234567-89ab-4def-8123-456789abcdef"
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


def send(records: list[Flow | Lost], *sinks: Sink) -> None:
    for sink in sinks:
        sink.open()
        for part in render_all(sink.template, records):
            sink.write([part])
        sink.close()


def rotate(path: Path) -> None:
    """As logrotate does with `delaycompress`."""
    first, second = path.with_name(f"{path.name}.1"), path.with_name(f"{path.name}.2.gz")
    if first.exists():
        second.write_bytes(gzip.compress(first.read_bytes()))
    path.rename(first)


def normalize(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """In UTC, and without the host, which a file does not have."""
    return [
        {name: to_utc(value) if name in TIMES else value for name, value in record.items() if name != "host"}
        for record in records
    ]


def read(source: Source) -> list[dict[str, Any]]:
    try:
        return normalize(source.read())
    finally:
        source.close()


@pytest.mark.privileged
def test_three_sinks_have_the_same_events(tmp_path: Path, zones: Iterator[str]) -> None:
    begin = time.time_ns() // MILLI * MILLI - 30 * 10**9
    records = make_records(begin)
    lines = normalize(map(load, write_lines(records)))
    path, store = tmp_path / "events.json", Store(answers={PATH: query_range})
    with journald() as journal, run_server(store) as server:
        settings = make_settings(server.port, host="gw")
        for number, part in enumerate((records[:7000], records[7000:14_000], records[14_000:])):
            if number:
                rotate(path)
            if number == 1:
                journal.boot(BOOT)
            next(zones)
            send(part, StreamSink(path), JournalSink(journal.socket), Loki(settings))
        entries = journal.wait_for(len(records))
        assert len({entry["_BOOT_ID"] for entry in entries}) == 2
        directory = f"/proc/{journal._namespace}/root/run/log/journal"

        for first, last in ((0, COUNT), (6000, 15_000), (18_000, 18_100)):
            chosen = select(*RULES, span=Span(begin + first * MILLI, begin + last * MILLI))
            wanted = [
                record
                for record in lines
                if record["type"] == "LOST" or (record["dport"], record["type"]) == (53, "NEW")
                if first <= record.get("flow", 699) <= last
            ]
            assert [record["flow"] for record in wanted if "flow" in record] == [
                number for number in range(first, min(last + 1, COUNT)) if number % 12 == 0
            ]
            zone = next(zones)  # the sinks wrote in all of them
            assert read(FileSource(path, chosen)) == wanted, zone
            assert read(JournalSource(directory, chosen)) == wanted, zone
            assert read(LokiSource(settings, chosen)) == wanted, zone
        every = select(span=Span(begin, begin + COUNT * MILLI))
        for source in (FileSource(path, every), JournalSource(directory, every), LokiSource(settings, every)):
            assert read(source) == lines
