"""The body of a push, and what a reply to it means: values in, values out."""

import email.utils
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.config.labels import FIELDS, OWN_LABELS
from conntrackd.delivery.batch import GZIP, compress
from conntrackd.delivery.sink import SinkRefused, SinkRevised, SinkUnavailable
from conntrackd.flow import EventType, Flow, Location, Lost, Protocol
from conntrackd.render import fields
from conntrackd.render.loki import TEMPLATE
from conntrackd.render.rendered import Rendered, join
from conntrackd.sinks.http_reply import MAX_REPLY, Reply
from conntrackd.sinks.loki_push import (
    Refusals,
    count_refusals,
    gather_streams,
    halve,
    interpret,
    is_named,
    list_kinds,
    mark_replay,
    parse_retry_after,
    split_streams,
    write_streams,
)
from tests.rendering import render, render_all
from tests.sinks.flows import BASE, make_flow, make_flows

LABELS = {"service_name": "conntrackd", "host": "gw1", "env": 'pr"od'}
NOW = 1_763_807_700.0
SECOND = 1_000_000_000
STREAM = '{host="gw1", note="it\'s; 5 errors like: \\"}", prot="TCP", type="NEW"}'
LOST_STREAM = '{host="gw1", type="LOST"}'
OLDEST = "oldest acceptable timestamp is: 2025-11-22T10:34:43Z"


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
    monkeypatch.setattr("conntrackd.delivery.batch.find_isal", lambda: None)

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
    places = {f"{side}{name}" for side in ("", "src_") for name in (*fields.PLACE, *fields.NETWORK)}

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


# ---- replies ---------------------------------------------------------------------------------------------


def make_events(count: int = 3) -> Rendered:
    return render(TEMPLATE, make_flows(count))


def find_verdict(reply: Reply, payload: Rendered) -> SinkRefused | SinkRevised | SinkUnavailable | None:
    try:
        interpret(reply, payload, NOW)
    except (SinkRefused, SinkRevised, SinkUnavailable) as verdict:
        return verdict
    return None


def test_one_reply_means_that_it_is_stored() -> None:
    assert find_verdict(Reply(204, {}), make_events()) is None


@pytest.mark.parametrize("status", [200, 201, 202, 203, 205, 206, 207, 226, 299])
@pytest.mark.parametrize("body", [b"", b"<html>Welcome to the hotel's network</html>"])
def test_no_other_success_is_one_of_loki(status: int, body: bytes) -> None:
    verdict = find_verdict(Reply(status, {}, body), make_events())

    assert isinstance(verdict, SinkUnavailable)
    assert "check that the address is Loki's" in verdict.reason


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 406, 407, 410, 415, 431, 451])
def test_a_refusal_that_is_not_about_the_events_costs_none(status: int) -> None:
    verdict = find_verdict(Reply(status, {}, b"no"), make_events())

    assert isinstance(verdict, SinkUnavailable)
    assert verdict.reason.startswith(f"the server replied {status}: no")


@pytest.mark.parametrize("status", [408, 421, 425, 429, 500, 501, 502, 503, 504, 511, 520, 599])
def test_these_replies_are_tried_again_when_the_server_says(status: int) -> None:
    verdict = find_verdict(Reply(status, {"retry-after": "7"}, b"busy"), make_events())

    assert isinstance(verdict, SinkUnavailable)
    assert verdict.retry_after == 7.0
    assert verdict.reason.startswith(f"the server replied {status}: busy")


@pytest.mark.parametrize("status", [260, 400, 422])
def test_these_replies_cost_the_batch(status: int) -> None:
    verdict = find_verdict(Reply(status, {}, b"no org id\n"), make_events())

    assert isinstance(verdict, SinkRefused)
    assert (verdict.reason, verdict.events) == (f"the server replied {status}: no org id", None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_outage_that_names_its_cause(status: int) -> None:
    verdict = find_verdict(Reply(status, {"Location": "http://evil.example/"}), make_events())

    assert isinstance(verdict, SinkUnavailable)
    assert verdict.reason == f"Loki redirects ({status}), which is not followed: check the address"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(413, {}),
        Reply(
            500, {}, b"rpc error: code = ResourceExhausted desc = grpc: received message larger than max (5)"
        ),
    ],
)
def test_what_is_too_large_is_halved_and_a_single_event_is_dropped(reply: Reply) -> None:
    halved, single = find_verdict(reply, make_events(4)), find_verdict(reply, make_events(1))

    assert isinstance(halved, SinkRevised)
    assert [part.events for part in halved.parts or ()] == [2, 2]
    assert isinstance(single, SinkRefused)


@pytest.mark.parametrize(
    "text",
    [
        b"entry with timestamp 2025-11-22 10:34:43 ignored, reason: 'entry too far behind'",
        b"entry out of order",
        b"entry for stream '{}' has timestamp too old: x, oldest acceptable timestamp is: nonsense",
        b"entry for stream '{}' has timestamp too old: x, oldest acceptable timestamp is: ",
    ],
)
def test_what_is_too_old_is_replayed_once_and_then_dropped(text: bytes) -> None:
    first = find_verdict(Reply(400, {}, text), make_events())
    assert isinstance(first, SinkRevised)
    (part,) = first.parts or ()
    second = find_verdict(Reply(400, {}, text), part)

    assert (part.events, first.written) == (3, 0)
    assert isinstance(second, SinkRefused)


def test_where_the_number_is_not_known_what_lies_before_the_limit_is_replayed() -> None:
    text = f"entry for stream '{{}}' has timestamp too old: x, {OLDEST}; and more"
    flows = [make_flow(number, time=BASE + (number - 3) * 1_000_000_000) for number in range(6)]
    verdict = find_verdict(Reply(400, {}, text.encode()), render(TEMPLATE, flows))

    assert isinstance(verdict, SinkRevised)
    # Loki tells its limit in whole seconds, and what lies within that second may have been refused.
    assert ([part.events for part in verdict.parts or ()], verdict.written) == ([4], 2)


def old(second: int, stream: str = STREAM) -> str:
    return f"entry for stream '{stream}' has timestamp too old: 2025-11-22T10:34:{second}Z, {OLDEST}"


def new(stream: str = STREAM) -> str:
    return f"entry for stream '{stream}' has timestamp too new: 2035-11-22T10:34:43Z"


def test_of_a_batch_that_is_partly_too_old_exactly_that_part_is_replayed() -> None:
    """The limit is told in whole seconds; how many lie before it within its second, their number tells."""
    said = f"2 errors like: {old(41)}; 4 errors like: {old(43)}"
    flows = [make_flow(number, time=BASE + (number - 4) * SECOND // 4) for number in range(10)]
    verdict = find_verdict(Reply(400, {}, said.encode()), render(TEMPLATE, flows))

    assert isinstance(verdict, SinkRevised)
    assert ([part.events for part in verdict.parts or ()], verdict.written) == ([6], 4)


@pytest.mark.parametrize("said", [old(42, LOST_STREAM), new(LOST_STREAM), "entry out of order", "no"])
def test_a_loss_is_refused_as_a_whole_to_be_reported_with_a_new_time(said: str) -> None:
    loss = TEMPLATE.render_loss(Lost(7, BASE, BASE + 2, "kernel"))
    verdict = find_verdict(Reply(400, {}, said.encode()), loss)

    assert isinstance(verdict, SinkRefused)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (new(), Refusals(0, 0, 1)),
        (f"3 errors like: {new()}", Refusals(0, 0, 3)),
        (f"3 errors like: {new()}; 1 errors like: {new(LOST_STREAM)}", Refusals(0, 0, 3, 1)),
        (f"3 errors like: {new()}; 2 errors like: {old(43)}\n", Refusals(2, 2, 3)),
        (f"2 errors like: {old(43, LOST_STREAM)}; 2 errors like: {old(43)}", Refusals(4, 2, 0, 2)),
        (
            f"max entry size '10' bytes exceeded for stream '{STREAM}' while adding an entry with length '11'"
            " bytes",
            Refusals(0, 0, 1),
        ),
        (
            f"7 errors like: stream '{STREAM}' includes structured metadata, but this feature is disallowed."
            f" Please see `limits_config.allow_structured_metadata` or contact; 1 errors like: {new()}",
            Refusals(0, 0, 8),
        ),
        (
            f"stream '{STREAM}' has structured metadata too large: '9' bytes, limit: '8' bytes. Please see",
            Refusals(0, 0, 1),
        ),
        (f"entry for stream '{STREAM}' has 16 label names; limit 15", None),
        (f"2 errors like: {new()}; entry for stream '{STREAM}' has 16 label names; limit 15", None),
        (f"{new()}; and more", None),
        ("user 'fake', total ignored: 1 out of 3 for stream: {}", None),
        ("", None),
    ],
)
def test_refused_entries_are_counted_where_nothing_else_is_said(said: str, refused: Refusals | None) -> None:
    assert count_refusals(said) == refused


def test_of_a_push_with_bad_entries_the_good_ones_are_stored() -> None:
    few = find_verdict(Reply(400, {}, f"2 errors like: {new()}".encode()), make_events(5))
    mixed = find_verdict(
        Reply(400, {}, f"2 errors like: {new()}; 1 errors like: {old(43)}".encode()), make_events(5)
    )
    cut = find_verdict(Reply(400, {}, (f"{new()}; " * 1000).encode()[:MAX_REPLY]), make_events(5))

    assert isinstance(few, SinkRefused)
    assert few.events == 2
    assert isinstance(mixed, SinkRevised)
    assert ([part.events for part in mixed.parts or ()], mixed.written) == ([1], 2)
    assert isinstance(cut, SinkRefused)
    assert cut.events is None


def test_of_a_replay_too_the_good_entries_are_stored() -> None:
    first = find_verdict(Reply(400, {}, b"entry out of order"), make_events(5))
    assert isinstance(first, SinkRevised)
    second = find_verdict(Reply(400, {}, f"3 errors like: {old(43)}".encode()), (first.parts or ())[0])

    assert isinstance(second, SinkRefused)
    assert second.events == 3


PIECES = [
    old(43),
    new(),
    new(LOST_STREAM),
    "; ",
    "3 errors like: ",
    "too far behind",
    "'{",
    '"',
    OLDEST,
    "\xff",
]


@given(
    st.sampled_from([260, 302, 400, 413, 429, 500]),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join),
)
def test_whatever_is_said_no_event_has_two_fates(status: int, said: str) -> None:
    verdict = find_verdict(Reply(status, {}, said.encode()), make_events(5))

    assert verdict is not None
    if isinstance(verdict, SinkRevised):
        parts = [part.events for part in verdict.parts or ()]
        assert min(parts) > 0
        assert verdict.written >= 0
        assert sum(parts) + verdict.written <= 5
    if isinstance(verdict, SinkRefused):
        assert verdict.events is None or verdict.events >= 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        ("0", 0.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("-5", None),
        ("soon", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_no_control_character_of_a_reply_reaches_people() -> None:
    reply = Reply(400, {}, "a\x1b]0;owned\x07\r\nb\u202ec\xff".encode() + b"\xff" + b"x" * 1000)

    assert reply.text.isprintable()
    assert reply.text.startswith("a ]0;owned b c\xff\ufffdxx")
    assert len(reply.text) <= 300
