"""When flows began: what is remembered of them, and given to their end."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from conntrackd.engine import Engine
from conntrackd.engine import Flows as Remembered
from conntrackd.flow import EventType, Flow, Protocol
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.filter.rows import parse
from tests.messages import build_message
from tests.sinks.flows import BASE, make_flow

NATIVE, PLAIN = ENGINES
ROOM = 200  # for messages in a batch


def note(engine: Engine, flows: Remembered, events: Sequence[Flow]) -> tuple[list[dict[str, Any]], int]:
    """The events as they are afterwards, in batches of ROOM, and how many flows were forgotten."""
    batch, found, forgotten = engine.open_batch(), [], 0
    for first in range(0, len(events), ROOM):
        some = events[first : first + ROOM]
        batch.load(b"".join(map(build_message, some)), 0, RECEIVED_NS)
        assert len(batch) == len(some)
        forgotten += flows.note(batch)
        found += [batch.describe(index) for index in range(len(batch))]
    return found, forgotten


def list_first_seen(engine: Engine, flows: Remembered, events: Sequence[Flow]) -> list[int]:
    return [fields["first_seen"] or 0 for fields in note(engine, flows, events)[0]]


def make(number: int, kind: EventType, seconds: int, port: int = 443) -> Flow:
    flow = make_flow(number, kind, time=BASE + seconds * 10**9)
    flow.dport = flow.reply_sport = port
    return flow


def test_a_flow_is_given_the_time_of_its_new_once_and_forgotten(engine: Engine) -> None:
    flows = engine.open_flows(10)
    events = [
        make(1, EventType.NEW, 0),
        make(2, EventType.NEW, 1),
        make(1, EventType.UPDATE, 2),
        make(1, EventType.DESTROY, 3),
        make(1, EventType.DESTROY, 4),
        make(3, EventType.DESTROY, 5),
    ]

    assert list_first_seen(engine, flows, events) == [0, 0, 0, BASE, 0, 0]
    assert len(flows) == 1


def test_an_id_that_another_flow_has_too_is_no_mistake(engine: Engine) -> None:
    flows = engine.open_flows(10)
    events = [
        make(1, EventType.NEW, 0),
        make(1, EventType.NEW, 1, port=80),
        make(1, EventType.DESTROY, 2),
        make(1, EventType.DESTROY, 3, port=80),
    ]

    assert list_first_seen(engine, flows, events) == [0, 0, BASE, BASE + 10**9]


def test_an_icmp_flow_goes_by_its_identifier(engine: Engine) -> None:
    events = []
    for seconds, (kind, number) in enumerate(
        [(EventType.NEW, 7), (EventType.NEW, 8), (EventType.DESTROY, 7), (EventType.DESTROY, 8)]
    ):
        flow = make(1, kind, seconds)
        flow.protocol, flow.state = Protocol.ICMP, -1
        flow.sport = flow.dport = flow.reply_sport = flow.reply_dport = -1
        flow.icmp_type, flow.icmp_code, flow.icmp_id, flow.reply_icmp_id = 8, 0, number, number
        events.append(flow)

    assert list_first_seen(engine, engine.open_flows(10), events) == [0, 0, BASE, BASE + 10**9]


def test_the_kernels_own_start_is_better(engine: Engine) -> None:
    flows, ended = engine.open_flows(10), make(1, EventType.DESTROY, 3)
    ended.start, ended.stop = BASE + 1, BASE + 2

    (_, last), _ = note(engine, flows, [make(1, EventType.NEW, 0), ended])

    assert (last["first_seen"] or 0, last["start"], len(flows)) == (0, BASE + 1, 0)


def test_rules_know_how_long_a_flow_lasted_since_it_was_seen_first(engine: Engine) -> None:
    flows, batch = engine.open_flows(10), engine.open_batch()
    events = [make(number, EventType.NEW, 0) for number in (1, 2)]
    events += [make(1, EventType.DESTROY, 60), make(2, EventType.DESTROY, 61), make(3, EventType.DESTROY, 99)]
    batch.load(b"".join(map(build_message, events)), 0, RECEIVED_NS)
    flows.note(batch)

    kept = engine.decide(batch, engine.compile_table(parse("log duration > 1m", "drop any")), None, None)

    assert list(memoryview(kept).cast("H")) == [3]


def test_a_flow_record_is_decided_as_the_destroy_that_it_is(engine: Engine) -> None:
    batch = engine.open_batch()
    batch.load(build_message(make(1, EventType.DESTROY, 0)), 0, RECEIVED_NS)

    for rules in (["log type DESTROY", "drop any"], ["drop type NEW,UPDATE"], ["drop type DESTROY"], []):
        for events in (EventType.DESTROY, EventType.NEW):
            table = engine.compile_table(parse(*rules), None, int(events))
            batch.set_type(None, EventType.DESTROY)
            before = engine.decide(batch, table, None, None)
            batch.set_type(None, EventType.FLOW)
            assert engine.decide(batch, table, None, None) == before


def test_a_flow_record_without_a_beginning_is_incomplete_and_no_other_record_is(engine: Engine) -> None:
    flows, batch = engine.open_flows(10), engine.open_batch()
    events = [make(1, EventType.NEW, 0), *(make(number, EventType.DESTROY, 1) for number in (1, 2, 3))]
    events[3].start = BASE
    batch.load(b"".join(map(build_message, events)), 0, RECEIVED_NS)
    flows.note(batch)

    def list_incomplete(kind: EventType) -> list[int | None]:
        batch.set_type(None, kind)
        return [batch.describe(index)["incomplete"] for index in range(len(batch))]

    assert list_incomplete(EventType.FLOW) == [1, None, 1, None]
    for kind in (EventType.DESTROY, EventType.ALIVE):
        assert list_incomplete(kind) == [None] * 4


def test_where_there_is_no_room_an_old_flow_is_forgotten_and_counted(engine: Engine) -> None:
    flows = engine.open_flows(3000)
    began = [make(number, EventType.NEW, number) for number in range(5000)]
    ended = [make(number, EventType.DESTROY, 10_000) for number in range(5000)]

    _, forgotten = note(engine, flows, began)
    assert (forgotten, len(flows)) == (2000, 3000)

    found = list_first_seen(engine, flows, ended)
    assert len(flows) == 0
    right = [time == began[number].time for number, time in enumerate(found) if time]
    assert (len(right), all(right)) == (3000, True)
    # Of sixteen the oldest goes: of the newest flows nearly all are left.
    assert sum(1 for time in found[4000:] if time) > 990


def test_a_flow_whose_destroy_was_lost_does_not_take_room_for_good(engine: Engine) -> None:
    flows = engine.open_flows(1)
    events = [
        make(number, kind, number) for number in range(3) for kind in (EventType.NEW, EventType.DESTROY)
    ]
    del events[1]

    found, forgotten = note(engine, flows, events)

    assert [fields["first_seen"] or 0 for fields in found[2::2]] == [events[1].time, events[3].time]
    assert (forgotten, len(flows)) == (1, 0)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 40), st.sampled_from([1, 2, 4, 4]), st.sampled_from([80, 443]), st.booleans()
        ),
        max_size=200,
    )
)
def test_both_engines_remember_the_same(steps: list[tuple[int, int, int, bool]]) -> None:
    events = []
    for seconds, (number, kind, port, has_start) in enumerate(steps):
        event = make(number << 10, EventType(kind), seconds, port)
        event.start = event.time - 5 if has_start and kind == EventType.DESTROY else 0
        events.append(event)
    one, other = NATIVE.open_flows(1000), PLAIN.open_flows(1000)

    assert list_first_seen(NATIVE, one, events) == list_first_seen(PLAIN, other, events)
    assert len(one) == len(other)
