"""What a reply of Loki means: values in, a verdict out."""

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.delivery.sink import SinkRefused, SinkRevised, SinkUnavailable
from conntrackd.flow import Lost
from conntrackd.render.loki import TEMPLATE
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.http_reply import MAX_REPLY, Reply
from conntrackd.sinks.loki_reply import Refusals, count_refusals, interpret, parse_retry_after
from tests.rendering import render
from tests.sinks.flows import BASE, make_flow, make_flows

NOW = 1_763_807_700.0
SECOND = 1_000_000_000
STREAM = '{host="gw1", note="it\'s; 5 errors like: \\"}", prot="TCP", type="NEW"}'
LOST_STREAM = '{host="gw1", type="LOST"}'
OLDEST = "oldest acceptable timestamp is: 2025-11-22T10:34:43Z"


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
