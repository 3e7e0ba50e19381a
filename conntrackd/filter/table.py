"""AST -> the table of tests that the core decides by, and that table as bytes (see core/decide.h).

It is written from the last rule to the first: whoever writes a test knows where to go on from it, and all
jumps lead forward. Rules that stand side by side and differ in one list share one look-up (a Run).
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Final, NamedTuple, assert_never

from conntrackd.filter import ast
from conntrackd.filter.ast import (
    Expression,
    Leaf,
    Range,
    Rule,
    compute_span,
    conjoin,
    expand_network,
    merge_ranges,
    push_not_inward,
)
from conntrackd.filter.evaluate import is_located_in
from conntrackd.filter.fields import DURATION, Field
from conntrackd.filter.sets import AddressSet
from conntrackd.flow import ALL_EVENTS, EventType, Location

# PROGRAM_FORMAT and struct test of core/decide.h
FORMAT: Final = 0x63740003
TEST: Final = struct.Struct("=QIIIIHHI")
MAX_NUMBER: Final = (1 << 64) - 1
# Bytes of an address -> what is added to its attribute; each family is a field of its own.
FAMILY_SUFFIXES: Final = {4: ".ipv4", 16: ".ipv6"}
ADDRESS_ATTRIBUTES: Final = ("src", "dst", "reply_src", "reply_dst")
FOUND: Final = "found"
# enum field of core/decide.h: attributes of a Flow, where there is no other word behind it.
CORE_FIELDS: Final = (
    *("type", "family", "protocol", "state", "status", "mark", "zone", "nat"),
    *("sport", "dport", "reply_sport", "reply_dport", "icmp_id", "reply_icmp_id"),
    *("orig_packets", "orig_bytes", "reply_packets", "reply_bytes", "duration"),
    FOUND,
    *("src_location", "dst_location"),
    *(name + suffix for suffix in FAMILY_SUFFIXES.values() for name in ADDRESS_ATTRIBUTES),
)
NUMBERS: Final = {name: number for number, name in enumerate(CORE_FIELDS)}
WORD_BITS: Final = 64
SetLeaf = ast.AddressIn | ast.NumberIn
Key = tuple[type, tuple[Field, ...], tuple[Expression, ...]]
# Fewer rules than this are quicker one by one.
SHORTEST_RUN: Final = 4


class Interval(NamedTuple):
    """An inclusive range of numbers or addresses, and the rule that names it."""

    low: int
    high: int
    number: int


class Test(NamedTuple):
    """Whether the field's value under the mask lies in one of these intervals, and where to go on.

    The intervals are sorted and apart; the number of each is the rule that it finds, 0 for none. A target is
    the index of a test, or, from the count of tests on, an end: see Table.
    """

    field: str
    intervals: tuple[Interval, ...]
    yes: int
    no: int
    mask: int = MAX_NUMBER
    word: int = 0
    """Of a Location's bits: which 64 of them. Of an address without intervals: the set's number, from 1."""


class Question(NamedTuple):
    """What becomes a test when it is known where to go on."""

    field: str
    ranges: Sequence[Range]
    mask: int = MAX_NUMBER


class Condition(NamedTuple):
    """What one bit of a Location says: whether its country or city is (`truth`) or is not one of these."""

    attribute: str
    values: tuple[str, ...]
    truth: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Tests, and the ends behind them: rule 0 (none matched), each rule, the rule found, left out."""

    tests: tuple[Test, ...]
    keeps: tuple[bool, ...]
    """Of each rule from 0 whether it keeps events."""
    rates: tuple[int, ...]
    """Of each rule from 0 the N of its sample 1/N; 0: it has none."""
    start: int
    conditions: tuple[Condition, ...]
    """Of each bit of a Location."""
    sets: tuple[AddressSet, ...]
    """That tests name by their number."""

    @property
    def found_end(self) -> int:
        """The end that is the lowest rule of which an interval was met."""
        return len(self.tests) + len(self.keeps)

    @property
    def location_words(self) -> int:
        """How many words of 64 bits the core keeps of each Location."""
        return -(-len(self.conditions) // WORD_BITS)

    def compute_location_bits(self, location: Location) -> bytes:
        """The bits of a Location as the core takes them; where a text is unknown, none that asks about it."""
        words = [0] * self.location_words
        for number, condition in enumerate(self.conditions):
            if is_located_in(condition.attribute, location, condition.values) is condition.truth:
                words[number // WORD_BITS] |= 1 << number % WORD_BITS
        return struct.pack(f"={len(words)}Q", *words)


@dataclass(frozen=True, slots=True)
class Run:
    """Rules `first`, `first` + 1, ... (counted from 1): `rest` is the same in all, one list differs."""

    first: int
    fields: tuple[Field, ...]
    rest: tuple[Expression, ...]
    leaves: tuple[SetLeaf, ...]


def compile_table(
    rules: Sequence[Rule], protocols: frozenset[int] | None = None, events: int = ALL_EVENTS
) -> Table:
    """The table of the rules, for these protocols (None: all) and event types (bits)."""
    plain = [replace(rule, expression=push_not_inward(rule.expression)) for rule in rules]
    return _Writer(plain).write(protocols, events)


def assemble(table: Table) -> bytes:
    """The program that core/decide.h describes."""
    tests, numbers, addresses = [], list[Interval](), list[Interval]()
    for test in table.tests:
        intervals = addresses if test.field.endswith(".ipv6") else numbers
        first, count = len(intervals) if test.intervals else 0, len(test.intervals)
        tests.append(TEST.pack(test.mask, test.yes, test.no, first, count, NUMBERS[test.field], test.word, 0))
        intervals += test.intervals
    counts = (len(tests), len(table.keeps) - 1, len(numbers), len(addresses))
    header = struct.pack("=8I", FORMAT, *counts, table.start, table.location_words, len(table.sets))
    found = [interval.number for interval in (*numbers, *addresses)]
    return b"".join(
        [
            header,
            *tests,
            struct.pack(f"={len(numbers)}Q", *(interval.low for interval in numbers)),
            struct.pack(f"={len(numbers)}Q", *(interval.high for interval in numbers)),
            *(struct.pack("=QQ", *divmod(interval.low, 1 << 64)) for interval in addresses),
            *(struct.pack("=QQ", *divmod(interval.high, 1 << 64)) for interval in addresses),
            struct.pack(f"={len(found)}I", *found),
            struct.pack(f"={len(table.rates)}I", *table.rates),
            bytes(table.keeps),
        ]
    )


class _Writer:
    """Compiles the tests from the last to the first, so that each knows where it leads when it is written.

    A rule is written after the next one, to whose first test it leads when it does not match; so is each item
    of an `and` or `or`. Until all are there, a target is a test's position in that order, and an end is
    negative: _finish() reverses the order and leaves out what no test leads to.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._tests: list[Test] = []
        self._conditions: dict[Condition, int] = {}
        self._sets: dict[AddressSet, int] = {}

    def write(self, protocols: frozenset[int] | None, events: int) -> Table:
        target = self._end(0)
        runs = {run.first + len(run.leaves) - 1: run for run in _list_runs(self._rules)}
        number = len(self._rules)
        while number:
            if number in runs:
                target = self._write_run(runs[number], target)
                number = runs[number].first - 1
            else:
                target = self._write(self._rules[number - 1].expression, self._end(number), target)
                number -= 1
        left_out = self._end(len(self._rules) + 2)
        if events & ALL_EVENTS != ALL_EVENTS:
            target = self._write(ast.TypeIs(events & (ALL_EVENTS | EventType.ALIVE)), target, left_out)
        if protocols is not None:
            ranges = [(protocol, protocol) for protocol in map(int, protocols)]
            target = self._write_question(Question("protocol", ranges), target, left_out)
        return self._finish(target)

    def _end(self, number: int) -> int:
        return -1 - number

    def _finish(self, start: int) -> Table:
        """Only the tests that can be reached, from the first to the last, with targets as Table has them."""
        reached = {start}
        for position in range(len(self._tests) - 1, -1, -1):
            if position in reached:
                reached |= {self._tests[position].yes, self._tests[position].no}
        positions = sorted((position for position in reached if position >= 0), reverse=True)
        targets = {position: index for index, position in enumerate(positions)}
        targets |= {self._end(number): len(positions) + number for number in range(len(self._rules) + 3)}
        tests = [self._tests[position] for position in positions]
        return Table(
            tuple(test._replace(yes=targets[test.yes], no=targets[test.no]) for test in tests),
            (True, *(rule.keep for rule in self._rules)),
            (0, *(rule.sample for rule in self._rules)),
            targets[start],
            tuple(self._conditions),
            tuple(self._sets),
        )

    # Each of these writes tests that lead to `yes` where something is true, else to `no`.
    # They return where to begin.

    def _write(self, expression: Expression, yes: int, no: int) -> int:
        match expression:
            case ast.And(items):
                for item in reversed(items):
                    yes = self._write(item, yes, no)
                return yes
            case ast.Or(items):
                for item in reversed(items):
                    no = self._write(item, yes, no)
                return no
            case ast.Not(item):
                assert not isinstance(item, ast.And | ast.Or | ast.Not), "see push_not_inward()"
                return self._write_false(item, yes, no)
            case _:
                return self._write_true(expression, yes, no)

    def _write_true(self, leaf: Leaf, yes: int, no: int) -> int:
        match leaf:
            case ast.Anything():
                return yes
            case ast.NetworkIn():
                return self._write(expand_network(leaf), yes, no)
            case ast.LocationIn(fields, values):
                for field in reversed(fields):
                    no = self._write_location(field, values, True, yes, no)
            case ast.SetIn(fields, _, addresses):
                for field in reversed(fields):
                    no = self._write_set(field, addresses, yes, no)
            case _:
                for question in reversed(list(_list_questions(leaf))):
                    no = self._write_question(question, yes, no)
        return no

    def _write_false(self, leaf: Leaf, yes: int, no: int) -> int:
        """Where the leaf is false, which is not where it is unknown; where that cannot be it is the rest."""
        match leaf:
            case ast.LocationIn(fields, values):
                for field in fields:
                    yes = self._write_location(field, values, False, yes, no)
            case ast.NumberIn() | ast.Compare():
                for question in _list_questions(leaf):
                    yes = self._write_question(question._replace(ranges=_invert(question.ranges)), yes, no)
            case _:
                return self._write_true(leaf, no, yes)
        return yes

    def _write_question(self, question: Question, yes: int, no: int) -> int:
        intervals = tuple(Interval(low, high, 0) for low, high in merge_ranges(question.ranges))
        return self._add(Test(question.field, intervals, yes, no, question.mask))

    def _add(self, test: Test) -> int:
        if not test.intervals:
            return test.no
        self._tests.append(test)
        return len(self._tests) - 1

    def _write_location(self, field: Field, values: tuple[str, ...], truth: bool, yes: int, no: int) -> int:
        """Both sides share a bit: it is of the Location, not of the event."""
        location, _, attribute = field.attribute.partition(".")
        condition = Condition(attribute, values, truth)
        word, bit = divmod(self._conditions.setdefault(condition, len(self._conditions)), WORD_BITS)
        mask = 1 << bit
        return self._add(Test(location, (Interval(mask, mask, 0),), yes, no, mask, word))

    def _write_set(self, field: Field, addresses: AddressSet, yes: int, no: int) -> int:
        """One test for each family, of which the set may get addresses; these are no part of the table."""
        number = self._sets.setdefault(addresses, len(self._sets) + 1)
        for suffix in FAMILY_SUFFIXES.values():
            self._tests.append(Test(field.attribute + suffix, (), yes, no, word=number))
            no = len(self._tests) - 1
        return no

    def _write_run(self, run: Run, no: int) -> int:
        """Look-ups, one for each field and family: the lowest rule that any of them finds decides."""
        found = self._end(len(self._rules) + 1)
        sizes = (None,) if isinstance(run.leaves[0], ast.NumberIn) else tuple(FAMILY_SUFFIXES)
        tables = {size: _flatten(_list_intervals(run, size)) for size in sizes}
        several = len(run.fields) > 1
        start = self._add(Test(FOUND, (Interval(1, MAX_NUMBER, 0),), found, no)) if several else no
        for field in reversed(run.fields):
            for size, intervals in reversed(tables.items()):
                name = field.attribute + FAMILY_SUFFIXES.get(size or 0, "")
                start = self._add(Test(name, intervals, start if several else found, start))
        return self._write(conjoin(run.rest), start, no) if run.rest else start


def _list_questions(leaf: Leaf) -> Iterator[Question]:  # noqa: PLR0912  # one for each leaf
    """What the leaf is the `or` of."""
    match leaf:
        case ast.TypeIs(mask):
            yield _ask_bits("type", mask)
        case ast.StatusHas(mask):
            yield _ask_bits("status", mask)
        case ast.NatHas(mask):
            yield _ask_bits("nat", mask)
        case ast.MarkIn(marks):
            for mask in sorted({mask for _, mask in marks}):
                yield Question("mark", [(value, value) for value, under in marks if under == mask], mask)
        case ast.NumberIn(fields, ranges):
            for field in fields:
                yield Question(field.attribute, ranges)
        case ast.AddressIn(fields, prefixes):
            for field in fields:
                for size, suffix in FAMILY_SUFFIXES.items():
                    spans = [compute_span(prefix) for prefix in prefixes if len(prefix.network) == size]
                    yield Question(field.attribute + suffix, spans)
        case ast.Compare(subject, operator, number):
            yield Question(subject.attribute, _list_compared(subject, operator, number))
        case ast.Anything() | ast.NetworkIn() | ast.LocationIn() | ast.SetIn():
            raise AssertionError(f"{leaf} does not compare a number")
        case _:
            assert_never(leaf)


def _ask_bits(field: str, mask: int) -> Question:
    """Whether the field has one of the mask's bits at least."""
    return Question(field, [(1, mask)] if mask else [], mask)


def _list_compared(subject: Field, operator: str, number: int) -> list[Range]:
    """What a counter may be. The core has a duration one higher than it is, 0 where it is negative."""
    number += subject is DURATION
    ranges = {
        "<": [(0, number - 1)],
        "<=": [(0, number)],
        "=": [(number, number)],
        "!=": [(0, number - 1), (number + 1, MAX_NUMBER)],
        ">=": [(number, MAX_NUMBER)],
        ">": [(number + 1, MAX_NUMBER)],
    }[operator]
    return [(low, min(high, MAX_NUMBER)) for low, high in ranges if low <= min(high, MAX_NUMBER)]


def _invert(ranges: Iterable[Range]) -> list[Range]:
    """All other numbers."""
    others = []
    first = 0
    for low, high in merge_ranges(ranges):
        if first < low:
            others.append((first, low - 1))
        first = high + 1
    return [*others, (first, MAX_NUMBER)] if first <= MAX_NUMBER else others


# ---- rules that share one look-up -----------------------------------------------------------------------


def _list_runs(rules: Sequence[Rule]) -> list[Run]:
    """The runs worth a table of their own, in order; the rules' Nots must have been pushed inward.

    A key is a rule without one of its lists: rules with a key in common differ in that list alone. From each
    rule the key that most of the next rules share is taken, and if those are enough, they are a run.
    """
    keys = [_list_keys(rule.expression) for rule in rules]
    runs = []
    start = 0
    while start < len(rules):
        key, length = max(
            ((key, _measure(keys, start, key)) for key in keys[start]),
            key=lambda found: found[1],
            default=(None, 1),
        )
        if key is not None and length >= SHORTEST_RUN:
            leaves = tuple(lists[key] for lists in keys[start : start + length])
            runs.append(Run(start + 1, key[1], key[2], leaves))
            start += length
        else:
            start += 1
    return runs


def _list_keys(expression: Expression) -> dict[Key, SetLeaf]:
    """Each list that the expression consists of, alone or beside other conditions, by all but its content."""
    items = expression.items if isinstance(expression, ast.And) else (expression,)
    return {
        (type(item), item.fields, items[:start] + items[start + 1 :]): item
        for start, item in enumerate(items)
        if isinstance(item, ast.AddressIn | ast.NumberIn)
    }


def _measure(keys: list[dict[Key, SetLeaf]], start: int, key: Key) -> int:
    end = start
    while end < len(keys) and key in keys[end]:
        end += 1
    return end - start


def _list_intervals(run: Run, size: int | None) -> Iterator[Interval]:
    """What a run's lists hold: numbers (`size` is None), or the addresses of that many bytes."""
    for number, leaf in enumerate(run.leaves, run.first):
        if isinstance(leaf, ast.NumberIn):
            for low, high in leaf.ranges:
                yield Interval(low, high, number)
        else:
            for prefix in leaf.prefixes:
                if len(prefix.network) == size:
                    yield Interval(*compute_span(prefix), number)


def _flatten(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Apart from each other, each with the lowest rule that names it.

    A sweep over all bounds, from low to high, with a heap of the intervals that are open at the moment.
    """
    waiting = sorted(intervals, reverse=True)
    active: list[tuple[int, int]] = []  # number and high, the lowest number first
    bounds: list[int] = []
    numbers = [0]
    for bound in sorted({interval.low for interval in waiting} | {interval.high + 1 for interval in waiting}):
        while waiting and waiting[-1].low == bound:
            interval = waiting.pop()
            heappush(active, (interval.number, interval.high))
        while active and active[0][1] < bound:
            heappop(active)
        number = active[0][0] if active else 0
        if number != numbers[-1]:
            bounds.append(bound)
            numbers.append(number)
    ends = zip(bounds, bounds[1:], numbers[1:], strict=False)
    return tuple(Interval(low, end - 1, number) for low, end, number in ends if number)
