"""Connections counted by the values of fields: the core as the reference, each within its bound."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from socket import AF_INET6

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.config.flow_metrics import FIELDS
from conntrackd.core import _core as core
from conntrackd.engine import DURATION_BOUNDS, Counts, Engine, Series, SeriesField, Sums, Value
from conntrackd.flow import NANO, EventType, Flow
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.filter.strategies import flows as any_flow
from tests.messages import build_message
from tests.sinks.flows import BASE, make_flow

NATIVE, PLAIN = ENGINES
BY_PORT = (SeriesField("protocol"), SeriesField("dport"))
LARGEST = (1 << 64) - 1
FIELDS_OF_SERIES = [SeriesField(field.attribute, needs_nat="nat" in field.needs) for field in FIELDS.values()]
field_lists = st.lists(st.sampled_from(FIELDS_OF_SERIES), max_size=8, unique=True)


def count(engine: Engine, series: Series, events: Sequence[Flow], room: int = 200) -> None:
    batch = engine.open_batch()
    for first in range(0, len(events), room):
        batch.load(b"".join(map(build_message, events[first : first + room])), 0, RECEIVED_NS)
        series.count(batch, None)


def make(number: int, kind: EventType, port: int = 443) -> Flow:
    flow = make_flow(number, kind)
    flow.dport = flow.reply_sport = port
    return flow


def get_counts(series: Series, *values: Value) -> Counts:
    return dict(series.list())[values]


def test_connections_are_counted_by_the_values_of_their_fields(engine: Engine) -> None:
    series = engine.open_series(BY_PORT, 10)
    ended = make(1, EventType.DESTROY)
    ended.orig_packets, ended.orig_bytes, ended.reply_packets, ended.reply_bytes = 3, 400, 5, 6000
    ended.start, ended.stop = BASE, BASE + 2_500_000_000
    events = [
        *(make(number, EventType.NEW) for number in range(3)),
        make(1, EventType.UPDATE),
        ended,
        make(7, EventType.NEW, 53),
    ]

    count(engine, series, events)

    assert len(series) == 2
    assert get_counts(series, 6, 443) == (
        (3, 1, 2, 3, 400, 5, 6000, 2, 500_000_000),
        (0, 0, 1, 0, 0, 0, 0, 0, 0),
    )
    assert get_counts(series, 6, 53) == (Sums(opened=1, living=1), (0,) * 9)
    assert (series.other, series.overflows) == ((Sums(), (0,) * 9), 0)


def make_another(address: bytes) -> bytes:
    """The IPv6 address that has this one's hash with any seed: see mix() in core/slots.c."""
    halves = struct.unpack("=QQ", address)
    return struct.pack("=QQ", halves[0] ^ 1 << 63, halves[1] ^ 1 << 63 ^ 1 << 31)


def test_addresses_that_were_chosen_to_have_one_hash_have_a_series_each(engine: Engine) -> None:
    series, here = engine.open_series((SeriesField("dst"),), 10), ip_address("2001:db8::5").packed
    other = make_another(here)
    events = [
        replace(make(number, EventType.NEW), family=AF_INET6, src=here, reply_dst=here, dst=to, reply_src=to)
        for number, to in enumerate((here, other, other))
    ]

    count(engine, series, events)

    assert get_counts(series, here)[0] == Sums(opened=1, living=1)
    assert get_counts(series, other)[0] == Sums(opened=2, living=2)


def test_what_is_beyond_the_limit_is_counted_together(engine: Engine) -> None:
    series = engine.open_series(BY_PORT, 3)

    count(engine, series, [make(port, EventType.NEW, port) for port in range(1, 1001)])
    count(engine, series, [make(port, EventType.DESTROY, port) for port in range(1, 1001)])

    assert sorted(values for values, _ in series.list()) == [(6, 1), (6, 2), (6, 3)]
    assert series.other[0] == Sums(opened=997, closed=997)
    assert series.overflows == 2 * 997


def test_the_end_of_a_connection_whose_opening_was_not_counted_is_none_of_those_that_live(
    engine: Engine,
) -> None:
    series, new, end = engine.open_series((), 1), EventType.NEW, EventType.DESTROY

    count(
        engine, series, [make(1, new), make(2, new), make(3, end), make(4, end), make(2, end), make(2, end)]
    )

    assert series.list()[0][1][0] == Sums(opened=2, closed=4, living=1)


def test_connections_of_one_id_live_each_in_its_series(engine: Engine) -> None:
    series, new, end = engine.open_series(BY_PORT, 10), EventType.NEW, EventType.DESTROY

    count(engine, series, [make(1, new), make(1, new, 53), make(2, new, 53), make(1, end, 53)])

    assert get_counts(series, 6, 443)[0] == Sums(opened=1, living=1)
    assert get_counts(series, 6, 53)[0] == Sums(opened=2, closed=1, living=1)
    count(engine, series, [make(1, end), make(2, end, 53)])
    assert [sums[2] for _, (sums, _) in series.list()] == [0, 0]


def test_an_end_in_another_series_makes_no_negative_number(engine: Engine) -> None:
    series, ended = engine.open_series((SeriesField("nat"),), 10), make(1, EventType.DESTROY)
    ended.reply_dst = bytes([192, 0, 2, 9])

    count(engine, series, [make(1, EventType.NEW), ended])

    assert get_counts(series, 1)[0] == Sums(closed=1)


def test_living_are_no_more_than_are_remembered(engine: Engine) -> None:
    series = engine.open_series((), 1, most_living=3)

    count(engine, series, [make(number, EventType.NEW) for number in range(5)])
    assert series.list()[0][1][0] == Sums(opened=5, living=3)
    count(engine, series, [make(number, EventType.DESTROY) for number in range(5)])
    assert series.list()[0][1][0] == Sums(opened=5, closed=5)


def test_sums_wrap(engine: Engine) -> None:
    series, events = engine.open_series((), 1), [make(number, EventType.DESTROY) for number in range(2)]
    for event, octets in zip(events, (LARGEST, 6), strict=True):
        event.orig_bytes = event.reply_bytes = octets

    count(engine, series, events)

    assert series.list()[0][1][0] == Sums(closed=2, orig_bytes=5, reply_bytes=5)


def test_a_bound_of_durations_is_in_its_bucket_and_what_is_longer_is_not(engine: Engine) -> None:
    series, events = engine.open_series((), 1), []
    for number, seconds in enumerate(DURATION_BOUNDS):
        for more in (0, 1):
            event = make(number, EventType.DESTROY)
            event.start, event.stop = BASE, BASE + round(seconds * NANO) + more
            events.append(event)
    events.append(make(99, EventType.DESTROY))  # the kernel does not say
    backward = make(100, EventType.DESTROY)
    backward.start, backward.stop = BASE + 9, BASE
    events.append(backward)

    count(engine, series, events)

    sums, durations = series.list()[0][1]
    assert durations == (2, 2, 2, 2, 2, 2, 2, 2, 1)
    total = 2 * sum(round(seconds * NANO) for seconds in DURATION_BOUNDS) + len(DURATION_BOUNDS)
    assert sums[-2] * NANO + sums[-1] == total


def test_a_translated_address_is_a_value_of_translated_connections_alone(engine: Engine) -> None:
    series = engine.open_series((SeriesField("nat"), SeriesField("reply_dst", needs_nat=True)), 10)
    translated = make(1, EventType.NEW)
    translated.reply_dst = bytes([192, 0, 2, 9])

    count(engine, series, [translated, make(2, EventType.NEW)])

    assert {values for values, _ in series.list()} == {(1, bytes([192, 0, 2, 9])), (0, None)}


@settings(max_examples=40, deadline=None)
@given(st.lists(any_flow(located=False), max_size=40), field_lists, st.integers(1, 12), st.integers(1, 12))
def test_both_engines_count_the_same(
    events: list[Flow], fields: list[SeriesField], limit: int, most_living: int
) -> None:
    one, other = (engine.open_series(fields, limit, most_living) for engine in (NATIVE, PLAIN))

    count(NATIVE, one, events)
    count(PLAIN, other, events)

    assert dict(one.list()) == dict(other.list())
    assert (one.other, one.overflows, len(one)) == (other.other, other.overflows, len(other))


@pytest.mark.parametrize(
    ("fields", "limit", "fault"),
    [
        (bytes(8), 1, "fields of 8 bytes"),
        (bytes(16 * 9), 1, "too many fields"),
        (bytes(8) + (1 << 40).to_bytes(8, "little"), 1, "there is no such field"),
        (bytes(8) + len(core.FIELDS).to_bytes(8, "little"), 1, "there is no such field"),
        (bytes(8) + core.FIELDS.index("helper").to_bytes(8, "little"), 1, "there is no such field"),
        (bytes(8) + core.FIELDS.index("labels").to_bytes(8, "little"), 1, "there is no such field"),
        (b"", 0, "a limit below 1"),
    ],
)
def test_what_python_hands_over_is_checked(fields: bytes, limit: int, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        core.Series(fields, limit, 1, 0)


def test_a_bound_of_what_lives_is_checked() -> None:
    with pytest.raises(ValueError, match="a limit below 1"):
        core.Series(b"", 1, 0, 0)
