"""What the engines say of any event: the same as each other, and as what stands in the contract."""

import itertools
import json
import re
import time
from array import array
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.engine import Engine
from conntrackd.flow import ABSENT, EventType, Flow, Location, Nat, Protocol, Reason, TcpState
from conntrackd.render import journal, loki, syslog
from conntrackd.render import json as json_lines
from conntrackd.render.schema import ECS, OTEL
from conntrackd.render.template import Template
from tests.engine.feed import ENGINES
from tests.engine.rendering import render
from tests.rendering import list_texts
from tests.sinks.flows import BASE, make_flows

ZONE = "UTC"  # which plain Python finds too
NANO = 10**9
NATIVE, PLAIN = ENGINES
SYSLOG = {form: syslog.make_template(form, "daemon", "gw1", 42) for form in ("rfc5424", "rfc3164", "cee")}
TEMPLATES = {
    "json": json_lines.TEMPLATE,
    "journal": journal.TEMPLATE,
    "loki": loki.TEMPLATE,
    **SYSLOG,
    "ecs": json_lines.make_template(None, ECS, "gw1"),
    "otel in loki": loki.make_template(None, OTEL),
}
PLACES = [None, Location("Köln", "DE", 50.9, 6.9, 3320, 'DTAG "AS"'), Location(country="FR"), Location(asn=1)]

POWERS = [10**power + less for power in range(3, 20) for less in (-1, 0)]

numbers = st.integers(0, 2**32 - 1)
times = st.integers(NANO, 2**63)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Whatever a kernel can say, in any combination."""
    size = draw(st.sampled_from([4, 16]))
    source, target, other = (draw(st.binary(min_size=size, max_size=size)) for _ in range(3))
    protocol = draw(st.sampled_from([6, 17, 1, 58, 132, 89]))
    has_ports = protocol in (6, 17, 132)
    sport, dport, nat_port = (draw(st.integers(0, 65535)) if has_ports else ABSENT for _ in range(3))
    amounts = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 1100), st.sampled_from(POWERS))
    counters = [draw(amounts) for _ in range(4)] if draw(st.booleans()) else [ABSENT] * 4
    start = draw(st.sampled_from([0, 1])) and draw(times)
    is_icmp = protocol in (1, 58)
    icmp_id = draw(st.integers(0, 65535)) if is_icmp else ABSENT
    event_type = draw(st.sampled_from([1, 2, 4, 8, 20, 32]))
    return Flow(
        type=event_type,
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
        icmp_type=draw(st.integers(0, 255)) if is_icmp else ABSENT,
        icmp_code=draw(st.integers(0, 255)) if is_icmp else ABSENT,
        reason=draw(st.sampled_from([0, 1])) if event_type == EventType.DESTROY else ABSENT,
        orig_packets=counters[0],
        orig_bytes=counters[1],
        reply_packets=counters[2],
        reply_bytes=counters[3],
        start=start,
        stop=draw(times) if start and draw(st.booleans()) else 0,
        src_location=draw(st.sampled_from(PLACES)),
        dst_location=draw(st.sampled_from(PLACES)),
        icmp_id=icmp_id,
        reply_icmp_id=draw(st.sampled_from([icmp_id, 7])) if is_icmp else ABSENT,
        reply_zone=draw(st.sampled_from([0, 5])),
        helper=draw(st.sampled_from([b"", b"ftp", b'x"]'])),
        secctx=draw(st.sampled_from([b"", b"system_u:object_r:unlabeled_t:s0"])),
        labels=draw(st.sampled_from([b"", b"\x05" + bytes(14) + b"\x80"])),
        **draw(st.sampled_from([{}, make_master(size)])),
    )


def make_master(size: int) -> dict[str, Any]:
    """Of the flow by which this one was expected."""
    return {
        "master_protocol": 6,
        "master_src": bytes(size - 1) + b"\1",
        "master_dst": bytes(size - 1) + b"\2",
        "master_sport": 1024,
        "master_dport": 21,
    }


def show_time(nanoseconds: int) -> str:
    second = datetime.fromtimestamp(nanoseconds // NANO, UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{nanoseconds % NANO:09}+00:00"


def show_end(address: bytes, port: int) -> str:
    if port == ABSENT:
        return str(ip_address(address))
    return f"[{ip_address(address)}]:{port}" if len(address) == 16 else f"{ip_address(address)}:{port}"


def describe(flow: Flow) -> dict[str, Any]:
    """The fields behind `msg`, from the contract in the README and not from the code."""
    names = {protocol.value: protocol.name for protocol in Protocol}
    states = {state.value: state.name for state in TcpState}
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
    source = (flow.src, flow.sport, flow.icmp_id)
    is_source = (flow.reply_dst, flow.reply_dport, flow.reply_icmp_id) != source
    is_target = (flow.reply_src, flow.reply_sport) != (flow.dst, flow.dport)
    if is_source or is_target:
        nat = (Nat.SNAT if is_source else Nat.NONE) | (Nat.DNAT if is_target else Nat.NONE)
        fields |= {"nat": nat.name, "nat_src": str(ip_address(flow.reply_dst))}
        fields |= {"nat_sport": flow.reply_dport} if flow.sport != ABSENT else {}
        fields["nat_dst"] = str(ip_address(flow.reply_src))
        fields |= {"nat_dport": flow.reply_sport} if flow.sport != ABSENT else {}
    fields |= {"mark": flow.mark} if flow.mark else {}
    fields |= {"zone": flow.zone} if flow.zone else {}
    fields |= {"reply_zone": flow.reply_zone} if flow.reply_zone else {}
    if flow.orig_packets != ABSENT:
        fields |= {"packets": flow.orig_packets, "bytes": flow.orig_bytes}
        fields |= {"reply_packets": flow.reply_packets, "reply_bytes": flow.reply_bytes}
    fields |= describe_times(flow)
    if flow.icmp_type != ABSENT:
        fields |= {"icmp_type": flow.icmp_type, "icmp_code": flow.icmp_code}
    if flow.icmp_id != ABSENT:
        fields["icmp_id"] = flow.icmp_id
        fields |= {"nat_icmp_id": flow.reply_icmp_id} if is_source or is_target else {}
    fields |= {"helper": flow.helper.decode().replace('"', "?").replace("]", "?")} if flow.helper else {}
    fields |= {"secctx": flow.secctx.decode()} if flow.secctx else {}
    fields |= {"ct_labels": "0,2,127"} if flow.labels else {}
    if flow.master_src:
        fields |= {"master_prot": "TCP", "master_src": str(ip_address(flow.master_src))}
        fields |= {"master_dst": str(ip_address(flow.master_dst)), "master_sport": 1024, "master_dport": 21}
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


def describe_times(flow: Flow) -> dict[str, Any]:
    fields: dict[str, Any] = {"start": show_time(flow.start)} if flow.start else {}
    if flow.stop:
        fields["stop"] = show_time(flow.stop)
        fields["duration"] = Decimal(flow.stop - flow.start).scaleb(-9)
    if flow.type == EventType.FLOW and not flow.start:
        fields["incomplete"] = True
    return fields


def sum_up(flow: Flow) -> str:
    """What a message says of a whole flow, or of one so far."""
    if flow.type not in (EventType.FLOW, EventType.ALIVE):
        return ""
    text = ""
    if flow.orig_packets != ABSENT:
        text = f", sent {show_size(flow.orig_bytes)} in {show_packets(flow.orig_packets)}"
        text += f", received {show_size(flow.reply_bytes)} in {show_packets(flow.reply_packets)}"
    if flow.stop:
        seconds = Decimal(flow.stop - flow.start).scaleb(-9).quantize(Decimal("0.001"), ROUND_DOWN)
        text += f", lasted {seconds} s"
    return text


def show_packets(count: int) -> str:
    return "1 packet" if count == 1 else f"{count} packets"


def show_size(octets: int) -> str:
    for unit, power in (("EB", 18), ("PB", 15), ("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if octets >= 10**power:
            return f"{Decimal(octets).scaleb(-power).quantize(Decimal('0.1'), ROUND_DOWN)} {unit}"
    return f"{octets} B"


def show(value: object) -> str:
    if value is True:
        return "true"
    return f"{value:.9f}" if isinstance(value, Decimal) and value.as_tuple().exponent == -9 else str(value)


@given(st.lists(flows(), min_size=1, max_size=5))
def test_every_sink_says_of_any_event_what_the_contract_says(batch: list[Flow]) -> None:
    unlocate(batch)
    lines = render(PLAIN, json_lines.TEMPLATE, batch).text.splitlines()
    records = [json.loads(line, parse_float=Decimal) for line in lines]
    entries = [entry.decode() for entry in list_texts(render(PLAIN, journal.TEMPLATE, batch))]
    messages = [text.decode() for text in list_texts(render(PLAIN, SYSLOG["rfc5424"], batch))]

    for flow, record, entry, message in zip(batch, records, entries, messages, strict=True):
        fields = describe(flow)
        text = (
            f"{fields['type']} {fields['prot']} connection from {show_end(flow.src, flow.sport)}"
            f" to {show_end(flow.dst, flow.dport)}{sum_up(flow)}"
        )
        shown = {name: show(value) for name, value in fields.items()}
        head = {"time": show_time(flow.time), "level": "INFO", "msg": text}
        assert list(record.items()) == list({**head, **fields}.items())
        pairs = [line.partition("=")[::2] for line in entry.splitlines()]
        assert pairs[5:] == [(f"EVENT_{name.upper()}", value) for name, value in shown.items()]
        assert dict(pairs)["MESSAGE"] == text
        found = re.findall(r' (\w+)="((?:[^"\\\]]|\\.)*)"', message.partition("[event@32473")[2])
        assert [(name, re.sub(r"\\(.)", r"\1", value)) for name, value in found] == list(shown.items())
        assert message.endswith(f"] {text}")


@given(st.lists(flows(), min_size=1, max_size=5))
def test_loki_gets_the_same_fields_as_labels_and_metadata(batch: list[Flow]) -> None:
    unlocate(batch)
    rendered = render(PLAIN, loki.TEMPLATE, batch)
    entries = iter(json.loads(f"[{rendered.text.decode()[:-1]}]"))
    seen = []
    for stream in rendered.streams:
        for _ in range(stream.events):
            _, _, metadata = next(entries)
            assert metadata.pop("level") == "INFO"
            seen.append({**loki.name_stream(stream.type, stream.protocol), **metadata})

    expected = [{name: show(value) for name, value in describe(flow).items()} for flow in batch]
    assert sorted(repr(sorted(fields.items())) for fields in seen) == sorted(
        repr(sorted(fields.items())) for fields in expected
    )


def unlocate(batch: list[Flow]) -> None:
    """Each address is in one place: that of the first flow that has it."""
    known: dict[bytes, Location | None] = {}
    for flow in batch:
        known.setdefault(flow.src, flow.src_location)
        known.setdefault(flow.dst, flow.dst_location)
    for flow in batch:
        flow.src_location, flow.dst_location = known[flow.src], known[flow.dst]


@pytest.mark.parametrize("name", TEMPLATES)
@given(batch=st.lists(flows(), min_size=1, max_size=20))
def test_both_engines_write_the_same_bytes(name: str, batch: list[Flow]) -> None:
    assert render(NATIVE, TEMPLATES[name], batch) == render(PLAIN, TEMPLATES[name], batch)


@pytest.mark.parametrize("name", TEMPLATES)
def test_more_kinds_of_events_than_the_core_has_plans_for_are_written_as_they_are(name: str) -> None:
    """Twice, and in turn: a plan is made, serves, gives way to that of another kind, and is made anew."""
    kinds: list[dict[str, Any]] = [
        {"sport": port, "dport": port, "state": state, "mark": mark, "zone": mark, "reply_zone": zone, **ends}
        for port, state, mark, zone in itertools.product((ABSENT, 80), (ABSENT, 1), (0, 1), (0, 1))
        for ends in ({}, {"family": 10, "src": bytes(15) + b"\7", "dst": bytes(15) + b"\5"})
    ]
    kinds += [{"protocol": protocol, "type": number} for protocol in range(0, 96, 2) for number in (1, 4)]
    flows = [replace(flow, **kind) for flow, kind in zip(make_flows(2 * len(kinds)), 2 * kinds, strict=True)]
    for flow in flows:
        flow.reply_src, flow.reply_dst = flow.dst, flow.src
    assert len(kinds) > 64

    assert render(NATIVE, TEMPLATES[name], flows) == render(PLAIN, TEMPLATES[name], flows)


@given(st.binary(min_size=16, max_size=16), st.sets(st.integers(0, 15)), st.sampled_from([0, 0xFF]))
def test_both_engines_write_the_same_addresses(address: bytes, places: set[int], filler: int) -> None:
    """As inet_ntop(3): zeros, and the forms that hold an address of IPv4, above all."""
    changed = bytes(filler if place in places else byte for place, byte in enumerate(address))
    flow = make_flows(1)[0]
    flow.family, flow.src, flow.dst = 10, bytes(10) + changed[10:], changed
    flow.reply_src, flow.reply_dst = bytes(10) + b"\xff\xff" + changed[12:], bytes(8) + changed[:8]

    assert render(NATIVE, json_lines.TEMPLATE, [flow]) == render(PLAIN, json_lines.TEMPLATE, [flow])


@pytest.mark.parametrize("zone", ["UTC", "CET-1CEST", "America/St_Johns", "XYZ-14", "ABC+11:30"])
def test_both_engines_write_the_same_times(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    flows = make_flows(200)
    for number, flow in enumerate(flows):
        flow.time = BASE + number * 86_400 * NANO * 3 + number * 123_456_789
        flow.start, flow.stop = flow.time - number * 10 ** number.bit_length(), 1 + number
    flows[0].time, flows[1].time = 0, 2**64 - 1
    for template in TEMPLATES.values():
        assert render(NATIVE, template, flows) == render(PLAIN, template, flows)
    monkeypatch.undo()
    time.tzset()


def test_moments_are_the_times_and_none_is_there_twice(engine: Engine) -> None:
    flows = make_flows(4)
    for flow, when in zip(flows, (BASE, BASE, BASE, BASE + 5), strict=True):
        flow.time = when

    assert array("Q", render(engine, loki.TEMPLATE, flows).moments).tolist() == [
        BASE,
        BASE + 1,
        BASE + 2,
        BASE + 5,
    ]


def test_a_name_of_the_host_is_nothing_but_text(engine: Engine) -> None:
    name = "$time{flow}'\"\\"
    template: Template = syslog.make_template("rfc5424", "daemon", name, 42)

    assert render(engine, template, make_flows(1)).text.split(b" ")[2] == name.encode()
