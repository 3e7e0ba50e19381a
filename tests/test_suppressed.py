"""What limits hold back: reported by rule, to whom it concerns, once a second, and never forgotten."""

import json as parser
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.delivery.batch import Batch, pack_batch, unpack_batch
from conntrackd.delivery.losses import describe_losses, dump_losses, join_losses, load_losses
from conntrackd.delivery.outbox import Outbox
from conntrackd.engine import Engine
from conntrackd.flow import Lost
from conntrackd.pipeline import Pipeline
from conntrackd.render import json, loki, syslog
from conntrackd.render.parse import parse_record
from conntrackd.render.rendered import HELD
from conntrackd.sinks.loki_push import gather_streams, write_streams
from tests.engine.feed import ENGINES
from tests.filter.rows import parse
from tests.sinks.flows import make_flows
from tests.test_pipeline import make_pipeline
from tests.test_sink_filters import Gathering, process

RULE = 'log source city "ulm" or any limit 2/day'
OWN = "log any limit 3/day burst 1"
WHOLE = parse("log any limit 1/day burst 3", "log any")
HELD_BACK = Lost(7, 1_000_000_000, 2_000_000_000, "sink.loki.filter", RULE, 3)


def report(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """As the daemon does, at this time."""
    monkeypatch.setattr("conntrackd.pipeline.time.monotonic", lambda: now)
    pipeline.report_suppressed()


def list_reports(outbox: Gathering) -> list[tuple[str, int, int]]:
    return [(lost.where, lost.rule, lost.count) for lost in outbox.losses]


def test_each_sink_hears_of_the_global_rules_and_of_its_own_and_once_a_second(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    outboxes = [Gathering("stream"), Gathering("loki")]
    pipeline = make_pipeline(engine, outboxes, parse("drop port 1", RULE), {"loki": parse(OWN)})
    process(pipeline, make_flows(6))
    report(pipeline, monkeypatch, 10.0)
    process(pipeline, make_flows(5))
    report(pipeline, monkeypatch, 10.9)
    first = [list_reports(outbox) for outbox in outboxes]
    report(pipeline, monkeypatch, 11.0)
    report(pipeline, monkeypatch, 20.0)

    assert first == [[("filter", 2, 4)], [("filter", 2, 4), ("sink.loki.filter", 1, 1)]]
    assert [list_reports(outbox) for outbox in outboxes] == [
        [("filter", 2, 4), ("filter", 2, 5)],
        [("filter", 2, 4), ("sink.loki.filter", 1, 1), ("filter", 2, 5)],
    ]
    assert {lost.reason for lost in outboxes[0].losses} == {RULE}
    assert [len(outbox.flows) for outbox in outboxes] == [2, 1]
    stats = pipeline.stats
    assert (stats.events_filtered_total, stats.events_suppressed_total, stats.events_lost_total) == (9, 9, 0)


def test_what_a_filter_has_held_back_is_reported_though_another_one_is_in_force(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, own = Gathering("loki"), parse(OWN)
    pipeline = make_pipeline(engine, [outbox], WHOLE, {"loki": own})
    process(pipeline, make_flows(10))
    unlimited = [engine.compile_table(())]
    pipeline.set_tables([engine.compile_table(WHOLE)], {"loki": unlimited})
    old = pipeline.tables
    process(pipeline, make_flows(10))
    pipeline.set_tables(unlimited, {})
    pipeline.tables = old  # a reader that is still in a batch of before
    process(pipeline, make_flows(4))
    report(pipeline, monkeypatch, 1.0)
    process(pipeline, make_flows(2))
    report(pipeline, monkeypatch, 2.0)
    pipeline.readers[0].turns += 1
    process(pipeline, make_flows(1))
    report(pipeline, monkeypatch, 3.0)

    # Of one rule one record; and full buckets for each filter.
    assert list_reports(outbox) == [
        ("filter", 1, 18),
        ("sink.loki.filter", 1, 2),
        ("filter", 1, 2),
        ("filter", 1, 1),
    ]
    assert len(outbox.flows) == 3 - 2 + 3
    report(pipeline, monkeypatch, 4.0)
    process(pipeline, make_flows(1))
    report(pipeline, monkeypatch, 5.0)
    assert len(outbox.losses) == 4, "no reader is in a batch of before any more"


def test_a_sink_with_a_name_that_was_removed_has_what_its_limits_held_back(engine: Engine) -> None:
    stays, goes = Gathering("stream"), Gathering("audit")
    pipeline = make_pipeline(engine, [stays, goes], WHOLE, {"audit": parse(OWN)})
    process(pipeline, make_flows(6))
    pipeline.outboxes = cast(tuple[Outbox, ...], (stays,))
    pipeline.report_suppressed(at_once=True, removed=[cast(Outbox, goes)])

    assert list_reports(stays) == [("filter", 1, 3)]
    assert list_reports(goes) == [("filter", 1, 3), ("sinks.audit.filter", 1, 2)]


def test_a_filter_that_stays_keeps_its_buckets(engine: Engine) -> None:
    outbox = Gathering("loki")
    tables = [engine.compile_table(WHOLE)]
    pipeline = make_pipeline(engine, [outbox])
    for _ in range(3):
        pipeline.set_tables(tables, {})
        process(pipeline, make_flows(2))
    pipeline.report_suppressed(at_once=True)

    assert (len(outbox.flows), list_reports(outbox)) == (3, [("filter", 1, 3)])


@settings(max_examples=40)
@given(st.lists(st.sampled_from(("events", "report", "reload", "own")), max_size=20))
def test_logged_and_reported_are_what_was_matched(steps: Sequence[str]) -> None:
    for engine in ENGINES:
        outboxes, sent = [Gathering("stream"), Gathering("loki")], 0
        pipeline = make_pipeline(engine, outboxes, WHOLE, {"loki": parse(OWN)})
        rules, own = [engine.compile_table(WHOLE)], [engine.compile_table(parse(OWN))]
        for step in steps:
            if step == "events":
                process(pipeline, make_flows(4))
                sent += 4
            elif step == "report":
                pipeline.report_suppressed(at_once=True)
            else:
                rules = [engine.compile_table(WHOLE)] if step == "reload" else rules
                own = [engine.compile_table(parse(OWN))] if step == "own" else own
                pipeline.set_tables(rules, {"loki": own})
        pipeline.report_suppressed(at_once=True)
        reported = [Counter[str](), Counter[str]()]
        for outbox, counts in zip(outboxes, reported, strict=True):
            for lost in outbox.losses:
                counts[lost.where] += lost.count

        assert len(outboxes[0].flows) + reported[0]["filter"] == sent
        assert len(outboxes[1].flows) + reported[1]["sink.loki.filter"] == len(outboxes[0].flows)
        assert reported[0].keys() <= {"filter"}
        assert reported[1]["filter"] == reported[0]["filter"] == pipeline.stats.events_suppressed_total


# -- the record


def read_record() -> dict[str, Any]:
    record: dict[str, Any] = parser.loads(json.TEMPLATE.render_loss(HELD_BACK).text)
    return record


def test_a_record_says_how_many_and_by_which_rule_at_the_level_of_events() -> None:
    record = read_record()

    assert parse_record(record) is None
    for name in ("time", "since", "until"):
        del record[name]
    assert record == {
        "level": "INFO",
        "msg": "SUPPRESSED 7 events beyond the limit of rule 3 of sink.loki.filter",
        "type": "SUPPRESSED",
        "suppressed": 7,
        "rule": 3,
        "where": "sink.loki.filter",
        "reason": RULE,
    }
    message = syslog.make_template("rfc5424", "daemon", "gw", 1).render_loss(HELD_BACK).text.decode()
    assert message.startswith("<30>1 ")
    assert "SUPPRESSED [" in message
    assert 'suppressed="7" rule="3"' in message


def test_loki_has_a_stream_of_its_own_for_it() -> None:
    lost = Lost(5, 0, 0, "kernel")
    for held, kind in ((HELD_BACK, "SUPPRESSED"), (lost, "LOST")):
        rendered = loki.TEMPLATE.render_loss(held)
        body = parser.loads(b"".join(write_streams(gather_streams([rendered]), {"host": "gw"})))
        (stream,) = body["streams"]
        assert stream["stream"] == {"host": "gw", "type": kind}
        assert stream["values"][0][2]["level"] == ("INFO" if held.rule else "WARN")
    assert loki.TEMPLATE.render_loss(HELD_BACK).streams[0].type == HELD


def test_on_its_way_it_is_joined_with_its_like_alone_and_is_no_loss() -> None:
    own = Lost(1, 500, 600, "sink.loki.filter", RULE)  # a loss of such a place and reason
    later = Lost(2, 1_500_000_000, 3_000_000_000, "sink.loki.filter", RULE, 3)

    joined = join_losses([HELD_BACK, own, later])
    assert joined == (Lost(9, 1_000_000_000, 3_000_000_000, "sink.loki.filter", RULE, 3), own)
    assert load_losses(parser.loads(parser.dumps(dump_losses(joined)))) == joined
    for lost in joined:
        assert unpack_batch(pack_batch(Batch.of_loss(lost))) == Batch.of_loss(lost)
    assert describe_losses([HELD_BACK]) == ""
