"""Consecutive rules that differ in one list only: found, so that one look-up decides them all."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, NamedTuple

from conntrackd.filter.ast import AddressIn, And, Expression, NumberIn, Rule, compute_span
from conntrackd.filter.fields import Field

SetLeaf = AddressIn | NumberIn
Key = tuple[type, tuple[Field, ...], tuple[Expression, ...]]
# Fewer rules than this are quicker one by one.
SHORTEST_RUN: Final = 4


@dataclass(frozen=True, slots=True)
class Run:
    """Rules `first`, `first` + 1, ... (counted from 1): `rest` is the same in all, one list differs."""

    first: int
    fields: tuple[Field, ...]
    rest: tuple[Expression, ...]
    leaves: tuple[SetLeaf, ...]


class Interval(NamedTuple):
    """An inclusive range of numbers or addresses, and the rule that names it."""

    low: int
    high: int
    number: int


def list_runs(rules: Sequence[Rule]) -> list[Run]:
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
    items = expression.items if isinstance(expression, And) else (expression,)
    return {
        (type(item), item.fields, items[:start] + items[start + 1 :]): item
        for start, item in enumerate(items)
        if isinstance(item, AddressIn | NumberIn)
    }


def _measure(keys: list[dict[Key, SetLeaf]], start: int, key: Key) -> int:
    end = start
    while end < len(keys) and key in keys[end]:
        end += 1
    return end - start


def list_intervals(run: Run, size: int | None) -> Iterator[Interval]:
    """What a run's lists hold: numbers (`size` is None), or the addresses of that many bytes."""
    for number, leaf in enumerate(run.leaves, run.first):
        if isinstance(leaf, NumberIn):
            for low, high in leaf.ranges:
                yield Interval(low, high, number)
        else:
            for prefix in leaf.prefixes:
                if len(prefix.network) == size:
                    yield Interval(*compute_span(prefix), number)


def flatten(intervals: Iterable[Interval]) -> tuple[list[int], list[int]]:
    """Bounds and numbers: `numbers[bisect(bounds, x)]` is the lowest rule that names x, 0 for none.

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
    return bounds, numbers
