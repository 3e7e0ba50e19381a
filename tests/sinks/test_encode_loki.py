"""The body of a push: values in, values out."""

import json
import zlib
from typing import Any

from conntrackd.flow import ABSENT, EventType, Location, Lost, Protocol
from conntrackd.labels import FIELDS, OWN_LABELS
from conntrackd.sinks.encode_loki import GZIP, LokiEncoder, count_events, find_losses, mark_replay, split
from tests.sinks.flows import BASE, make_flow, make_flows

LABELS = {"service_name": "conntrackd", "host": "gw1", "env": 'pr"od'}


def read(body: bytes) -> list[dict[str, Any]]:
    streams: list[dict[str, Any]] = json.loads(zlib.decompress(body, GZIP))["streams"]
    return streams


def encode(*records: Any) -> bytes:
    return LokiEncoder(LABELS).encode(list(records))


def test_a_stream_has_few_labels_and_everything_else_is_metadata() -> None:
    assert read(encode(make_flow(7))) == [
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

    streams = read(encode(*records))

    assert [
        (stream["stream"]["type"], stream["stream"]["prot"], [value[2]["flow"] for value in stream["values"]])
        for stream in streams
    ] == [("DESTROY", "TCP", ["2"]), ("NEW", "UDP", ["4"]), ("NEW", "TCP", ["1", "3"])]


def test_every_value_of_metadata_is_text() -> None:
    flow = make_flow(1, EventType.DESTROY)
    flow.orig_packets, flow.orig_bytes, flow.mark, flow.start, flow.stop = 10, 5000, 7, BASE, BASE + 5
    flow.reply_packets, flow.reply_bytes = 3, 900
    (stream,) = read(encode(flow))

    metadata = stream["values"][0][2]

    assert {type(value) for value in metadata.values()} == {str}
    assert (metadata["packets"], metadata["reply_bytes"], metadata["mark"]) == ("10", "900", "7")


def test_a_loss_is_a_stream_of_its_own_and_no_event() -> None:
    body = encode(make_flow(1), Lost(5, BASE, BASE + 10, "kernel"))

    lost = read(body)[1]

    assert lost["stream"] == {**LABELS, "type": "LOST"}
    assert lost["values"][0][:2] == [str(BASE + 10), "LOST 5 events in the kernel's buffer"]
    assert lost["values"][0][2]["level"] == "WARN"
    assert (lost["values"][0][2]["lost"], lost["values"][0][2]["where"]) == ("5", "kernel")
    assert "type" not in lost["values"][0][2]
    assert count_events(body) == 1


def test_updates_of_one_flow_that_were_read_together_are_no_duplicates_to_loki() -> None:
    """They have the same time and the same line, and Loki looks at nothing else."""
    updates = [make_flow(1, EventType.UPDATE, time=BASE) for _ in range(3)]
    for state, update in enumerate(updates, 2):
        update.state = state

    (stream,) = read(encode(*updates))

    assert [(value[0], value[2]["state"]) for value in stream["values"]] == [
        (str(BASE), "SYN_RECV"),
        (str(BASE + 1), "ESTABLISHED"),
        (str(BASE + 2), "FIN_WAIT"),
    ]


def test_the_same_records_are_the_same_bytes() -> None:
    assert encode(*make_flows(100)) == encode(*make_flows(100))


def test_halves_hold_every_entry_once_and_in_order() -> None:
    records = [*make_flows(5), Lost(5, BASE, BASE + 10, "kernel"), *make_flows(4, 5)]
    body = encode(*records)

    first, second = split(body)

    assert (first.events, second.events) == (4, 5)
    assert (first.oldest, second.oldest) == (BASE, BASE + 4_000_000)
    halves = [
        (stream["stream"]["type"], value)
        for half in (first, second)
        for stream in read(half.payload)
        for value in stream["values"]
    ]
    whole = [(stream["stream"]["type"], value) for stream in read(body) for value in stream["values"]]
    assert halves == whole


def test_halving_ends_at_single_entries() -> None:
    parcels = split(encode(*make_flows(5)))
    rounds = 0
    while any(len(split(parcel.payload)) > 1 for parcel in parcels):
        parcels = [part for parcel in parcels for part in split(parcel.payload)]
        rounds += 1

    assert [parcel.events for parcel in parcels] == [1] * 5
    assert rounds == 2


def test_a_replay_is_marked_once_and_changes_nothing_else() -> None:
    body = encode(*make_flows(3))
    replay = mark_replay(body)
    assert replay is not None

    (stream,) = read(replay.payload)

    assert (replay.events, replay.oldest) == (3, BASE)
    assert stream["stream"] == {**LABELS, "type": "NEW", "prot": "TCP", "replay": "1"}
    assert stream["values"] == read(body)[0]["values"]
    assert mark_replay(replay.payload) is None


def test_only_what_is_too_old_is_replayed_where_the_limit_is_known() -> None:
    replay = mark_replay(encode(*make_flows(10)), BASE + 4_000_000)
    assert replay is not None

    assert replay.events == 4
    assert mark_replay(encode(*make_flows(10)), BASE) is None


def test_their_number_tells_what_is_too_old_within_the_second_of_the_limit() -> None:
    replay = mark_replay(encode(*make_flows(10)), BASE + 4_000_000, 2)
    assert replay is not None

    assert [value[2]["flow"] for value in read(replay.payload)[0]["values"]] == ["0", "1"]


def test_losses_can_be_read_back() -> None:
    losses = [
        Lost(5, BASE, BASE + 123_456_789, "kernel"),
        Lost(ABSENT, BASE + 1, BASE + 2, "daemon", "not running"),
    ]

    assert find_losses(encode(make_flow(1), *losses)) == losses
    assert find_losses(encode(make_flow(1))) == []


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

    streams = read(encode(flow, Lost(5, BASE, BASE + 10, "kernel", "reason")))
    names = {name for stream in streams for value in stream["values"] for name in value[2]}

    assert {"nat_src", "icmp_type", "src_as_org", "lost", "duration"} <= names
    assert names <= FIELDS
    assert {name for stream in streams for name in stream["stream"]} - set(LABELS) <= OWN_LABELS
