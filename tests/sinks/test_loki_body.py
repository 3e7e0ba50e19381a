"""The body of a push: values in, values out."""

import json
import zlib
from typing import Any

import pytest

from conntrackd.config.labels import FIELDS, OWN_LABELS
from conntrackd.delivery.compression import GZIP, compress
from conntrackd.flow import EventType, Flow, Location, Lost, Protocol
from conntrackd.render import fields
from conntrackd.render.loki import TEMPLATE
from conntrackd.render.rendered import Rendered, join
from conntrackd.sinks.loki_body import (
    gather_streams,
    halve,
    is_named,
    list_kinds,
    mark_replay,
    split_streams,
    write_streams,
)
from tests.rendering import render, render_all
from tests.sinks.flows import BASE, make_flow, make_flows

LABELS = {"service_name": "conntrackd", "host": "gw1", "env": 'pr"od'}


def read(*parts: Rendered) -> list[dict[str, Any]]:
    """The streams in the body of these."""
    body = compress(write_streams(gather_streams(parts), LABELS))
    streams: list[dict[str, Any]] = json.loads(zlib.decompress(body, GZIP))["streams"]
    return streams


def make(*flows: Flow) -> Rendered:
    return render(TEMPLATE, flows)


def test_a_stream_has_few_labels_and_everything_else_is_metadata() -> None:
    assert read(make(make_flow(7))) == [
        {
            "stream": {**LABELS, "type": "NEW", "prot": "TCP"},
            "values": [
                [
                    str(BASE + 7_000_000),
                    "NEW TCP connection from 10.0.0.7:40000 to 192.0.2.1:443",
                    {
                        "level": "INFO",
                        "flow": "7",
                        "src": "10.0.0.7",
                        "dst": "192.0.2.1",
                        "sport": "40000",
                        "dport": "443",
                        "state": "SYN_SENT",
                    },
                ]
            ],
        }
    ]


def test_streams_are_by_type_and_protocol_the_largest_last_each_in_the_order_of_its_events() -> None:
    udp = make_flow(4)
    udp.protocol = Protocol.UDP
    records = [make_flow(1), make_flow(2, EventType.DESTROY), make_flow(3), udp]

    streams = read(make(*records))

    assert [
        (stream["stream"]["type"], stream["stream"]["prot"], [value[2]["flow"] for value in stream["values"]])
        for stream in streams
    ] == [("DESTROY", "TCP", ["2"]), ("NEW", "UDP", ["4"]), ("NEW", "TCP", ["1", "3"])]


def test_a_body_of_many_parts_is_that_of_their_events() -> None:
    kinds = [EventType.NEW, EventType.DESTROY, EventType.NEW]
    flows = [make_flow(number, kinds[number % 3]) for number in range(500)]
    parts = [make(*flows[first : first + 5]) for first in range(0, 500, 5)]

    assert read(*parts) == read(make(*flows))


def test_every_value_of_metadata_is_text() -> None:
    flow = make_flow(1, EventType.DESTROY)
    flow.orig_packets, flow.orig_bytes, flow.mark, flow.start, flow.stop = 10, 5000, 7, BASE, BASE + 5
    flow.reply_packets, flow.reply_bytes = 3, 900
    (stream,) = read(make(flow))

    metadata = stream["values"][0][2]

    assert {type(value) for value in metadata.values()} == {str}
    assert (metadata["packets"], metadata["reply_bytes"], metadata["mark"]) == ("10", "900", "7")


def test_a_loss_is_a_stream_of_its_own_and_no_event() -> None:
    loss = TEMPLATE.render_loss(Lost(5, BASE, BASE + 10, "kernel"))

    (lost,) = read(loss)

    assert lost["stream"] == {**LABELS, "type": "LOST"}
    assert lost["values"][0][:2] == [str(BASE + 10), "LOST 5 events in the kernel's buffer"]
    assert lost["values"][0][2]["level"] == "WARN"
    assert (lost["values"][0][2]["lost"], lost["values"][0][2]["where"]) == ("5", "kernel")
    assert "type" not in lost["values"][0][2]
    assert loss.events == 0


def test_updates_of_one_flow_that_were_read_together_are_no_duplicates_to_loki() -> None:
    """They have the same time and the same line, and Loki looks at nothing else."""
    updates = [make_flow(1, EventType.UPDATE, time=BASE) for _ in range(3)]
    for state, update in enumerate(updates, 2):
        update.state = state

    (stream,) = read(make(*updates))

    assert [(value[0], value[2]["state"]) for value in stream["values"]] == [
        (str(BASE), "SYN_RECV"),
        (str(BASE + 1), "ESTABLISHED"),
        (str(BASE + 2), "FIN_WAIT"),
    ]


def test_the_same_events_are_the_same_bytes() -> None:
    events = make(*make_flows(100))

    assert compress(write_streams(gather_streams([events]), LABELS)) == compress(
        write_streams(gather_streams([events]), LABELS)
    )


def test_without_isal_a_body_holds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    events = make(*make_flows(300))
    found = read(events)
    monkeypatch.setattr("conntrackd.delivery.compression.find_isal", lambda: None)

    assert read(events) == found


def test_halves_hold_every_entry_once_and_in_order() -> None:
    events = make(*make_flows(9))

    first, second = halve(events)

    assert (first.events, second.events) == (5, 4)
    assert (first.time, second.time) == (BASE, BASE + 5_000_000)
    halves = [value for half in (first, second) for stream in read(half) for value in stream["values"]]
    assert halves == read(events)[0]["values"]


def test_halving_ends_at_single_entries() -> None:
    parts = halve(make(*make_flows(5)))
    rounds = 0
    while any(len(halve(part)) > 1 for part in parts):
        parts = tuple(half for part in parts for half in halve(part))
        rounds += 1

    assert [part.events for part in parts] == [1] * 5
    assert rounds == 2
    assert len(halve(render_all(TEMPLATE, [Lost(1, BASE, BASE, "kernel")])[0])) == 1


def test_a_replay_is_marked_once_and_changes_nothing_else() -> None:
    events = make(*make_flows(3))
    replay = mark_replay(events)
    assert replay is not None

    (stream,) = read(replay)

    assert (replay.events, replay.time) == (3, BASE)
    assert stream["stream"] == {**LABELS, "type": "NEW", "prot": "TCP", "replay": "1"}
    assert stream["values"] == read(events)[0]["values"]
    assert mark_replay(replay) is None


def test_only_what_is_too_old_is_replayed_where_the_limit_is_known() -> None:
    replay = mark_replay(make(*make_flows(10)), BASE + 4_000_000)
    assert replay is not None

    assert replay.events == 4
    assert mark_replay(make(*make_flows(10)), BASE) is None


def test_their_number_shows_what_is_too_old_within_the_second_of_the_limit() -> None:
    replay = mark_replay(make(*make_flows(10)), BASE + 4_000_000, 2)
    assert replay is not None

    assert [value[2]["flow"] for value in read(replay)[0]["values"]] == ["0", "1"]


def test_a_loss_is_reported_again_and_never_replayed() -> None:
    assert mark_replay(TEMPLATE.render_loss(Lost(5, BASE, BASE, "kernel"))) is None


def test_every_field_of_an_event_is_a_name_that_no_label_may_have() -> None:
    flow = make_flow(1, EventType.DESTROY)
    for name in (
        "orig_packets",
        "orig_bytes",
        "reply_packets",
        "reply_bytes",
        "mark",
        "zone",
        "start",
        "stop",
    ):
        setattr(flow, name, 5)
    flow.icmp_type = flow.icmp_code = flow.reason = 1
    flow.reply_dst, flow.reply_src = flow.dst, flow.dst
    flow.src_location = flow.dst_location = Location("Paris", "FR", 48.9, 2.3, 64496, "Example")

    streams = read(make(flow), TEMPLATE.render_loss(Lost(5, BASE, BASE + 10, "kernel", "reason")))
    names = {name for stream in streams for value in stream["values"] for name in value[2]}

    assert {"nat_src", "icmp_type", "src_as_org", "lost", "duration"} <= names
    assert names <= FIELDS
    assert {name for stream in streams for name in stream["stream"]} - set(LABELS) <= OWN_LABELS


def test_no_label_can_hide_a_field() -> None:
    places = {f"{side}{place.name}" for side in ("", "src_") for place in (*fields.PLACE, *fields.NETWORK)}

    assert {field.name for field in fields.FIELDS} | places <= FIELDS | OWN_LABELS


def make_mixed() -> Rendered:
    """Streams NEW, DESTROY and NEW of UDP, their events in turns."""
    flows = []
    for number in range(9):
        flow = make_flow(number, EventType.DESTROY if number % 3 == 1 else EventType.NEW)
        flow.protocol = Protocol.UDP if number % 3 == 2 else Protocol.TCP
        flows.append(flow)
    return make(*flows)


@pytest.mark.parametrize("last", [("NEW", "TCP"), ("DESTROY", "TCP"), ("NEW", "UDP")])
def test_each_stream_can_be_pushed_alone_and_the_one_that_is_named_last(last: tuple[str, str]) -> None:
    events = make_mixed()
    named = f'{{env="pr\\"od", host="gw1", prot="{last[1]}", service_name="conntrackd", type="{last[0]}"}}'

    parts = split_streams(events, named)
    streams = [stream for part in parts for stream in read(part)]

    assert [part.events for part in parts] == [3, 3, 3]
    assert sorted(json.dumps(stream) for stream in streams) == sorted(map(json.dumps, read(events)))
    assert (streams[-1]["stream"]["type"], streams[-1]["stream"]["prot"]) == last
    assert split_streams(parts[0]) == (parts[0],)


def test_streams_of_two_batches_are_one_stream_where_they_are_alike() -> None:
    both = join([make_mixed(), make_mixed()])

    assert len(list_kinds(both)) == 3
    assert [part.events for part in split_streams(both)] == [6, 6, 6]


def test_a_loss_is_one_stream() -> None:
    loss = TEMPLATE.render_loss(Lost(5, BASE, BASE, "kernel"))

    assert split_streams(loss) == (loss,)
    assert list_kinds(loss) == ((0, 0, False),)
    assert is_named((0, 0, False), '{host="gw1", type="LOST"}')


@pytest.mark.parametrize(
    ("labels", "is_it"),
    [
        ('{prot="TCP", type="NEW"}', True),
        ('{host="gw1", my_type="X", prot="TCP", type="NEW"}', True),
        (r'{note="a type=", prot="TCP", say="\"type=\"", type="NEW"}', True),
        ('{prot="TCP", replay="1", type="NEW"}', False),
        ('{prot="UDP", type="NEW"}', False),
        ('{my_type="NEW", prot="TCP"}', False),
        (r'{note=" type=\"NEW\"", prot="TCP"}', False),
        ("{}", False),
        ("", False),
    ],
)
def test_a_stream_is_known_by_its_own_labels_alone(labels: str, is_it: bool) -> None:
    kind = (EventType.NEW.value, Protocol.TCP.value, False)

    assert is_named(kind, labels) is is_it
