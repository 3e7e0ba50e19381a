"""What a batch asks of Python does not depend on how many events are in it."""

import sys
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any, cast

import pytest

from conntrackd.engine import SeriesField
from conntrackd.flow import ALL_EVENTS, EventType, Flow, Location
from conntrackd.metrics.flows import FlowMetric
from conntrackd.netlink.table import ConntrackTable
from conntrackd.records import Records
from conntrackd.render import journal, json, loki, schema, syslog
from conntrackd.render.anonymize import Anonymizer
from conntrackd.source.heartbeat import Heartbeat
from conntrackd.stats import Stats
from conntrackd.tails import Tail
from tests.engine.feed import ENGINE, RECEIVED_NS, set_records
from tests.engine.rendering import Databases
from tests.filter.rows import parse
from tests.messages import build_message
from tests.sinks.flows import make_flow
from tests.test_pipeline import Gathering, make_pipeline

TYPES = (EventType.NEW, EventType.UPDATE, EventType.DESTROY)
TEMPLATES = (
    json.TEMPLATE,
    journal.TEMPLATE,
    loki.TEMPLATE,
    syslog.make_template("rfc5424", "daemon", "gw1", 42),
    json.make_template(None, schema.SCHEMAS["ecs"]),
    json.TEMPLATE.anonymize(Anonymizer(ipv4_bits=8)),
)
FEW, MANY = 24, 240


def make_events(count: int) -> list[Flow]:
    """Of eight addresses, all of which are known when each has come once."""
    flows = [make_flow(number, TYPES[number % 3]) for number in range(count)]
    for flow in flows:
        flow.src = flow.reply_dst = bytes([10, 0, 0, flow.id % 8])
    return flows


def count_steps(call: Callable[[], None]) -> int:
    """Instructions of Python's that it takes, those of all functions together."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("of_events", [True, False], ids=["both", "flows"])
def test_python_does_as_much_for_few_events_as_for_many(of_events: bool) -> None:
    """With all that a reader can be asked for: Locations, filters and forms, FLOWs, tails, series, deltas."""
    outboxes = [Gathering(MANY * 2, template) for template in TEMPLATES]
    for number, outbox in enumerate(outboxes):
        outbox.name = f"sink{number}"
    rules = {outbox.name: parse("log source address 10.0.0.0/8") for outbox in outboxes}
    databases = Databases({bytes([10, 0, 0, number]): Location(city=f"No. {number}") for number in range(8)})
    types = ALL_EVENTS if of_events else int(EventType.DESTROY)
    pipeline = make_pipeline(ENGINE, outboxes, parse("log any"), rules, geoip=databases, events=types)
    set_records(pipeline, Records(of_events=of_events, of_flows=True, remembered=1000))
    pipeline.community_seeds = (0, {})
    series = ENGINE.open_series([SeriesField("dport")], 100)
    pipeline.flow_metrics = [FlowMetric(cast(Any, None), series, (ENGINE.compile_table(parse("log any")),))]
    pipeline.heartbeat = Heartbeat(cast(ConntrackTable, SimpleNamespace()), ENGINE, Stats(), 60.0, 1000)
    pipeline.tails.wanting = (Tail([ENGINE.compile_table([])], -1, None),)
    reader = pipeline.readers[0]

    def process(count: int) -> int:
        messages = b"".join(map(build_message, make_events(count)))
        assert reader.batch.load(messages, 0, RECEIVED_NS)[1] == count
        return count_steps(lambda: reader.process(reader.batch, count, 0, 0))

    process(MANY)  # makes templates, and learns the addresses
    few, many = process(FEW), process(MANY)

    given = [sum(part.events for part in outbox.given) for outbox in outboxes]
    assert given == [(FEW + 2 * MANY) * (4 if of_events else 1) // 3] * len(TEMPLATES)
    assert many == few
