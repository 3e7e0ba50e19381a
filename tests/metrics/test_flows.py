"""metrics/flows.py: which connections are counted, whatever is written of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from conntrackd.config.read import read_config
from conntrackd.engine import Engine, Sums
from conntrackd.errors import ManyErrors
from conntrackd.filter.sets import NO_SETS
from conntrackd.flow import ALL_EVENTS, EventType, Flow
from conntrackd.metrics.flows import FlowMetric, open_flow_metrics
from conntrackd.pipeline import Pipeline
from conntrackd.records import Records
from tests.engine.feed import ENGINES, set_records
from tests.filter.rows import parse
from tests.sinks.flows import make_flow
from tests.test_pipeline import Gathering, make_pipeline, replay


def open_metrics(pipeline: Pipeline, *items: str) -> tuple[FlowMetric, ...]:
    config = read_config({"metrics.flows": items}, {}, etc=Path("/nowhere"))
    return open_flow_metrics(config, pipeline, NO_SETS)


def make_talk(number: int, port: int) -> list[Flow]:
    found = [make_flow(number, EventType.NEW), make_flow(number, EventType.DESTROY)]
    for flow in found:
        flow.dport = flow.reply_sport = port
    return found


TALKS = [*make_talk(1, 22), *make_talk(2, 443), make_talk(3, 53)[0]]


def count(pipeline: Pipeline, *items: str) -> list[Sums]:
    pipeline.flow_metrics = open_metrics(pipeline, *items)
    replay(pipeline, TALKS)
    return [add(metric) for metric in pipeline.flow_metrics]


def add(metric: FlowMetric) -> Sums:
    """Of all series."""
    sums: Sequence[tuple[int, ...]] = [counts[0] for _, counts in metric.snapshot().series]
    return Sums(*map(sum, zip(*sums, strict=True))) if sums else Sums()


@pytest.mark.parametrize(
    ("where", "opened", "closed"),
    [
        ("", 3, 2),
        ("log destination port 22", 1, 1),
        ("drop destination port 22", 2, 1),
        ("[log destination port 22, drop any]", 1, 1),
        ("[drop destination port 22, log destination port 443]", 1, 1),
        ("[log destination port 443, drop destination port 22]", 2, 1),
        ("log any", 3, 2),
        ("drop any", 0, 0),
    ],
)
def test_a_condition_means_what_it_says(engine: Engine, where: str, opened: int, closed: int) -> None:
    condition = f", where: {where}" if where else ""

    (found,) = count(make_pipeline(engine), f"{{name: a, by: [destination.port]{condition}}}")

    assert found == Sums(opened=opened, closed=closed, living=opened - closed)


def test_what_the_global_filter_drops_is_not_counted(engine: Engine) -> None:
    pipeline = make_pipeline(engine, rules=parse("drop destination port 22"))

    assert count(pipeline, "{name: a}") == [Sums(opened=2, closed=1, living=1)]


def test_what_a_limit_has_held_back_is_not_missed_among_those_that_live(engine: Engine) -> None:
    pipeline = make_pipeline(engine, rules=parse("log type NEW limit 2/hour"))
    pipeline.flow_metrics = open_metrics(pipeline, "{name: a}")

    replay(pipeline, [make_flow(number, EventType.NEW) for number in range(1, 8)])
    replay(pipeline, [make_flow(number, EventType.DESTROY) for number in range(2, 8)])

    assert add(pipeline.flow_metrics[0]) == Sums(opened=2, closed=6, living=1)


@pytest.mark.parametrize(
    ("records", "events", "opened"),
    [
        (Records(), ALL_EVENTS, 3),
        (Records(of_flows=True, remembered=10), ALL_EVENTS, 3),
        (Records(of_events=False, of_flows=True), int(EventType.DESTROY), 0),
    ],
)
def test_a_connection_is_counted_once_whatever_is_written_of_it(
    engine: Engine, records: Records, events: int, opened: int
) -> None:
    pipeline = make_pipeline(engine, [Gathering()], events=events)
    set_records(pipeline, records)

    (found,) = count(pipeline, "{name: a}")

    assert (found.opened, found.closed) == (opened, 2)


def test_a_sample_of_a_condition_is_not_that_of_the_records(engine: Engine) -> None:
    outbox = Gathering()
    pipeline = make_pipeline(engine, [outbox])

    count(pipeline, "{name: a, where: log any sample 1/2}")

    assert b"sample_rate" not in b"".join(bytes(part.text) for part in outbox.given)


def test_an_unchanged_item_counts_on_and_a_changed_one_begins_anew() -> None:
    pipeline = make_pipeline(ENGINES[0])
    count(pipeline, "{name: a}", "{name: b}")

    pipeline.flow_metrics = open_metrics(pipeline, "{name: b, max_series: 7}", "{name: a}")

    assert [add(metric).opened for metric in pipeline.flow_metrics] == [0, 3]


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(ManyErrors) as caught:
        open_metrics(
            make_pipeline(ENGINES[0]),
            "{name: a, where: log prt 22}",
            "{name: b}",
            "{name: c, where: log any limit 1/second}",
        )

    assert [str(error).splitlines()[0] for error in caught.value.errors] == [
        "--metrics.flows: a: unexpected 'prt', did you mean port?",
        "--metrics.flows: c: a limit would count what opens and not what closes",
    ]
