"""`limit RATE` on a rule: the same in reference and core, never more than it says, and nothing forgotten."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import count as count_from
from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conntrackd.core import _core as core
from conntrackd.engine import Engine, Opaque, Selection
from conntrackd.errors import ManyErrors
from conntrackd.filter import buckets, cost, limit
from conntrackd.filter.ast import Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.grammar import parse_rules
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.limit import Limit, assemble_limits
from conntrackd.filter.shadowing import list_shadowed
from conntrackd.filter.table import assemble, compile_table
from conntrackd.flow import ALL_EVENTS, NANO, Flow
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.filter import strategies
from tests.filter.rows import FLOW, IPV6, canonical, parse, read_mistake
from tests.filter.test_kernel import passes
from tests.messages import build_message

SEED = 1
SLOTS = 256
Step = tuple[int, list[Flow]]
"""Nanoseconds since the step before, and the events of a batch."""


def with_source(number: int) -> Flow:
    return replace(FLOW, src=number.to_bytes(4, "big"))


class Deciding:
    """Rules in force in one engine, asked at times of its own clock."""

    def __init__(self, engine: Engine, rules: Sequence[Rule], readers: int = 1) -> None:
        self.engine, self.rules = engine, rules
        self.limits = engine.open_limits(rules, SEED)
        self.tables = [engine.compile_table(rules, limits=self.limits) for _ in range(readers)]
        self.batch: Opaque = engine.open_batch()

    def keep(self, flows: Sequence[Flow], now: int, reader: int = 0) -> Selection:
        """Of up to SLOTS events, those that are logged."""
        messages = b"".join(map(build_message, flows))
        assert self.batch.load(messages, 0, RECEIVED_NS + now)[1] == len(flows)
        return self.engine.decide(self.batch, self.tables[reader], None, None, now=now)

    @property
    def totals(self) -> list[int]:
        return [0] * (len(self.rules) + 1) if self.limits is None else self.limits.totals

    def take(self) -> list[tuple[int, int, int, int]]:
        return [] if self.limits is None else [(*held,) for held in self.limits.take()]

    @property
    def counts(self) -> list[int]:
        return [sum(counts) for counts in zip(*(table.counts for table in self.tables), strict=True)]


# -- the words


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("log any limit 10/second", "log any limit 10/second"),
        (
            "ALLOW type NEW LIMIT 010/Minute BURST 20 PER Src # scans",
            "log type NEW limit 10/minute burst 20 per source",
        ),
        ("log (port 22) limit 3/hour burst 3 per dest", "log port 22 limit 3/hour per destination"),
        ("log any limit 100000/day per network/024", "log any limit 100000/day per network/24"),
        # What was a rule before is the same rule.
        ("log city limit", 'log city "limit"'),
        ("log city Limit, Per and any", 'log city "limit","per" and any'),
        ("log country limit limit 1/day", 'log country "limit" limit 1/day'),
        ("log city burst or country DE", 'log city "burst" or country DE'),
    ],
)
def test_a_limit_ends_a_rule_and_its_words_are_values_elsewhere(text: str, rendered: str) -> None:
    assert canonical(text) == rendered
    assert canonical(rendered) == rendered


@pytest.mark.parametrize(
    ("text", "marked", "message"),
    [
        ("log any limit 0/day", "0/day", "'0/day' is not a valid rate"),
        ("log any limit 100001/day", "100001/day", "'100001/day' is not a valid rate"),
        ("log any limit 10", "10", "'10' is not a valid rate"),
        ("log any limit 10/sec", "10/sec", "unknown unit 'sec', did you mean second?"),
        ("log any limit", " ", "the rule ends where a value is missing"),
        ("log any limit 1/day burst", "burst", "the burst is missing"),
        ("log any limit 1/day burst 0", "0", "'0' is not a valid burst"),
        ("log any limit 1/day burst 1000000000001", "1000000000001", "'1000000000001' is not a valid burst"),
        ("log any limit 1/day per", "per", "what the limit counts by is missing"),
        ("log any limit 1/day per city", "city", "a limit does not count by 'city'"),
        ("log any limit 1/day per network/33", "network/33", "'network/33' is not a valid prefix length"),
        ("log any limit 1/day per source burst 2", "burst", "unexpected 'burst' in the limit"),
        ("log any limit 1/day and type NEW", "and", "unexpected 'and' in the limit"),
        ("log any limit 1/day sample 1/2", "sample", "a rule has a sample or a limit, and not both"),
        ("log any sample 1/2 limit 1/day", "limit", "a rule has a sample or a limit, and not both"),
        ("drop any limit 1/day", "limit 1/day", "a rule that drops has no limit"),
        ("log any limt 1/day", "limt", "unexpected 'limt', did you mean limit?"),
    ],
)
def test_a_mistake_is_named_under_its_words(text: str, marked: str, message: str) -> None:
    said, words = read_mistake(text)

    assert said.startswith(message)
    assert words == marked


def test_rules_with_a_limit_are_as_few_as_their_memory_allows() -> None:
    rule = RuleText("log any limit 1/day per source")

    assert len(parse_rules([rule] * limit.MAX_RULES)) == limit.MAX_RULES
    with pytest.raises(ManyErrors, match="65 rules have a limit: at most 64 may have one"):
        parse_rules([rule] * (limit.MAX_RULES + 1))
    with pytest.raises(ManyErrors, match="a tail has no limits"):
        cost.check_tail(parse("log any limit 1/day"))


# -- both engines


def decide_all(rules: Sequence[Rule], steps: Sequence[Step]) -> None:
    """Both engines keep the same, count the same, and forget nothing."""
    both = [Deciding(engine, rules) for engine in ENGINES]
    matched, logged, reported = Counter[int](), Counter[int](), Counter[int]()
    now = 0
    for passed, flows in steps:
        now += passed
        kept, other = (deciding.keep(flows, now) for deciding in both)
        assert kept == other
        for index, flow in enumerate(both[1].batch.flows):
            decision = evaluate(rules, flow)  # as the message has it: without locations
            matched[decision.rule_number] += decision.keep
            logged[decision.rule_number] += index in memoryview(kept).cast("H")
        if passed % 2:
            held, other_held = (deciding.take() for deciding in both)
            assert held == other_held
            reported.update({rule: count for rule, count, _, _ in held})
            assert all(since <= until <= RECEIVED_NS + now for _, _, since, until in held)
    for deciding in both:
        assert deciding.counts == both[0].counts
        assert [logged[rule] + held for rule, held in enumerate(deciding.totals)] == [
            matched[rule] for rule in range(len(rules) + 1)
        ]
    left = both[0].take()
    assert left == both[1].take()
    reported.update({rule: count for rule, count, _, _ in left})
    assert [reported[rule] for rule in range(len(rules) + 1)] == both[0].totals


limits = st.builds(
    Limit,
    count=st.integers(1, 4) | st.just(limit.MAX_COUNT),
    unit=st.sampled_from(list(limit.UNITS)),
    burst=st.integers(1, 4) | st.just(limit.MAX_COUNT),
    key=st.sampled_from([limit.ALL, limit.SOURCE, limit.DESTINATION]),
    ipv4_bits=st.integers(0, 32),
    ipv6_bits=st.sampled_from([0, 1, 63, 64, 65, 127, 128]),
)
passing = st.integers(0, 3) | st.integers(0, 3 * NANO) | st.integers(0, 1 << 60)
steps = st.lists(
    st.tuples(passing, st.lists(strategies.flows(), min_size=1, max_size=6)), min_size=1, max_size=6
)


@settings(max_examples=80)
@given(strategies.rules, st.lists(limits, min_size=1), steps)
def test_core_and_reference_log_the_same_and_what_is_logged_and_held_back_is_what_matched(
    rules: list[Rule], chosen: list[Limit], batches: list[Step]
) -> None:
    limited = [
        replace(rule, limit=chosen[number % len(chosen)], sample=0) if rule.keep else rule
        for number, rule in enumerate(rules)
    ]
    limited.append(Rule(True, parse("log any")[0].expression, limit=chosen[0]))

    decide_all(limited, batches)


arrivals = st.lists(st.tuples(st.integers(0, 2 * NANO), st.integers(0, 2)), max_size=60)


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), arrivals)
def test_each_key_has_its_burst_and_its_rate_and_no_more(
    count: int, burst: int, found: list[tuple[int, int]]
) -> None:
    for engine in ENGINES:
        deciding = Deciding(engine, parse(f"log any limit {count}/second burst {burst} per source"))
        levels, now = dict.fromkeys(range(3), Fraction(burst)), 0
        for passed, source in found:
            now += passed
            for key, level in levels.items():
                levels[key] = min(Fraction(burst), level + Fraction(passed * count, NANO))
            is_within = levels[source] >= 1
            levels[source] -= is_within
            assert bool(deciding.keep([with_source(source)], now)) is is_within


def scan(deciding: Deciding, sources: Sequence[int], now: int) -> list[int]:
    """The sources of what was logged of an event of each."""
    found = []
    for start in range(0, len(sources), SLOTS):
        part = sources[start : start + SLOTS]
        kept = memoryview(deciding.keep([with_source(number) for number in part], now)).cast("H")
        found += [part[index] for index in kept]
    return found


def test_so_many_keys_have_buckets_of_their_own_and_others_share() -> None:
    rules, own = parse("log any limit 1/hour burst 4 per source"), buckets.SETS * buckets.WAYS
    sources = list(range(1 << 24, (1 << 24) + 2 * own)) * 2
    random.Random(1).shuffle(sources)
    found = []
    for engine in ENGINES:
        deciding = Deciding(engine, rules)
        logged = scan(deciding, sources, 0)
        assert len(logged) + deciding.totals[1] == deciding.counts[1] == len(sources)
        assert own * 0.9 < len(set(logged)) <= own + buckets.SETS * 4
        found.append(logged)

    assert found[0] == found[1]


def list_rivals(limit_of_keys: Limit, count: int) -> list[Flow]:
    """Events of so many sources, all of one set."""
    flows = map(with_source, count_from(1 << 24))
    hashes = ((flow, buckets.hash_key(SEED, buckets.make_key(limit_of_keys, flow))) for flow in flows)
    return list(islice((flow for flow, found in hashes if found % buckets.SETS == 0), count))


RULES = parse("log any limit 2/hour burst 3 per source")
RIVALS = list_rivals(Limit(2, "hour", 3, limit.SOURCE), buckets.WAYS + 3)
waits = st.sampled_from((0, 1, 1800 * NANO, 3600 * NANO, 5400 * NANO))
rounds = st.lists(st.tuples(waits, st.lists(st.integers(0, len(RIVALS) - 1), max_size=24)), max_size=8)


# One uses up what is shared while all others have buckets, of which the next round finds one free.
NEWCOMER = [buckets.WAYS] * 3


@settings(max_examples=150)
@given(rounds)
@example([(0, [*range(buckets.WAYS), *NEWCOMER]), (1800 * NANO, NEWCOMER)])
def test_no_key_has_more_than_its_limit_though_buckets_are_few(
    rounds_of: list[tuple[int, list[int]]],
) -> None:
    both, now, times = [Deciding(engine, RULES) for engine in ENGINES], 0, dict[int, list[int]]()
    for passed, numbers in rounds_of:
        now += passed
        if not numbers:
            continue
        kept, other = (deciding.keep([RIVALS[number] for number in numbers], now) for deciding in both)
        assert kept == other
        for index in memoryview(kept).cast("H"):
            times.setdefault(numbers[index], []).append(now)
    for logged in times.values():
        for first, begin in enumerate(logged):
            for count, end in enumerate(logged[first:], 1):
                assert count <= 3 + (end - begin) * 2 // (3600 * NANO)


def test_the_keys_of_both_families_are_apart_and_a_network_is_one_key() -> None:
    one, other = IPV6.src, IPV6.src[:15] + bytes([IPV6.src[15] ^ 1])
    mixed = [replace(IPV6, src=address) for address in (one, other)] + [with_source(n << 8) for n in (1, 2)]
    ends = [with_source(0x0A000001), with_source(0x0A0000FF), with_source(0x0A000100)]
    for engine in ENGINES:
        by_source = Deciding(engine, parse("log any limit 1/day per source"))
        by_network = Deciding(engine, parse("log any limit 1/day per network/24"))

        assert list(memoryview(by_source.keep(mixed, 0)).cast("H")) == [0, 1, 2, 3]
        assert list(memoryview(by_network.keep(mixed, 0)).cast("H")) == [0, 2, 3]
        assert list(memoryview(by_network.keep(ends, 0)).cast("H")) == [0, 2]


def test_readers_share_the_buckets_and_a_clock_that_was_read_before_fills_none() -> None:
    for engine in ENGINES:
        deciding = Deciding(engine, parse("log any limit 2/second"), readers=3)
        kept = [bool(deciding.keep([FLOW], NANO - reader, reader)) for reader in (0, 1, 2)]

        assert kept == [True, True, False]
        assert deciding.counts == [0, 3]
        assert [rule for rule, *_ in deciding.take()] == [1]


def test_what_is_beyond_a_limit_is_not_for_the_next_rule_and_the_kernel_passes_it() -> None:
    rules = parse("log port 80 limit 1/day", "log port 80", "drop any")
    for engine in ENGINES:
        deciding = Deciding(engine, rules)
        assert list(memoryview(deciding.keep([FLOW] * 3, 0)).cast("H")) == [0]
        assert deciding.counts == [0, 3, 0, 0]
        assert deciding.totals == [0, 2, 0, 0]

    assert [rule.number for rule in list_shadowed(rules)] == [2]
    program = compile_kernel(rules, protocols=None, events=ALL_EVENTS).program
    assert passes(program, [build_message(FLOW)] * 3) == [True] * 3


# -- what the core checks


@pytest.mark.parametrize(
    "broken",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[:24] + bytes(8) + whole[32:],  # no period
        lambda whole: whole[:24] + b"\xff" * 8 + whole[32:],  # longer than a day
        lambda whole: whole[:32] + b"\xff" * 4 + whole[36:],  # the count
        lambda whole: whole[:36] + bytes(4) + whole[40:],  # no burst
        lambda whole: whole[:36] + b"\xff" * 4 + whole[40:],
        lambda whole: whole[:40] + b"\x03" + whole[41:],  # the key
        lambda whole: whole[:44] + b"\x21" + whole[45:],  # 33 bits of IPv4
        lambda whole: whole[:46] + b"\x81" + whole[47:],  # 129 bits of IPv6
        lambda whole: whole * (limit.MAX_RULES + 1),
    ],
)
def test_limits_that_are_none_are_refused(broken: Callable[[bytes], bytes]) -> None:
    whole = assemble_limits(parse("log any limit 1/day per source"))

    assert core.Limits(whole, SEED).totals == [0, 0]
    with pytest.raises(ValueError, match="not limits that this core can keep"):
        core.Limits(broken(whole), SEED)


def test_limits_of_other_rules_are_refused() -> None:
    program = assemble(compile_table(parse("log any")))

    with pytest.raises(ValueError, match="limits of other rules"):
        core.Table(program, (), core.Limits(bytes(24), SEED))
    with pytest.raises(TypeError, match="limits are of Limits"):
        core.Table(program, (), object())  # type: ignore[arg-type]
