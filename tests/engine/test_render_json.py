"""Names and order that dashboards rely on, and what is left out where it is not there: both engines."""

import json
from dataclasses import replace
from typing import Any

import pytest

from conntrackd.engine import SLOTS, Engine
from conntrackd.flow import EventType, Flow, Location, Protocol, Reason
from conntrackd.render.json import TEMPLATE
from tests.engine.rendering import render

V6 = bytes.fromhex("200300cf17167b64da8083fffecdda51"), bytes.fromhex("2a0104f8016053720000000000000002")
ZONE = "CET-1"  # an hour ahead in winter
SECOND = 10**9
WHEN = 1_763_807_683_181_432_081
EVENT = Flow(
    type=EventType.NEW,
    time=WHEN,
    family=10,
    protocol=Protocol.TCP,
    id=2_899_284_024,
    src=V6[0],
    dst=V6[1],
    sport=41220,
    dport=80,
    reply_src=V6[1],
    reply_dst=V6[0],
    reply_sport=80,
    reply_dport=41220,
    state=1,
)


def read(engine: Engine, *flows: Flow) -> list[dict[str, Any]]:
    return [json.loads(line) for line in render(engine, TEMPLATE, flows).text.splitlines()]


def test_an_event_is_one_line_with_the_fields_in_the_order_of_the_contract(engine: Engine) -> None:
    assert render(engine, TEMPLATE, [EVENT]).text == (
        b'{"time":"2025-11-22T11:34:43.181432081+01:00","level":"INFO","msg":"NEW TCP connection from '
        b'[2003:cf:1716:7b64:da80:83ff:fecd:da51]:41220 to [2a01:4f8:160:5372::2]:80","type":"NEW",'
        b'"flow":2899284024,"prot":"TCP","src":"2003:cf:1716:7b64:da80:83ff:fecd:da51",'
        b'"dst":"2a01:4f8:160:5372::2","sport":41220,"dport":80,"state":"SYN_SENT"}\n'
    )


def test_ipv4_stands_without_brackets(engine: Engine) -> None:
    src, dst = bytes([10, 0, 0, 1]), bytes([192, 0, 2, 7])
    v4 = replace(EVENT, family=2, src=src, dst=dst, reply_src=dst, reply_dst=src)

    assert read(engine, v4)[0]["msg"] == "NEW TCP connection from 10.0.0.1:41220 to 192.0.2.7:80"


def test_everything_that_the_kernel_can_report_in_its_place(engine: Engine) -> None:
    whole = replace(
        EVENT,
        type=EventType.DESTROY,
        reply_dst=bytes(15) + b"\x01",
        reply_dport=1024,
        reply_src=bytes(15) + b"\x02",
        mark=16,
        zone=3,
        orig_packets=5,
        orig_bytes=300,
        reply_packets=4,
        reply_bytes=200,
        start=WHEN - 2 * SECOND,
        stop=WHEN - 1,
        reason=Reason.CLOSED,
        dst_location=Location("Nürnberg", "DE", 49.45, 11.08, 24940, "Hetzner"),
        src_location=Location("", "FR", None, None, 0, ""),
    )
    (found,) = read(engine, whole)

    assert list(found) == [
        *("time", "level", "msg", "type", "flow", "prot", "src", "dst", "sport", "dport", "state"),
        *("nat", "nat_src", "nat_sport", "nat_dst", "nat_dport", "mark", "zone"),
        *("packets", "bytes", "reply_packets", "reply_bytes", "start", "stop", "duration", "reason"),
        *("city", "country", "lat", "lon", "src_country", "asn", "as_org"),
    ]
    assert (found["nat"], found["nat_src"], found["nat_sport"]) == ("BOTH", "::1", 1024)
    assert (found["nat_dst"], found["nat_dport"]) == ("::2", 80)
    assert found["start"] == "2025-11-22T11:34:41.181432081+01:00"
    assert (found["duration"], found["reason"], found["city"]) == (1.999999999, "closed", "Nürnberg")


def test_icmp_has_a_type_and_a_code_and_no_ports(engine: Engine) -> None:
    ping = replace(
        EVENT,
        protocol=Protocol.ICMPV6,
        state=-1,
        icmp_type=128,
        icmp_code=0,
        icmp_id=77,
        reply_icmp_id=77,
        sport=-1,
        dport=-1,
        reply_sport=-1,
        reply_dport=-1,
    )
    (found,) = read(engine, ping)

    assert list(found)[3:] == ["type", "flow", "prot", "src", "dst", "icmp_type", "icmp_code", "icmp_id"]
    assert found["msg"].endswith("from 2003:cf:1716:7b64:da80:83ff:fecd:da51 to 2a01:4f8:160:5372::2")


@pytest.mark.parametrize(("number", "name"), [(136, "UDPLITE"), (47, "GRE"), (99, "99")])
def test_a_protocol_without_a_name_goes_by_its_number(engine: Engine, number: int, name: str) -> None:
    assert read(engine, replace(EVENT, protocol=number))[0]["prot"] == name


def test_text_of_a_database_cannot_leave_its_value(engine: Engine) -> None:
    evil = 'a","type":"LOST"}\n{"x":"\x1b[31m\u202e\\'
    line = render(engine, TEMPLATE, [replace(EVENT, dst_location=Location(city=evil))]).text

    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    assert "\u202e".encode() not in line
    assert json.loads(line)["city"] == evil
    assert json.loads(line)["type"] == "NEW"


def test_batches_keep_their_order(engine: Engine) -> None:
    lines = read(engine, *(replace(EVENT, id=number) for number in range(SLOTS)))

    assert [line["flow"] for line in lines] == list(range(SLOTS))
