"""Records by the names of ECS and OpenTelemetry: the values of ours, as the published schemas have them."""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from ipaddress import ip_address
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.config import options
from conntrackd.errors import DataError
from conntrackd.flow import EventType, Flow, Location, Lost
from conntrackd.render import json as lines
from conntrackd.render import loki
from conntrackd.render.fields import list_names
from conntrackd.render.parse import parse_line, parse_record
from conntrackd.render.schema import ECS, OTEL, OTEL_STATES, OWN, SCHEMAS, Schema
from conntrackd.render.template import Template
from tests.engine.feed import ENGINES
from tests.engine.rendering import render
from tests.engine.test_render import describe, flows, show, show_time, unlocate
from tests.render.schema_facts import LOG_RECORD, get_registered_name, list_used, read_facts
from tests.rendering import list_texts
from tests.sinks.flows import make_flows

ZONE = "UTC"

NATIVE, PLAIN = ENGINES
BOTH: Final = pytest.mark.parametrize("schema", [ECS, OTEL], ids=lambda schema: schema.name)
LOST: Final = Lost(3, 10**18, 10**18 + 5, "loki", "full")
HELD: Final = Lost(7, 10**18, 10**18 + 5, "sinks.audit.filter", "log any limit 1/day", 3)
REPORTED: Final = pytest.mark.parametrize("lost", [LOST, HELD], ids=lambda lost: lost.type)
NAMES: Final = tuple(list_names())
TIME: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d"
Record = dict[str, Any]


def refuse_twins(pairs: list[tuple[str, Any]]) -> Record:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def load(text: bytes | str) -> Record:
    """A line, in which no name stands twice."""
    found: Record = json.loads(text, parse_float=Decimal, object_pairs_hook=refuse_twins)
    return found


def write(template: Template, batch: list[Flow], seed: int | None = None) -> list[bytes]:
    """What both engines say."""
    rendered = render(NATIVE, template, batch, seed)
    assert rendered == render(PLAIN, template, batch, seed)
    return list_texts(rendered)


# ---- the published names and types --------------------------------------------------------------------

KINDS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "keyword": lambda value: isinstance(value, str),
    "match_only_text": lambda value: isinstance(value, str),
    "string": lambda value: isinstance(value, str),
    "ip": lambda value: bool(ip_address(value)),
    "long": lambda value: type(value) is int,
    "int": lambda value: type(value) is int,
    "double": lambda value: type(value) in {int, Decimal},
    "date": lambda value: re.fullmatch(TIME, value) is not None,
    "geo_point": lambda value: value.keys() == {"lat", "lon"} and set(map(type, value.values())) == {Decimal},
}


@BOTH
def test_every_name_is_published_or_begins_with_our_own(schema: Schema) -> None:
    assert list_used(schema) == read_facts(schema).keys()
    assert {get_registered_name(f"source.{name}") for name in ("geo.location.lat", "port")} == {
        *("geo.location.lat", "source.port")
    }


def check_types(schema: Schema, record: Record) -> None:
    facts = read_facts(schema)
    for name, value in record.items():
        if name.startswith(OWN) or (schema is OTEL and name in LOG_RECORD):
            continue
        kind, values = facts[name]
        is_list = kind.endswith("[]")
        for item in value if is_list else [value]:
            assert KINDS[kind.removesuffix("[]")](item), (name, value)
            # Of a protocol OpenTelemetry knows few, and has all others in lower case as well.
            is_open = not values or name == "network.transport" or item in {"none", "200"}
            assert is_open or item in values, (name, item)


# ---- the values ---------------------------------------------------------------------------------------


def expect_common(native: Record, flow: Flow) -> Record:
    """What both schemas call the same."""
    transport = {"ICMPV6": "ipv6-icmp"}.get(native["prot"], native["prot"].lower())
    version = "ipv4" if len(flow.src) == 4 else "ipv6"
    found = {"network.transport": transport, "network.type": version}
    found |= {"host.name": "gw1", "service.name": "conntrackd"}
    ports = {"sport": "source.port", "dport": "destination.port"}
    return found | {theirs: native[ours] for ours, theirs in ports.items() if ours in native}


ECS_NAMES: Final = {
    "src": "source.ip", "dst": "destination.ip", "nat_src": "source.nat.ip",
    "nat_dst": "destination.nat.ip", "nat_sport": "source.nat.port", "nat_dport": "destination.nat.port",
    "packets": "source.packets", "bytes": "source.bytes", "start": "event.start", "stop": "event.end",
    "reply_packets": "destination.packets", "reply_bytes": "destination.bytes",
    "reason": "event.reason", "city": "destination.geo.city_name", "src_city": "source.geo.city_name",
    "country": "destination.geo.country_name", "src_country": "source.geo.country_name",
    "asn": "destination.as.number", "src_asn": "source.as.number",
    "as_org": "destination.as.organization.name", "src_as_org": "source.as.organization.name",
}  # fmt: skip
OTEL_NAMES: Final = {
    "src": "source.address", "dst": "destination.address", "city": "destination.geo.locality.name",
    "src_city": "source.geo.locality.name", "lat": "destination.geo.location.lat",
    "lon": "destination.geo.location.lon", "src_lat": "source.geo.location.lat",
    "src_lon": "source.geo.location.lon",
}  # fmt: skip
OTEL_OF_STATE: Final = {"SYN_SENT": "syn_sent", "ESTABLISHED": "established", "200": "200"}


def expect_ecs(native: Record, flow: Flow) -> Record:
    of_type = {"NEW": "start", "DESTROY": "end", "FLOW": "end"}.get(native["type"], "info")
    found = expect_common(native, flow)
    found |= {"ecs.version": "9.4.0", "event.kind": "event", "event.category": ["network"]}
    found |= {"event.action": native["type"].lower(), "event.type": ["connection", of_type]}
    found["network.iana_number"] = str(flow.protocol)
    if "duration" in native:
        found["event.duration"] = flow.stop - flow.start
    for prefix, end in (("", "destination"), ("src_", "source")):
        if f"{prefix}lat" in native:
            point = {name: native[f"{prefix}{name}"] for name in ("lat", "lon")}
            found[f"{end}.geo.location"] = point
    rest = native.keys() - {"type", "prot", "sport", "dport", "duration", "lat", "lon", "src_lat", "src_lon"}
    return found | {ECS_NAMES.get(name, f"conntrackd.{name}"): native[name] for name in rest}


def expect_otel(native: Record, flow: Flow) -> Record:
    found = expect_common(native, flow)
    found["event_name"] = f"conntrackd.{native['type'].lower()}"
    if "state" in native:
        found["network.connection.state"] = OTEL_OF_STATE[native["state"]]
    rest = native.keys() - {"type", "prot", "sport", "dport", "state"}
    return found | {OTEL_NAMES.get(name, f"conntrackd.{name}"): native[name] for name in rest}


@BOTH
@settings(max_examples=60)
@given(batch=st.lists(flows(), min_size=1, max_size=4))
def test_a_record_says_the_same_by_other_names(schema: Schema, batch: list[Flow]) -> None:
    unlocate(batch)
    expect, heads = {
        "ecs": (expect_ecs, ("@timestamp", "log.level", "message")),
        "otel": (expect_otel, ("timestamp", "severity_text", "body")),
    }[schema.name]
    ours = [load(text) for text in write(lines.TEMPLATE, batch)]

    for flow, own, text in zip(
        batch, ours, write(lines.make_template(None, schema, "gw1"), batch), strict=True
    ):
        record = load(text)
        assert tuple(record)[:3] == heads
        check_types(schema, record)
        assert [record.pop(name) for name in heads] == [show_time(flow.time), "INFO", own["msg"]]
        assert record == expect(describe(flow), flow)


@BOTH
@settings(max_examples=30)
@given(batch=st.lists(flows(), min_size=1, max_size=4))
def test_loki_has_the_same_with_underscores_and_as_texts(schema: Schema, batch: list[Flow]) -> None:
    unlocate(batch)
    batch = batch[:1]  # in one order, whatever the streams
    whole = load(write(lines.make_template(None, schema, "gw1"), batch)[0])
    (text,) = write(loki.make_template(None, schema), batch)
    _, line, metadata = json.loads(text[:-1])

    expected = {
        name.replace(".", "_"): flatten(value)
        for name, value in whole.items()
        if name not in {"@timestamp", "message", "timestamp", "body", "host.name", "service.name"}
    }
    assert line == whole[schema.rename("msg")]
    assert metadata == expected
    assert all(re.fullmatch("[a-z_]+", name) for name in metadata)
    assert metadata.keys() <= loki.list_metadata(schema)


def flatten(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return f"{value['lat']},{value['lon']}" if isinstance(value, dict) else show(value)


def test_a_seed_a_country_code_and_a_beginning_have_their_names() -> None:
    flow = make_flows(1)[0]
    flow.src_location = Location(country="Germany", country_code="DE")
    (text,) = write(lines.make_template(None, ECS, "gw1"), [flow], 0)
    record = load(text)

    check_types(ECS, record)
    assert record["source.geo.country_iso_code"] == "DE"
    assert record["network.community_id"].startswith("1:")
    (text,) = write(lines.make_template(None, OTEL, "gw1"), [flow], 0)
    check_types(OTEL, load(text))
    assert load(text)["conntrackd.community_id"] == record["network.community_id"]
    assert ECS.rename("first_seen") == ECS.rename("start") == "event.start"


def test_a_duration_in_nanoseconds_may_be_negative() -> None:
    flow = make_flows(1)[0]
    flow.type, flow.start, flow.stop = EventType.DESTROY, 10**18, 10**18 - 3 * 10**9 - 1

    assert load(write(lines.make_template(None, ECS, "gw1"), [flow])[0])["event.duration"] == -3_000_000_001
    record = load(write(lines.make_template(None, OTEL, "gw1"), [flow])[0])
    assert record["conntrackd.duration"] == Decimal("-3.000000001")


def test_states_are_those_of_opentelemetry() -> None:
    assert set(OTEL_STATES.values()) - read_facts(OTEL)["network.connection.state"].values == {"none"}


# ---- a choice of fields -------------------------------------------------------------------------------


@BOTH
@settings(max_examples=60)
@given(st.data(), st.lists(flows(), min_size=1, max_size=2))
def test_a_choice_has_our_own_names_and_what_derives_from_them(
    schema: Schema, data: st.DataObject, batch: list[Flow]
) -> None:
    names = frozenset(data.draw(st.sets(st.sampled_from(NAMES), max_size=8))) | {"src"}
    constants = schema.list_constants("gw1")
    whole = [load(text) for text in write(lines.make_template(None, schema, "gw1"), batch)]
    ours = [load(text) for text in write(lines.make_template(names), batch)]

    for text, full, own in zip(
        write(lines.make_template(names, schema, "gw1"), batch), whole, ours, strict=True
    ):
        shown = {theirs for name in own for theirs in list_of(schema, name)}
        for prefix, end in (("", "destination"), ("src_", "source")):
            if not {f"{prefix}lat", f"{prefix}lon"} <= names:
                shown.discard(f"{end}.geo.location")
        assert load(text) == {name: full[name] for name in full if name in shown or name in constants}


def list_of(schema: Schema, name: str) -> set[str]:
    more = {
        "ecs": {"type": {"event.type"}, "prot": {"network.iana_number"}, "src": {"network.type"}},
        "otel": {"src": {"network.type"}},
    }
    return {schema.rename(name)} | more[schema.name].get(name, set())


# ---- LOST and SUPPRESSED -------------------------------------------------------------------------------


def test_a_loss_has_a_form_in_each_schema() -> None:
    since, until = show_time(LOST.since), show_time(LOST.until)
    some = frozenset({"src"})
    ecs, otel = (
        load(lines.make_template(some, schema, "gw1").render_loss(LOST).text) for schema in (ECS, OTEL)
    )

    check_types(ECS, ecs)
    check_types(OTEL, otel)
    assert ecs == {
        "@timestamp": until, "log.level": "WARN", "message": "LOST 3 events in sink loki (full)",
        "ecs.version": "9.4.0", "event.kind": "pipeline_error", "event.category": ["network"],
        "event.type": ["info"], "host.name": "gw1", "service.name": "conntrackd", "event.action": "lost",
        "conntrackd.lost": 3, "event.start": since, "event.end": until, "conntrackd.where": "loki",
        "event.reason": "full",
    }  # fmt: skip
    assert otel == {
        "timestamp": until, "severity_text": "WARN", "body": "LOST 3 events in sink loki (full)",
        "host.name": "gw1", "service.name": "conntrackd", "event_name": "conntrackd.lost",
        "conntrackd.lost": 3, "conntrackd.since": since, "conntrackd.until": until,
        "conntrackd.where": "loki", "conntrackd.reason": "full",
    }  # fmt: skip


def test_what_a_limit_held_back_has_one_too_and_is_no_error() -> None:
    since, until = show_time(HELD.since), show_time(HELD.until)
    some = frozenset({"src"})
    ecs, otel = (
        load(lines.make_template(some, schema, "gw1").render_loss(HELD).text) for schema in (ECS, OTEL)
    )
    text = "SUPPRESSED 7 events beyond the limit of rule 3 of sinks.audit.filter"

    check_types(ECS, ecs)
    check_types(OTEL, otel)
    assert ecs == {
        "@timestamp": until, "log.level": "INFO", "message": text,
        "ecs.version": "9.4.0", "event.kind": "event", "event.category": ["network"],
        "event.type": ["info"], "host.name": "gw1", "service.name": "conntrackd",
        "event.action": "suppressed", "conntrackd.suppressed": 7, "conntrackd.rule": 3,
        "event.start": since, "event.end": until, "conntrackd.where": "sinks.audit.filter",
        "event.reason": "log any limit 1/day",
    }  # fmt: skip
    assert otel == {
        "timestamp": until, "severity_text": "INFO", "body": text,
        "host.name": "gw1", "service.name": "conntrackd", "event_name": "conntrackd.suppressed",
        "conntrackd.suppressed": 7, "conntrackd.rule": 3, "conntrackd.since": since,
        "conntrackd.until": until, "conntrackd.where": "sinks.audit.filter",
        "conntrackd.reason": "log any limit 1/day",
    }  # fmt: skip


@BOTH
@REPORTED
def test_a_report_in_loki_is_an_entry_of_texts(schema: Schema, lost: Lost) -> None:
    needs = frozenset({"time", "msg", "type", "prot", "src"})
    moment, _, metadata = json.loads(loki.make_template(needs, schema).render_loss(lost).text[:-1])
    whole = load(lines.make_template(None, schema).render_loss(lost).text)

    assert moment == str(lost.until)
    for name in (schema.rename("time"), schema.rename("msg"), "host.name", "service.name"):
        del whole[name]
    assert metadata == {name.replace(".", "_"): flatten(value) for name, value in whole.items()}


# ---- what else knows them -----------------------------------------------------------------------------


def test_the_settings_have_the_schemas_that_there_are() -> None:
    for option in (options.SINK_STREAM_SCHEMA, options.SINK_LOKI_SCHEMA):
        assert tuple(option.kind.words) == tuple(SCHEMAS)
        assert SCHEMAS[option.default].is_native


@BOTH
def test_a_name_of_the_host_is_a_text_and_nothing_else(schema: Schema) -> None:
    template = lines.make_template(None, schema, 'a"b$time\\')

    assert load(write(template, make_flows(1))[0])["host.name"] == 'a"b$time\\'
    assert load(template.render_loss(LOST).text)["host.name"] == 'a"b$time\\'


@BOTH
def test_what_reads_back_says_that_it_knows_other_names(schema: Schema) -> None:
    for names in (None, frozenset({"dst", "msg"})):
        template = lines.make_template(names, schema, "gw1")
        for text in (*write(template, make_flows(1)), template.render_loss(LOST).text):
            with pytest.raises(DataError, match=f"its fields have the names of {schema.name}") as caught:
                parse_record(parse_line(text))
            assert "sink.stream.schema: native" in caught.value.hint
