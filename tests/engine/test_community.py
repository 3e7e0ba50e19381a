"""The Community ID: the published vectors, and the same from both engines for any flow."""

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.engine import Engine
from conntrackd.flow import ABSENT, Flow, Protocol
from conntrackd.render import json as json_lines
from tests.engine.feed import ENGINES
from tests.engine.rendering import render
from tests.engine.test_render import TEMPLATES
from tests.sinks.flows import make_flow

NATIVE, PLAIN = ENGINES
VECTORS: Final = [
    line.split()
    for line in Path(__file__).with_name("community_ids.txt").read_text().splitlines()
    if not line.startswith("#")
]
ADDRESSES: Final = st.sampled_from([4, 16]).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=2)
)


def make(protocol: int, source: bytes, destination: bytes, first: int, second: int) -> Flow:
    """An event of this protocol; the numbers are its ports, or type and code."""
    flow = make_flow(1)
    flow.protocol, flow.family, flow.state = protocol, 2 if len(source) == 4 else 10, ABSENT
    flow.src = flow.reply_dst = source
    flow.dst = flow.reply_src = destination
    flow.sport = flow.dport = flow.reply_sport = flow.reply_dport = ABSENT
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        flow.icmp_type, flow.icmp_code = first, second
    elif protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.DCCP):
        flow.sport = flow.reply_dport = first
        flow.dport = flow.reply_sport = second
    return flow


def list_vectors() -> Iterator[tuple[Flow, int, str]]:
    """Events, seeds, and the IDs that they have."""
    for protocol, source, destination, first, second, *expected in VECTORS:
        ends = ip_address(source).packed, ip_address(destination).packed
        flow = make(int(protocol), *ends, int(first), int(second))
        yield from ((flow, seed, f"1:{text}") for seed, text in enumerate(expected))


def test_the_published_vectors_pass(engine: Engine) -> None:
    found = [
        json.loads(render(engine, json_lines.TEMPLATE, [flow], seed).text)["community_id"]
        for flow, seed, _ in list_vectors()
    ]

    assert found == [expected for _, _, expected in list_vectors()]
    assert len(found) == 2 * len(VECTORS)


def read_id(engine: Engine, flow: Flow, seed: int) -> str:
    found: str = json.loads(render(engine, json_lines.TEMPLATE, [flow], seed).text)["community_id"]
    return found


@given(
    st.sampled_from([1, 6, 17, 33, 47, 58, 132]),
    st.integers(0, 255),
    st.integers(0, 255),
    ADDRESSES,
    st.integers(0, 65_535),
    st.booleans(),
)
def test_both_engines_find_the_same(
    protocol: int, first: int, second: int, ends: list[bytes], seed: int, is_bare: bool
) -> None:
    flow = make(protocol, ends[0], ends[-1], first, second)
    if is_bare:  # which the kernel never sends
        flow.sport = flow.icmp_code = flow.icmp_type = ABSENT

    assert read_id(NATIVE, flow, seed) == read_id(PLAIN, flow, seed)


@given(st.binary(min_size=8, max_size=8), st.integers(0, 65_535), st.integers(0, 65_535))
def test_both_directions_have_one_id_and_a_translation_does_not_change_it(
    engine: Engine, ends: bytes, first: int, second: int
) -> None:
    there = make(Protocol.TCP, ends[:4], ends[4:], first, second)
    back = make(Protocol.TCP, ends[4:], ends[:4], second, first)
    translated = make(Protocol.TCP, ends[:4], ends[4:], first, second)
    translated.reply_dst, translated.reply_dport = b"\xc0\0\2\1", 4711

    assert len({read_id(engine, flow, 0) for flow in (there, back, translated)}) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_sink_writes_it_where_it_is_asked_for(name: str) -> None:
    flow, seed, expected = next(list_vectors())
    shown = {
        "json": f',"community_id":"{expected}"',
        "journal": f"\nEVENT_COMMUNITY_ID={expected}\n",
        "loki": f',"community_id":"{expected}"',
        "cee": f',"community_id":"{expected}"',
        "ecs": f',"network.community_id":"{expected}"',
        "otel in loki": f',"conntrackd_community_id":"{expected}"',
    }

    for engine in ENGINES:
        with_id = render(engine, TEMPLATES[name], [flow], seed).text.decode()
        without = render(engine, TEMPLATES[name], [flow]).text.decode()
        assert shown.get(name, f' community_id="{expected}"') in with_id
        assert with_id.replace(shown.get(name, f' community_id="{expected}"').lstrip("\n"), "") == without
