"""What stands in place of which address, by each setting, and by both engines."""

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.core import _core as core
from conntrackd.engine import Engine, native
from conntrackd.flow import Flow, Location, Lost
from conntrackd.render import json as json_lines
from conntrackd.render.anonymize import PLACES, SIDES, Anonymizer
from conntrackd.render.fields import FIELDS, Kind
from conntrackd.render.template import Template
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.engine.rendering import render
from tests.engine.test_render import TEMPLATES, flows
from tests.messages import build_message
from tests.render.test_cryptopan import KEY
from tests.sinks.flows import make_flow, make_flows

NATIVE, PLAIN = ENGINES
anonymizers = st.builds(
    Anonymizer,
    key=st.sampled_from([b"", KEY]),
    ipv4_bits=st.integers(1, 32),
    ipv6_bits=st.integers(1, 128),
    sides=st.sampled_from(list(SIDES.values())),
    only=st.sampled_from(["all", "private", "public"]),
)
ADDRESSES = ("src", "dst", "nat_src", "nat_dst", "master_src", "master_dst")


def pack(text: str) -> bytes:
    return ip_address(text).packed


def make_translated() -> Flow:
    """A client behind SNAT, a server behind DNAT, and the flow that it was expected by."""
    return replace(
        make_flow(1),
        src=pack("10.0.0.77"),
        dst=pack("198.51.100.9"),
        reply_src=pack("192.168.7.8"),
        reply_dst=pack("203.0.113.5"),
        reply_sport=443,
        reply_dport=40_000,
        master_protocol=6,
        master_src=pack("10.0.0.77"),
        master_dst=pack("198.51.100.9"),
        master_sport=1024,
        master_dport=21,
    )


def show(engine: Engine, anonymizer: Anonymizer, flow: Flow, seed: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        render(engine, json_lines.TEMPLATE.anonymize(anonymizer), [flow], seed).text
    )
    return found


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("both", ["10.0.0.0", "198.51.100.0", "203.0.113.0", "192.168.7.0", "10.0.0.0", "198.51.100.0"]),
        ("source", ["10.0.0.0", "198.51.100.9", "203.0.113.0", "192.168.7.8", "10.0.0.0", "198.51.100.9"]),
        (
            "destination",
            ["10.0.0.77", "198.51.100.0", "203.0.113.5", "192.168.7.0", "10.0.0.77", "198.51.100.0"],
        ),
    ],
)
def test_an_address_after_its_translation_goes_with_the_one_before(
    engine: Engine, which: str, expected: list[str]
) -> None:
    record = show(engine, Anonymizer(sides=SIDES[which]), make_translated())

    assert [record[name] for name in ADDRESSES] == expected
    assert record["msg"] == f"NEW TCP connection from {expected[0]}:40000 to {expected[1]}:443"
    assert record["nat"] == "BOTH"


def test_what_is_translated_is_said_of_the_addresses_that_there_are(engine: Engine) -> None:
    """Cut short, both are the same."""
    flow = replace(make_flow(1), src=pack("10.0.0.7"), reply_dst=pack("10.0.0.9"))

    record = show(engine, Anonymizer(), flow)

    assert (record["nat"], record["src"], record["nat_src"]) == ("SNAT", "10.0.0.0", "10.0.0.0")


def test_an_address_that_is_concealed_once_is_so_throughout_the_record(engine: Engine) -> None:
    """The data of FTP go back to the client, which is the source of the flow that they were expected by."""
    client, server = pack("10.0.0.77"), pack("198.51.100.9")
    flow = replace(
        make_translated(),
        src=server,
        dst=client,
        reply_src=client,
        reply_dst=server,
        master_src=client,
        master_dst=server,
    )

    record = show(engine, Anonymizer(KEY, sides=SIDES["source"]), flow)

    assert record["dst"] == record["master_src"] != "10.0.0.77"
    assert record["src"] == record["master_dst"] != "198.51.100.9"
    assert "10.0.0.77" not in str(record)
    assert "198.51.100.9" not in str(record)


@pytest.mark.parametrize(
    ("only", "address", "written"),
    [
        ("private", "192.168.7.8", "192.168.0.0"),
        ("private", "192.0.2.1", "192.0.2.1"),
        ("private", "fd00::1:2", "fd00::"),
        ("public", "192.0.2.1", "192.0.0.0"),
        ("public", "192.168.7.8", "192.168.7.8"),
        ("public", "127.0.0.1", "127.0.0.1"),
        ("public", "2001:db8:1:2::3", "2001:db8:1::"),
        ("all", "127.0.0.1", "127.0.0.0"),
        ("all", "2001:db8:1:2::3", "2001:db8:1::"),
    ],
)
def test_only_addresses_of_the_networks_that_are_meant_are_others(
    engine: Engine, only: str, address: str, written: str
) -> None:
    packed = pack(address)
    flow = replace(make_flow(1), family=2 if len(packed) == 4 else 10)
    flow = replace(flow, src=packed, dst=packed, reply_src=packed, reply_dst=packed)

    assert show(engine, Anonymizer(ipv4_bits=16, only=only), flow)["src"] == written


def test_the_community_id_is_that_of_what_is_written(engine: Engine) -> None:
    anonymizer, flow = Anonymizer(KEY), make_translated()
    written = anonymizer.write([flow.src, flow.dst, flow.reply_src, flow.reply_dst])
    shown: Any = dict(zip(("src", "dst", "reply_src", "reply_dst"), written, strict=True))
    plain = json.loads(render(engine, json_lines.TEMPLATE, [replace(flow, **shown)], 0).text)

    assert show(engine, anonymizer, flow, 0)["community_id"] == plain["community_id"]


def test_locations_are_those_of_the_addresses_that_there_are(engine: Engine) -> None:
    flow = replace(make_flow(1), dst_location=Location("Köln", "DE"))

    assert show(engine, Anonymizer(), flow)["city"] == "Köln"


def test_the_events_of_a_batch_stay_as_they_are_for_other_sinks(engine: Engine) -> None:
    batch, table = engine.open_batch(), engine.compile_table(())
    batch.load(build_message(make_translated()), 0, RECEIVED_NS)
    kept = engine.decide(batch, table, None, None)
    clear, concealed = json_lines.TEMPLATE, json_lines.TEMPLATE.anonymize(Anonymizer(KEY))
    compiled = {template: engine.compile_template(template) for template in (clear, concealed)}
    first = engine.render(batch, compiled[clear], kept, None)
    other = engine.render(batch, compiled[concealed], kept, None)

    assert engine.render(batch, compiled[clear], kept, None) == first != other
    assert engine.render(batch, compiled[concealed], kept, None) == other


@pytest.mark.parametrize("name", ["json", "loki", "rfc3164"])
@given(batch=st.lists(flows(), min_size=1, max_size=5), anonymizer=anonymizers)
def test_both_engines_conceal_the_same(name: str, batch: list[Flow], anonymizer: Anonymizer) -> None:
    template: Template = TEMPLATES[name].anonymize(anonymizer)

    assert render(NATIVE, template, batch, 0) == render(PLAIN, template, batch, 0)


def test_the_text_of_a_rule_is_left_out_of_what_it_suppressed(engine: Engine) -> None:
    lost = Lost(5, 0, 10**9, "filter", "log source address 10.0.0.77 limit 1/second", 3)
    record = json.loads(json_lines.TEMPLATE.anonymize(Anonymizer()).render_loss(lost).text)

    assert record["rule"] == 3
    assert "10.0.0.77" not in str(record)
    assert "10.0.0.77" in json.loads(json_lines.TEMPLATE.render_loss(lost).text)["reason"]
    drop = json.loads(json_lines.TEMPLATE.anonymize(Anonymizer()).render_loss(replace(lost, rule=0)).text)
    assert drop["reason"] == lost.reason


def test_an_address_that_nobody_has_answered_for_is_not_written() -> None:
    batch, table = NATIVE.open_batch(), NATIVE.compile_table(())
    batch.load(build_message(make_translated()), 0, RECEIVED_NS)
    kept = NATIVE.decide(batch, table, None, None)
    template = NATIVE.compile_template(json_lines.TEMPLATE)

    text = batch.render(template.core, kept, None, core.Anonymizer(10, 3))[0]  # type: ignore[attr-defined]

    assert {json.loads(text)[name] for name in ADDRESSES} == {"0.0.0.0"}


def test_what_is_remembered_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAX_WRITTEN", 20)
    anonymizer = Anonymizer(KEY)
    written = native.NativeWritten(anonymizer)
    batch = NATIVE.open_batch()
    for first in range(0, 300, 10):
        batch.load(b"".join(map(build_message, make_flows(10, first))), 0, RECEIVED_NS)
        kept = NATIVE.decide(batch, NATIVE.compile_table(()), None, None)
        written.learn(batch, kept)  # type: ignore[arg-type]
        assert len(written.core) <= 20 + 11
        template = NATIVE.compile_template(json_lines.TEMPLATE)
        text = batch.render(template.core, kept, None, written.core)[0]  # type: ignore[attr-defined]
        shown = [pack(json.loads(line)["src"]) for line in text.splitlines()]
        assert shown == anonymizer.write([flow.src for flow in make_flows(10, first)])


def test_a_key_is_in_no_text() -> None:
    assert repr(KEY) not in repr(Anonymizer(KEY))


def test_no_address_is_written_that_cannot_be_anonymized() -> None:
    assert {field.attribute for field in FIELDS if field.kind is Kind.ADDRESS} == set(PLACES)
