"""metrics/table.py and exposition.py: a known state is this page, and every counter is in it."""

import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pytest_mock import MockerFixture

from conntrackd.delivery.sink import SinkState
from conntrackd.errors import UnavailableError
from conntrackd.metrics import table
from conntrackd.metrics.exposition import OPENMETRICS, render
from conntrackd.metrics.table import METRICS
from conntrackd.netlink.constants import CTA_STATS_CHAIN_TOOLONG, CTA_STATS_FOUND
from conntrackd.stats import SinkStats, Stats
from tests.metrics.states import OTHERS, make_control, make_counters, make_sinks, make_state

PAGE = Path(__file__).parent / "page.prom"


def test_a_known_state_is_this_page(mocker: MockerFixture) -> None:
    mocker.patch.object(sys, "version", "3.11.2 (main, Apr 28 2025) [GCC 12.2.0]")

    assert render(make_state("a problem")).decode() == PAGE.read_text()


def test_openmetrics_has_the_same_samples() -> None:
    text, other = render(make_state()).decode(), render(make_state(), OPENMETRICS).decode()

    assert other.endswith("# EOF\n")
    samples = [
        [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
        for families in (parse_text(text), parse_openmetrics(other))  # type: ignore[no-untyped-call]
    ]
    assert samples[0] == samples[1]
    assert len(samples[0]) > 100


@pytest.mark.parametrize(
    "name",
    sorted({*(each.name for kind in (Stats, SinkStats) for each in fields(kind)), *OTHERS} - {"problems"}),
)
def test_every_counter_of_stats_is_on_the_page(name: str) -> None:
    """Each has a number of its own in the known state: another number of it is another page."""
    state = make_state()
    counters, sinks = make_counters(), make_sinks()
    if name in counters:
        counters[name] += 77_777
    else:
        sinks["loki"][name] += 77_777
    other = replace(state, statistics=replace(state.statistics, counters=counters, sinks=sinks))

    assert render(other) != render(state)


def test_names_follow_the_convention_and_are_declared_once() -> None:
    names = [metric.name for metric in METRICS]

    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"conntrackd(_[a-z0-9]+)+", name)] == []
    assert [metric.name for metric in METRICS if not metric.help or metric.help.endswith(".")] == []


def test_a_sink_is_in_one_state() -> None:
    for state in SinkState:
        known = replace(make_state(), sinks={"loki": state.value})
        families = {family.name: family for family in parse_text(render(known).decode())}

        found = {sample.labels["state"]: sample.value for sample in families["conntrackd_sink_state"].samples}
        assert found == {each.value: float(each is state) for each in SinkState}


def test_what_an_older_kernel_does_not_count_is_left_out() -> None:
    page = render(make_state(cpus={3: {CTA_STATS_FOUND: 7, 99: 1}})).decode()

    assert 'conntrackd_kernel_found_total{cpu="3"} 7.0\n' in page
    assert "conntrackd_kernel_chaintoolong_total{" not in page
    assert f'{{cpu="{CTA_STATS_CHAIN_TOOLONG}"}}' not in page


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    page = render(replace(make_state(), now_ns=1)).decode()

    assert 'conntrackd_sink_oldest_event_age_seconds{sink="loki"} 0.0\n' in page


def test_a_kernel_that_does_not_answer_leaves_its_part_out(mocker: MockerFixture) -> None:
    mocker.patch.object(table, "ConntrackTable", side_effect=UnavailableError("no answer"))

    page = render(table.gather(make_control(), None)).decode()

    assert re.findall(r"(?m)^conntrackd_(?:table_(?:entries|limit)|kernel_\w+)\b", page) == []
    assert "conntrackd_events_received_total 1000.0\n" in page


def test_what_control_says_is_gathered(mocker: MockerFixture) -> None:
    mocker.patch.object(table, "ConntrackTable", side_effect=UnavailableError("no answer"))

    found = table.gather(make_control("a problem"), None)

    known = make_state("a problem", cpus={})
    assert found == replace(
        known,
        now_ns=found.now_ns,
        table=None,
        statistics=replace(
            known.statistics, rule_matches=(3, 1, 4), rule_suppressed=(0, 0, 3), delays={}, flows=()
        ),
    )
