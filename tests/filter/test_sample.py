"""`sample 1/N`: the same flows in the reference, the core and the kernel, and as many as it says."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.engine import Engine, EventBatch
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.sample import MAX_RATE, WORD, is_sampled, mix
from conntrackd.filter.shadowing import list_shadowed
from conntrackd.filter.table import compile_table
from conntrackd.flow import ALL_EVENTS, Flow
from conntrackd.render import json as json_lines
from tests.core.deciding import Core
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.filter.rows import FLOW, canonical, parse, read_mistake
from tests.filter.test_kernel import passes
from tests.messages import build_message

Sampled = tuple[int, int | None]
RANDOM = random.Random(1)
IDS = [RANDOM.getrandbits(32) for _ in range(1 << 16)]
# A sample that is fair is off by more than this in one of 10^15 trials; and the ids are the same in each run.
SIGMAS = 8


def with_id(flow_id: int, event_type: int = 1, port: int = 443) -> Flow:
    return replace(FLOW, id=flow_id, type=event_type, dport=port)


# -- the words


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("log any sample 1/2", "log any sample 1/2"),
        ("ALLOW port 53, type NEW SAMPLE 1/0100 # DNS", "log port 53 or type NEW sample 1/100"),
        ("log (type NEW) sample 1/1000000", "log type NEW sample 1/1000000"),
        ('log nat ANY and city "sample" sample 1/3', 'log nat ANY and city "sample" sample 1/3'),
        # What was a rule before is the same rule.
        ("log city sample", 'log city "sample"'),
        ("log city Sample, Ulm and any", 'log city "sample","ulm" and any'),
        ("log city Ulm, sample", 'log city "sample","ulm"'),
        ("log (city sample) or country DE", 'log city "sample" or country DE'),
        ("log country sample sample 1/9", 'log country "sample" sample 1/9'),
    ],
)
def test_a_sample_ends_a_rule_and_the_word_is_a_value_elsewhere(text: str, rendered: str) -> None:
    assert canonical(text) == rendered
    assert canonical(rendered) == rendered


@pytest.mark.parametrize(
    ("text", "marked", "message"),
    [
        ("log any sample 1/1", "1/1", "'1/1' is not a valid sample"),
        ("log any sample 1/1000001", "1/1000001", "'1/1000001' is not a valid sample"),
        ("log any sample 2/3", "2/3", "'2/3' is not a valid sample"),
        ("log any sample 10", "10", "'10' is not a valid sample"),
        ("log any sample 1/0x10", "1/0x10", "'1/0x10' is not a valid sample"),
        ("log any sample", " ", "the rule ends where a value is missing"),
        ("log any sample 1/2 and type NEW", "and", "unexpected 'and' behind the sample"),
        ("log any sample 1/2 sample 1/3", "sample", "unexpected 'sample' behind the sample"),
        ("drop any sample 1/2", "sample 1/2", "a rule that drops has no sample"),
        ("log any smaple 1/2", "smaple", "unexpected 'smaple', did you mean sample?"),
        ("log sample 1/2 any", "sample", "unexpected 'sample'"),
    ],
)
def test_a_mistake_is_named_under_its_words(text: str, marked: str, message: str) -> None:
    said, words = read_mistake(text)

    assert said.startswith(message)
    assert words == marked


# -- the hash


def is_fair(hits: int, trials: int, share: float) -> bool:
    return abs(hits - trials * share) <= SIGMAS * sqrt(trials * share * (1 - share))


@pytest.mark.parametrize("rate", [2, 3, 7, 10, 16, 100, 1000])
def test_the_sample_has_as_many_flows_as_it_says(rate: int) -> None:
    assert is_fair(sum(is_sampled(flow_id, rate) for flow_id in IDS), len(IDS), 1 / rate)
    # Ids of a kernel before 5.1 are places in memory, which have a distance.
    assert is_fair(
        sum(is_sampled(320 * flow_id & WORD, rate) for flow_id in range(1 << 14)), 1 << 14, 1 / rate
    )


@pytest.mark.parametrize("readers", range(2, 17))
@pytest.mark.parametrize("rate", [2, 3, 8, 16])
def test_each_reader_has_its_part_of_the_sample(readers: int, rate: int) -> None:
    for number in range(readers):
        share = [flow_id for flow_id in IDS if flow_id % readers == number]
        assert is_fair(sum(is_sampled(flow_id, rate) for flow_id in share), len(share), 1 / rate)


def test_samples_are_nested() -> None:
    assert all(is_sampled(flow_id, 10) for flow_id in IDS if is_sampled(flow_id, 100))
    assert all(is_sampled(flow_id, 99) for flow_id in IDS if is_sampled(flow_id, 100))


@given(st.integers(0, WORD), st.integers(2, MAX_RATE))
def test_the_highest_and_the_lowest_hash_are_the_ends(flow_id: int, rate: int) -> None:
    assert is_sampled(flow_id, rate) is (mix(flow_id) * rate <= WORD)


# -- the three that decide


@pytest.mark.parametrize("rate", [2, 3, 10, 1000])
def test_reference_core_and_kernel_have_the_same_flows(rate: int) -> None:
    rules = parse(f"log type NEW,DESTROY sample 1/{rate}", "drop any")
    flows = [with_id(flow_id) for flow_id in [0, 1, WORD, 1 << 31, *IDS[:2000]]]
    expected = [is_sampled(flow.id, rate) for flow in flows]
    kernel = compile_kernel(rules, protocols=None, events=ALL_EVENTS)

    assert [evaluate(rules, flow).keep for flow in flows] == expected
    assert Core(compile_table(rules)).keep(flows) == [n for n, kept in enumerate(expected) if kept]
    assert passes(kernel.program, [build_message(flow) for flow in flows]) == expected


def test_a_flow_has_all_of_its_events_or_none() -> None:
    rules = parse("log port 443 sample 1/3", "drop any")
    core = Core(compile_table(rules))
    for flow_id in IDS[:300]:
        kept = core.keep([with_id(flow_id, event_type) for event_type in (1, 2, 2, 4)])
        assert kept == ([0, 1, 2, 3] if is_sampled(flow_id, 3) else [])


def test_the_first_match_wins_though_it_is_not_logged() -> None:
    rules = parse("log port 443 sample 1/2", "log port 443", "log any")
    core = Core(compile_table(rules))
    flows = [with_id(flow_id) for flow_id in IDS[:100]]

    assert core.keep(flows) == [n for n, flow in enumerate(flows) if is_sampled(flow.id, 2)]
    assert core.table.counts == [0, 100, 0, 0]
    assert [rule.number for rule in list_shadowed(rules)] == [2]


@pytest.mark.parametrize("condition", ["country DE", "duration > 5s", "not country DE and port 443"])
def test_what_the_kernel_cannot_decide_it_does_not_sample(condition: str) -> None:
    """The next rule may want the flow."""
    rules = parse(f"log {condition} sample 1/1000", "log port 443", "drop any")
    kernel = compile_kernel(rules, protocols=None, events=ALL_EVENTS)

    assert passes(kernel.program, [build_message(with_id(flow_id)) for flow_id in IDS[:50]]) == [True] * 50


# -- the record


def open_batch(engine: Engine, flows: Sequence[Flow]) -> EventBatch:
    batch = engine.open_batch()
    messages = b"".join(map(build_message, flows))
    assert batch.load(messages, 0, RECEIVED_NS)[1] == len(flows)
    return batch


def read_records(engine: Engine, batch: EventBatch, kept: bytes, part: object = None) -> list[Sampled]:
    """Ids and rates of the records of these events."""
    if not kept:
        return []
    text = engine.render(batch, engine.compile_template(json_lines.TEMPLATE), kept, None, part).text
    return [(record["flow"], record.get("sample_rate")) for record in map(json.loads, text.splitlines())]


def list_records(
    engine: Engine, flows: Sequence[Flow], texts: Sequence[str], more: Sequence[str] = ()
) -> list[Sampled]:
    """What is left of the flows when a filter, and then one behind it, has decided."""
    batch = open_batch(engine, flows)
    kept, part = engine.decide(batch, engine.compile_table(parse(*texts)), None, None), None
    if more:
        part = engine.compile_table(parse(*more))
        kept = engine.decide(batch, part, kept, None, is_part=True)
    return read_records(engine, batch, kept, part)


FLOWS = [with_id(flow_id, port=port) for flow_id in IDS[:100] for port in (53, 443)]
MIXED = ("log port 53 sample 1/4", "log any")


def test_a_record_has_the_rate_of_its_sample_and_no_other_has_one(engine: Engine) -> None:
    expected = [
        (flow.id, 4 if flow.dport == 53 else None)
        for flow in FLOWS
        if flow.dport == 443 or is_sampled(flow.id, 4)
    ]

    assert list_records(engine, FLOWS, MIXED) == expected


@pytest.mark.parametrize(("rate", "rates"), [(2, {4, 2}), (10, {10}), (0, {4, None})])
def test_of_a_sample_of_a_sample_the_rate_is_that_of_the_smaller(
    engine: Engine, rate: int, rates: set[int | None]
) -> None:
    second = f"log any sample 1/{rate}" if rate else "log any"
    found = list_records(engine, FLOWS, MIXED, [second])

    assert {rate for _, rate in found} == rates
    assert [flow_id for flow_id, _ in found] == [
        flow.id
        for flow in FLOWS
        if is_sampled(flow.id, rate) and (flow.dport == 443 or is_sampled(flow.id, 4))
    ]


def test_parts_that_are_decided_before_any_is_written_have_each_its_own_rates(engine: Engine) -> None:
    batch = open_batch(engine, FLOWS)
    kept = engine.decide(batch, engine.compile_table(parse(*MIXED)), None, None)
    rules = ["log any sample 1/5", "log any", "log port 53 sample 1/2"]
    tables = [engine.compile_table(parse(text)) for text in rules]
    parts = [(table, engine.decide(batch, table, kept, None, is_part=True)) for table in tables]
    whole = read_records(engine, batch, kept)

    for _ in range(2):  # what was written is written the same again
        found = [{rate for _, rate in read_records(engine, batch, part, table)} for table, part in parts]
        assert found == [{5}, {4, None}, {4, None}]
        assert read_records(engine, batch, kept) == whole
        assert {rate for _, rate in whole} == {4, None}


def test_the_scaled_sum_is_that_of_all_within_its_bounds(engine: Engine) -> None:
    flows = [with_id(flow_id) for flow_id in IDS[:4000]]
    total = 0
    for start in range(0, len(flows), 200):
        total += sum(
            rate or 0 for _, rate in list_records(engine, flows[start : start + 200], ["log any sample 1/10"])
        )

    assert is_fair(total // 10, len(flows), 1 / 10)


def test_only_a_table_has_rates_of_a_part() -> None:
    native = ENGINES[0]
    batch = open_batch(native, FLOWS[:1])
    template = native.compile_template(json_lines.TEMPLATE)

    with pytest.raises(TypeError, match="a part is decided by a Table"):
        batch.render(template.core, None, template.core)  # type: ignore[attr-defined]
