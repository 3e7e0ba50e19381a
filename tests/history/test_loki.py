"""Events out of Loki's query_range, as the tests' server answers it."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli import ctl
from conntrackd.errors import NotPermittedError, UnavailableError
from conntrackd.flow import EventType, Flow, Location, Lost, Protocol
from conntrackd.history import loki as reading
from conntrackd.history.loki import LokiSource, make_query
from conntrackd.history.times import Span
from conntrackd.sinks.loki import Loki, Settings
from conntrackd.sinks.tls import Tls
from tests.history.written import list_flows, load, select, write_lines
from tests.rendering import render_all
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.loki_client import make_settings
from tests.sinks.loki_query import query_range
from tests.sinks.loki_server import Entry, Server, Store, run_server
from tests.sinks.test_loki_tls import certificates, make_tls_settings, make_wrapper

__all__ = ["certificates"]  # a fixture

MILLI = 1_000_000
DAY = 86_400 * 10**9


@pytest.fixture
def server() -> Iterator[Server]:
    store = Store(answers={reading.PATH: query_range, f"/base{reading.PATH}": query_range})
    with run_server(store) as made:
        yield made


def push(settings: Settings, records: Sequence[Flow | Lost]) -> None:
    loki = Loki(settings)
    loki.open()
    for part in render_all(loki.template, records):
        loki.write([part])
    loki.close()


def read(
    settings: Settings, *rules: str, last: int | None = None, span: Span | None = None
) -> list[dict[str, Any]]:
    span = span or Span(BASE - DAY, BASE + DAY)
    source = LokiSource(settings, select(*rules, span=span))
    try:
        return list(source.read()) if last is None else source.read_last(last)
    finally:
        source.close()


def test_what_was_pushed_is_read_with_every_field(server: Server) -> None:
    settings = replace(make_settings(server.port), host='gw "1"', labels=(("env", "prod"),))
    flows = make_flows(4)
    flows[1].type = EventType.DESTROY
    flows[1].orig_packets, flows[1].orig_bytes, flows[1].reply_packets, flows[1].reply_bytes = 1, 2, 3, 4
    flows[2].protocol = Protocol.UDP
    flows[2].state = -1
    flows[3].dst_location = Location("Köln", "Germany", 49.5, 11.0, 64496, 'The "Example"', "DE")
    records: list[Flow | Lost] = [*flows[:2], Lost(5, BASE, BASE + 1_500_000, "kernel"), *flows[2:]]
    push(settings, records)
    push(replace(settings, host="another"), make_flows(3, 90))
    found = read(settings)

    assert {record.pop("host") for record in found} == {'gw "1"'}
    assert found == [load(line) for line in write_lines(records)]
    assert [list(record) for record in found] == [list(load(line)) for line in write_lines(records)]


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_pages_leave_out_nothing_and_repeat_nothing(
    page: int, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE", page)
    settings = make_settings(server.port)
    flows = make_flows(12)
    for number in (4, 5) if page > 1 else ():  # of one time, in different streams
        flows[number].time, flows[number].protocol = flows[3].time, (Protocol.UDP, Protocol.SCTP)[number - 4]
    push(settings, flows)

    assert sorted(list_flows(read(settings))) == list(range(12))
    assert list_flows(read(settings))[6:] == list(range(6, 12))
    assert list_flows(read(settings, last=5)) == [7, 8, 9, 10, 11]
    assert sorted(list_flows(read(settings, last=99))) == list(range(12))


def test_a_page_of_one_time_alone_is_passed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way to ask for the rest of it; what comes after is there."""
    settings = make_settings(server.port)
    flows = make_flows(6)
    for number, protocol in enumerate((Protocol.UDP, Protocol.TCP, Protocol.SCTP)):
        flows[number].time, flows[number].protocol = BASE, protocol
    push(settings, flows)
    monkeypatch.setattr(reading, "PAGE", 2)

    assert [flow for flow in list_flows(read(settings)) if flow > 2] == [3, 4, 5]
    assert [flow for flow in list_flows(read(settings, last=9)) if flow > 2] == [3, 4, 5]


@pytest.mark.parametrize("page", [3, 4, 1000])
def test_what_loki_has_twice_is_shown_once(
    page: int, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push whose reply was lost: the second time its events go to other shards, or are replays."""
    monkeypatch.setattr(reading, "PAGE", page)
    server.store.limits.shards = 2
    settings = make_settings(server.port)
    for _ in "12":
        push(settings, make_flows(10))
    copies = {tuple({**dict(labels), "replay": "1"}.items()): dict(entries)
              for labels, entries in server.store.streams.items()}  # fmt: skip
    server.store.streams.update(copies)

    assert len(server.store.query()) == 40
    assert list_flows(read(settings)) == list(range(10))
    assert list_flows(read(settings, last=4)) == [6, 7, 8, 9]


def test_a_page_of_long_events_fits_into_a_message_of_loki(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(make_settings(server.port), labels=tuple((f"label_{i}", "x" * 60) for i in range(10)))
    flows = make_flows(6000)
    for flow in flows:
        flow.dst_location = flow.src_location = Location(
            "c" * 40, "d" * 40, 49.5, 11.0, 64496, "e" * 60, "DE"
        )
    push(settings, flows)

    assert list_flows(read(settings)) == list(range(6000))
    monkeypatch.setattr(reading, "PAGE", 5000)
    with pytest.raises(UnavailableError, match="replied 504: 'request timed out"):
        read(settings)


def test_a_time_is_asked_for_in_ranges_that_loki_allows(server: Server) -> None:
    settings = make_settings(server.port)
    push(settings, [make_flow(1, time=BASE - 100 * DAY), make_flow(2), make_flow(3, time=BASE + 70 * DAY)])
    long = Span(BASE - 101 * DAY, BASE + 71 * DAY)

    assert list_flows(read(settings, span=long)) == [1, 2, 3]
    assert list_flows(read(settings, span=long, last=2)) == [2, 3]
    assert list_flows(read(settings, span=Span(None, BASE + 10 * DAY))) == [2]  # 30 days without a --since
    assert list_flows(read(settings, span=Span(BASE + 2 * MILLI, BASE + 2 * MILLI))) == [2]


def test_rules_become_logql_and_are_evaluated_all_the_same(server: Server) -> None:
    settings = make_settings(server.port)
    flows = make_flows(6)
    for flow in flows[::2]:
        flow.dport = flow.reply_sport = 53
    push(settings, [*flows, Lost(5, BASE, BASE + 9 * MILLI, "kernel")])

    assert list_flows(read(settings, "log destination port 53", "drop any")) == [0, 2, 4, -1]
    assert list_flows(read(settings, "drop destination port 53")) == [1, 3, 5, -1]
    rules = ("log source address 10.0.0.2 and type NEW, UPDATE", "log destination port 443", "drop any")
    assert list_flows(read(settings, *rules)) == [1, 2, 3, 5, -1]
    query = make_query({"host": "gw"}, select(*rules))
    assert query == (
        '{host="gw"} | type="LOST" or type="SUPPRESSED" or '
        '(src=~"10.0.0.2" and type=~"NEW|UPDATE") or (dport=~"443")'
    )
    assert make_query({"host": "gw"}, select("log port 53", "log type NEW", "drop any")) == '{host="gw"}'


def test_what_comes_is_followed_also_when_it_comes_late(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "POLL_SECONDS", 0.01)
    settings = make_settings(server.port)
    clock = itertools.count(BASE + 10 * MILLI, MILLI)
    monkeypatch.setattr("conntrackd.history.loki.time.time_ns", lambda: next(clock))
    push(settings, make_flows(3))
    source = LokiSource(settings, select())
    first = source.read_last(2)
    coming = source.follow()
    push(settings, [make_flow(8)])  # of a time before what was asked for last
    found = [next(coming)]
    push(settings, [make_flow(5), make_flow(9)])
    found += [next(coming), next(coming)]
    source.close()

    assert (list_flows(first), list_flows(found)) == ([1, 2], [8, 5, 9])


def test_who_asks_is_the_sink_with_its_tenant_path_and_secrets(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    address = f"http://127.0.0.1:{server.port}/base"
    settings = replace(make_settings(server.port), address=address, tenant="network", token_file=token)

    assert read(settings) == []
    headers = server.store.requests[-1].headers
    assert (headers["X-Scope-OrgID"], headers["Authorization"]) == ("network", "Bearer s3cret")


@pytest.mark.parametrize(
    ("status", "text", "error", "message"),
    [
        (401, "no org id", NotPermittedError, "replied 401: 'no org id'"),
        (403, "s3cret is wrong\x1b[31m", NotPermittedError, r"replied 403: '\*\*\* is wrong\\x1b\[31m'"),
        (500, "x" * 500, UnavailableError, "replied 500: 'xxxx"),
        (200, "<html>", UnavailableError, "this is not a reply of Loki's query_range"),
        (200, '{"data":{"resultType":"matrix","result":[]}}', UnavailableError, "this is not a reply"),
        (200, '{"data":{"resultType":"streams","result":[{"stream":5}]}}', UnavailableError, "not a reply"),
    ],
)  # fmt: skip
def test_what_loki_refuses_is_an_error_without_the_secret(
    status: int, text: str, error: type[Exception], message: str, server: Server, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    server.store.answers[reading.PATH] = lambda *_: (status, text)

    with pytest.raises(error, match=message):
        read(replace(make_settings(server.port), token_file=token))


def test_a_server_that_is_away_or_a_secret_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with run_server(Store()) as gone:
        settings = make_settings(gone.port)
    with pytest.raises(
        UnavailableError, match=f"Loki at http://127.0.0.1:{gone.port}: [Cc]onnection refused"
    ):
        read(settings)
    with pytest.raises(UnavailableError, match=f"Loki cannot be asked: cannot read {tmp_path}/no"):
        read(replace(settings, token_file=tmp_path / "no"))


def test_a_server_is_trusted_as_the_sink_trusts_it(certificates: dict[str, tuple[Path, Path]]) -> None:
    good, client = certificates["good"], certificates["client"]
    store = Store(answers={reading.PATH: query_range})
    with run_server(store, wrap=make_wrapper(good, client[0])) as server:
        settings = make_tls_settings(server.port, Tls(good[0], *client))
        push(settings, make_flows(2))
        assert list_flows(read(settings)) == [0, 1]
        with pytest.raises(UnavailableError, match="certificate not accepted"):
            read(make_tls_settings(server.port, Tls(certificates["other"][0], *client)))


def test_a_reply_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_REPLY", 100)
    server.store.answers[reading.PATH] = lambda *_: (200, "x" * 101)

    with pytest.raises(UnavailableError, match="sends more than was asked for"):
        read(make_settings(server.port))


def test_what_others_push_into_these_streams_is_damage(server: Server) -> None:
    settings = make_settings(server.port)
    push(settings, make_flows(2))
    (labels, entries), *_ = server.store.streams.items()
    entries[BASE, "by hand"] = Entry(BASE, "by hand", (("level", "INFO"),))
    selection = select(span=Span(BASE, BASE + DAY))
    source = LokiSource(settings, selection)

    assert list_flows(source.read()) == [0, 1]
    source.close()
    (warning,) = selection.damage.list_warnings()
    assert str(warning).splitlines()[0] == (
        "loki: one record is damaged and left out: the required field 'src' is missing"
    )
    assert dict(labels)["type"] == "NEW"


def test_the_configuration_leads_to_loki(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    push(replace(make_settings(server.port), host="gw"), make_flows(3))
    monkeypatch.setenv("CONNTRACKD_SINK_LOKI_ENABLE", "true")
    monkeypatch.setenv("CONNTRACKD_SINK_LOKI_ADDRESS", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("CONNTRACKD_HOST", "gw")
    for words in ([], ["--from", "loki"]):
        assert ctl.run(["events", "--since", "2025-11-01", "-o", "jsonl", *words]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (list_flows(records), {record["host"] for record in records}) == ([0, 1, 2], {"gw"})
