"""sinks/compose.py: what the generated loop says of any event, compared with what plain Python says of it."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import ip_address
from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.flow import ABSENT, EventType, Flow, Location, Lost, Nat, Piece, Protocol, Reason, TcpState
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode_journal import FORM, JournalEncoder
from conntrackd.sinks.encode_json import LINE, JsonEncoder
from conntrackd.sinks.encode_loki import ENTRY, LokiEncoder, count_events
from conntrackd.sinks.encode_syslog import SyslogEncoder
from tests.sinks.flows import BASE, make_flows
from tests.sinks.test_encode_loki import read

NANO = 10**9
SYSLOG = {form: SyslogEncoder(form, "daemon", "gw1", 42).form for form in ("rfc5424", "rfc3164", "cee")}
FORMS = (LINE, FORM, ENTRY, *SYSLOG.values())
PLACES = [None, Location("Köln", "DE", 50.9, 6.9, 3320, 'DTAG "AS"'), Location(country="FR"), Location(asn=1)]

numbers = st.integers(0, 2**32 - 1)
times = st.integers(NANO, 4 * 10**18)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Whatever a kernel can say, in any combination."""
    size = draw(st.sampled_from([4, 16]))
    source, target, other = (draw(st.binary(min_size=size, max_size=size)) for _ in range(3))
    protocol = draw(st.sampled_from([6, 17, 1, 58, 132, 89]))
    has_ports = protocol in (6, 17, 132)
    sport, dport, nat_port = (draw(st.integers(0, 65535)) if has_ports else ABSENT for _ in range(3))
    counters = [draw(st.integers(0, 2**64 - 1)) for _ in range(4)] if draw(st.booleans()) else [ABSENT] * 4
    start = draw(st.sampled_from([0, 1])) and draw(times)
    return Flow(
        type=draw(st.sampled_from([1, 2, 4, 8])),
        time=draw(times),
        family=2 if size == 4 else 10,
        protocol=protocol,
        id=draw(numbers),
        src=source,
        dst=target,
        sport=sport,
        dport=dport,
        reply_src=draw(st.sampled_from([target, other])),
        reply_dst=draw(st.sampled_from([source, other])),
        reply_sport=draw(st.sampled_from([dport, nat_port])),
        reply_dport=draw(st.sampled_from([sport, nat_port])),
        state=draw(st.sampled_from([ABSENT, 1, 3, 200])) if protocol == 6 else ABSENT,
        mark=draw(st.sampled_from([0, 7])),
        zone=draw(st.sampled_from([0, 3])),
        icmp_type=draw(st.integers(0, 255)) if protocol in (1, 58) else ABSENT,
        icmp_code=draw(st.integers(0, 255)) if protocol in (1, 58) else ABSENT,
        reason=draw(st.sampled_from([ABSENT, 0, 1])),
        orig_packets=counters[0],
        orig_bytes=counters[1],
        reply_packets=counters[2],
        reply_bytes=counters[3],
        start=start,
        stop=draw(times) if start and draw(st.booleans()) else 0,
        src_location=draw(st.sampled_from(PLACES)),
        dst_location=draw(st.sampled_from(PLACES)),
    )


@pytest.fixture(autouse=True, scope="module")
def utc() -> Iterator[None]:
    """A local time that plain Python finds too, with hypothesis around the test's function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def show_time(nanoseconds: int) -> str:
    second = datetime.fromtimestamp(nanoseconds // NANO, UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{nanoseconds % NANO:09}+00:00"


def show_end(address: bytes, port: int) -> str:
    if port == ABSENT:
        return str(ip_address(address))
    return f"[{ip_address(address)}]:{port}" if len(address) == 16 else f"{ip_address(address)}:{port}"


def describe(flow: Flow) -> dict[str, Any]:
    """The fields behind `msg`, from the contract in the README and not from the code."""
    names = {each.value: each.name for each in Protocol}
    states = {each.value: each.name for each in TcpState}
    fields: dict[str, Any] = {
        "type": EventType(flow.type).name,
        "flow": flow.id,
        "prot": names.get(flow.protocol, str(flow.protocol)),
        "src": str(ip_address(flow.src)),
        "dst": str(ip_address(flow.dst)),
    }
    if flow.sport != ABSENT:
        fields |= {"sport": flow.sport, "dport": flow.dport}
    if flow.state != ABSENT:
        fields["state"] = states.get(flow.state, str(flow.state))
    is_source = (flow.reply_dst, flow.reply_dport) != (flow.src, flow.sport)
    is_target = (flow.reply_src, flow.reply_sport) != (flow.dst, flow.dport)
    if is_source or is_target:
        nat = (Nat.SNAT if is_source else Nat.NONE) | (Nat.DNAT if is_target else Nat.NONE)
        fields |= {"nat": nat.name, "nat_src": str(ip_address(flow.reply_dst))}
        fields |= {"nat_sport": flow.reply_dport} if flow.sport != ABSENT else {}
        fields["nat_dst"] = str(ip_address(flow.reply_src))
        fields |= {"nat_dport": flow.reply_sport} if flow.sport != ABSENT else {}
    fields |= {"mark": flow.mark} if flow.mark else {}
    fields |= {"zone": flow.zone} if flow.zone else {}
    if flow.orig_packets != ABSENT:
        fields |= {"packets": flow.orig_packets, "bytes": flow.orig_bytes}
        fields |= {"reply_packets": flow.reply_packets, "reply_bytes": flow.reply_bytes}
    fields |= {"start": show_time(flow.start)} if flow.start else {}
    if flow.stop:
        fields["stop"] = show_time(flow.stop)
        fields["duration"] = Decimal(flow.stop - flow.start).scaleb(-9)
    if flow.icmp_type != ABSENT:
        fields |= {"icmp_type": flow.icmp_type, "icmp_code": flow.icmp_code}
    if flow.reason != ABSENT:
        fields["reason"] = Reason(flow.reason).name.lower()
    for prefix, place in (("", flow.dst_location), ("src_", flow.src_location)):
        known = {"city": place.city, "country": place.country} if place else {}
        fields |= {prefix + name: value for name, value in known.items() if value}
        if place and place.lat is not None and place.lon is not None:
            fields |= {f"{prefix}lat": Decimal(str(place.lat)), f"{prefix}lon": Decimal(str(place.lon))}
    for prefix, place in (("", flow.dst_location), ("src_", flow.src_location)):
        fields |= {f"{prefix}asn": place.asn} if place and place.asn else {}
        fields |= {f"{prefix}as_org": place.as_org} if place and place.as_org else {}
    return fields


def show(value: object) -> str:
    return f"{value:.9f}" if isinstance(value, Decimal) and value.as_tuple().exponent == -9 else str(value)


@given(st.lists(flows(), min_size=1, max_size=5))
def test_every_sink_says_of_any_event_what_plain_python_says(batch: list[Flow]) -> None:
    records = [json.loads(line, parse_float=Decimal) for line in JsonEncoder().encode([*batch]).splitlines()]
    entries = [entry.decode() for entry in JournalEncoder().encode([*batch])]
    messages = [each.decode() for each in SyslogEncoder("rfc5424", "daemon", "gw1", 42).encode([*batch])]

    for flow, record, entry, message in zip(batch, records, entries, messages, strict=True):
        fields = describe(flow)
        text = (
            f"{fields['type']} {fields['prot']} connection from {show_end(flow.src, flow.sport)}"
            f" to {show_end(flow.dst, flow.dport)}"
        )
        shown = {name: show(value) for name, value in fields.items()}
        head = {"time": show_time(flow.time), "level": "INFO", "msg": text}
        assert list(record.items()) == list({**head, **fields}.items())
        lines = [line.partition("=")[::2] for line in entry.splitlines()]
        assert lines[5:] == [(f"EVENT_{name.upper()}", value) for name, value in shown.items()]
        assert dict(lines)["MESSAGE"] == text
        found = re.findall(r' (\w+)="((?:[^"\\\]]|\\.)*)"', message.partition("[event@32473")[2])
        assert [(name, re.sub(r"\\(.)", r"\1", value)) for name, value in found] == list(shown.items())
        assert message.endswith(f"] {text}")


@given(st.lists(flows(), min_size=1, max_size=5))
def test_loki_gets_the_same_fields_as_labels_and_metadata(batch: list[Flow]) -> None:
    seen = []
    for stream in read(LokiEncoder({}).encode([*batch])):
        for moment, _, metadata in stream["values"]:
            fields = {**stream["stream"], **metadata}
            seen.append((int(moment), fields.pop("level"), fields))

    expected = [{name: show(value) for name, value in describe(flow).items()} for flow in batch]
    assert sorted(map(repr, (dict(sorted(fields.items())) for _, _, fields in seen))) == sorted(
        map(repr, (dict(sorted(fields.items())) for fields in expected))
    )
    assert {level for _, level, _ in seen} == {"INFO"}


@pytest.mark.parametrize("forms", list(chain(*(combinations(FORMS, count) for count in (2, 3, len(FORMS))))))
def test_the_company_of_other_sinks_changes_no_text(forms: tuple[Any, ...]) -> None:
    batch = make_flows(10)
    batch[3].sport = batch[3].dport = batch[3].reply_sport = batch[3].reply_dport = ABSENT
    batch[5].reply_dst, batch[5].start, batch[5].mark = bytes(4), BASE, 9
    batch[7].dst_location = PLACES[1]

    together = Composer().compose(forms, batch)

    assert together == [Composer().compose((form,), batch)[0] for form in forms]


def test_pieces_flows_and_losses_come_out_in_their_order() -> None:
    lost = Lost(3, BASE, BASE + 1, "kernel")
    piece = Composer().compose((LINE,), make_flows(2))[0]
    assert (piece.time, piece.events) == (BASE, 2)

    mixed = JsonEncoder().encode([piece, lost, *make_flows(2, 2), Piece(0, 1, "{}\n")])

    assert mixed == JsonEncoder().encode([*make_flows(2), lost, *make_flows(2, 2)]) + b"{}\n"


def test_a_body_of_pieces_is_that_of_their_events() -> None:
    pieces = [Composer().compose((ENTRY,), make_flows(5, first))[0] for first in range(0, 500, 5)]

    body = LokiEncoder({"host": "gw1"}).encode([*pieces])

    assert count_events(body) == 500
    assert read(body) == read(LokiEncoder({"host": "gw1"}).encode([*make_flows(500)]))


def test_a_name_of_the_host_is_nothing_but_text() -> None:
    name = "$time{flow}'\"\\"
    (message,) = SyslogEncoder("rfc5424", "daemon", name, 42).encode([*make_flows(1)])

    assert message.split(b" ")[2] == name.encode()


def test_messages_that_wait_while_the_format_changes_have_their_numbers() -> None:
    waiting = Composer().compose((SYSLOG["rfc5424"],), make_flows(2))[0]
    found = SyslogEncoder("cee", "daemon", "gw1", 42).encode([waiting, *make_flows(1)])

    assert [re.findall(rb'sequenceId="(.*?)"', each) for each in found] == [[b"1"], [b"2"], []]
    assert not any(b"\0" in each for each in found)


def test_without_isal_a_body_holds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    body = LokiEncoder({}).encode([*make_flows(300)])
    monkeypatch.setattr("conntrackd.sinks.encode_loki.isal_zlib", None)

    plain = LokiEncoder({}).encode([*make_flows(300)])

    assert read(plain) == read(body)
