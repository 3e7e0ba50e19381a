"""Shadowed rules: earlier ones match everything that they could. Never reports a rule that can match.

It does not find all of them: that would take the evaluation of every combination of conditions.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from conntrackd.errors import RuleError
from conntrackd.filter import ast
from conntrackd.filter.ast import Expression, Range, Rule, compute_span, merge_ranges, push_not_inward
from conntrackd.filter.diagnostics import clean
from conntrackd.filter.fields import Field
from conntrackd.filter.render import render

# Pairs of conditions that are compared, 1-4 us each, a long list being as many; all pairs of 1,000 rules
# would take seconds.
MAX_COMPARISONS: Final = 50_000
# Values of a list that take as long to compare as one condition.
VALUES: Final = 4

# A list's field, and how many bytes an address of it has (0 for a number).
ListKey = tuple[Field, int]


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A rule that can never match. `by` are the earlier rules that match all it could, counted from 1."""

    number: int
    by: tuple[int, ...]
    rule: Rule

    def to_warning(self) -> RuleError:
        """As it is shown to people."""
        one = len(self.by) == 1
        shadowing = f"rule {self.by[0]} before it matches" if one else f"{len(self.by)} rules before it match"
        return RuleError(
            f"this rule can never match: {shadowing} everything it could",
            origin=self.rule.origin or f"rule {self.number}",
            excerpt=clean(self.rule.text or render(self.rule)),
            hint="remove it, or move it up",
        )


def list_shadowed(rules: Sequence[Rule]) -> list[Shadowed]:
    """Rules that can never match, as far as the budget of comparisons finds them."""
    earlier = _Earlier()
    found = []
    for number, rule in enumerate(rules, 1):
        expression = push_not_inward(rule.expression)
        by = tuple(sorted(earlier.list_shadowing(expression)))
        if by:
            found.append(Shadowed(number, by, rule))
        else:
            earlier.add(number, expression)
    return found


class _Earlier:
    """The rules seen so far, in forms that are quick to compare with."""

    def __init__(self) -> None:
        self._same: dict[Expression, int] = {}
        self._lists: dict[ListKey, _Covered] = {}
        self._others: list[tuple[int, Expression]] = []
        self._budget = Budget(MAX_COMPARISONS)

    def add(self, number: int, expression: Expression) -> None:
        self._same.setdefault(expression, number)
        if isinstance(expression, ast.AddressIn | ast.NumberIn):
            for key, ranges in _list_ranges(expression):
                self._lists.setdefault(key, _Covered(self._budget)).add(number, ranges)
        else:
            self._others.append((number, expression))

    def list_shadowing(self, expression: Expression) -> set[int]:
        """Earlier rules, one of which is true wherever this condition is; empty when that is not known.

        In this order, the cheapest first: the same expression; each part of an `or` shadowed; a list of an
        `and` that earlier lists cover together; an earlier rule that the condition implies.
        """
        if expression in self._same:
            return {self._same[expression]}
        if isinstance(expression, ast.Or):
            by_item = [self.list_shadowing(item) for item in expression.items]
            return set.union(*by_item) if all(by_item) else set()
        for part in expression.items if isinstance(expression, ast.And) else (expression,):
            numbers = self._list_shadowing_lists(part)
            if numbers:
                return numbers
        for number, other in self._others:
            if self._budget.is_spent:
                break
            if implies(expression, other, self._budget):
                return {number}
        return set()

    def _list_shadowing_lists(self, part: Expression) -> set[int]:
        """Rules of one list each that together contain all of this list."""
        shadowing: set[int] = set()
        for key, ranges in _list_ranges(part):
            numbers = self._lists[key].list_covering(ranges) if key in self._lists else set()
            if not numbers:
                return set()
            shadowing |= numbers
        return shadowing


class _Covered:
    """Numbers or addresses that earlier rules match, each range with the first rule that matches it.

    Where the budget is spent, what is asked for is not found, and what is added is not noted.
    """

    def __init__(self, budget: "Budget") -> None:
        self._budget = budget
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, int]] = []  # disjoint: low, high, the rule's number

    def add(self, number: int, ranges: Iterable[Range]) -> None:
        for low, high in ranges:
            if not self._spend(low, high):
                return
            for gap_low, gap_high in self._list_gaps(low, high):
                index = bisect_left(self._starts, gap_low)
                self._starts.insert(index, gap_low)
                self._ranges.insert(index, (gap_low, gap_high, number))

    def list_covering(self, ranges: Iterable[Range]) -> set[int]:
        """The rules that cover these ranges together; empty when they leave a gap."""
        numbers: set[int] = set()
        for low, high in ranges:
            if not self._spend(low, high) or self._list_gaps(low, high):
                return set()
            numbers |= {number for _, _, number in self._overlap(low, high)}
        return numbers

    def _spend(self, low: int, high: int) -> bool:
        count = bisect_left(self._starts, high + 1) - bisect_left(self._starts, low)
        return self._budget.spend(count // VALUES)

    def _overlap(self, low: int, high: int) -> list[tuple[int, int, int]]:
        first = max(0, bisect_left(self._starts, low) - 1)
        last = bisect_left(self._starts, high + 1)
        return [row for row in self._ranges[first:last] if row[1] >= low]

    def _list_gaps(self, low: int, high: int) -> list[Range]:
        gaps = []
        for covered_low, covered_high, _ in self._overlap(low, high):
            if low < covered_low:
                gaps.append((low, covered_low - 1))
            low = max(low, covered_high + 1)
        return [*gaps, (low, high)] if low <= high else gaps


def _list_ranges(expression: Expression) -> Iterator[tuple[ListKey, tuple[Range, ...]]]:
    """What a list holds, for each of its fields, IPv4 and IPv6 apart; nothing for anything else."""
    match expression:
        case ast.NumberIn(fields, ranges):
            for field in fields:
                yield (field, 0), merge_ranges(ranges)
        case ast.AddressIn(fields, prefixes):
            for size in {len(prefix.network) for prefix in prefixes}:
                spans = merge_ranges(
                    compute_span(prefix) for prefix in prefixes if len(prefix.network) == size
                )
                for field in fields:
                    yield (field, size), spans


class Budget:
    """How many comparisons may still be made."""

    def __init__(self, left: int) -> None:
        self._left = left

    @property
    def is_spent(self) -> bool:
        return self._left <= 0

    def spend(self, count: int = 1) -> bool:
        """Whether so many more may be made."""
        self._left -= count
        return self._left >= 0


def implies(first: Expression, second: Expression, budget: Budget) -> bool:
    """Whether the second is known to be true of every event of which the first is; Nots pushed inward.

    False also when the budget is spent. The order of the cases matters: what is split first must hold for
    each of its parts.
    """
    if not budget.spend(1 + _count_values(first, second) // VALUES):
        return False
    match first, second:
        case ast.Or(items), _:
            known = all(implies(item, second, budget) for item in items)
        case _, ast.And(items):
            known = all(implies(first, item, budget) for item in items)
        case ast.And(items), ast.Or(others):
            known = any(implies(first, other, budget) for other in others) or any(
                implies(item, second, budget) for item in items
            )
        case ast.And(items), _:
            known = any(implies(item, second, budget) for item in items)
        case _, ast.Or(items):
            known = any(implies(first, item, budget) for item in items)
        case ast.Not(item), ast.Not(other):
            # Where the one is false the other is too: the wider one is false less often.
            known = _covers(item, other)
        case _:
            known = _covers(second, first)
    return known


def _count_values(*expressions: Expression) -> int:
    """How long the lists are that are compared."""
    return sum(
        len(expression.ranges if isinstance(expression, ast.NumberIn) else expression.prefixes)
        * len(expression.fields)
        for expression in expressions
        if isinstance(expression, ast.NumberIn | ast.AddressIn)
    )


def _covers(wide: Expression, narrow: Expression) -> bool:  # one for each kind of leaf
    """Of leaves: whether all that `narrow` names `wide` names too, of the same fields or of more."""
    match wide, narrow:
        case ast.Anything(), _:
            return True
        case ast.TypeIs(mask), ast.TypeIs(bits):
            return bits & ~mask == 0
        case ast.StatusHas(mask), ast.StatusHas(bits):
            return bits & ~mask == 0
        case ast.NatHas(mask), ast.NatHas(bits):
            return bits & ~mask == 0
        case ast.LocationIn(), ast.LocationIn():
            return set(narrow.fields) <= set(wide.fields) and set(narrow.values) <= set(wide.values)
        case ast.SetIn(), ast.SetIn():
            return wide.name == narrow.name and set(narrow.fields) <= set(wide.fields)
        case ast.MarkIn(), ast.MarkIn():
            return all(
                any(mask & ~bits == 0 and value & mask == rest for rest, mask in wide.marks)
                for value, bits in narrow.marks
            )
        case ast.Compare(), ast.Compare():
            return wide.subject is narrow.subject and _covers_numbers(wide, narrow)
        case (ast.NumberIn(), ast.NumberIn()) | (ast.AddressIn(), ast.AddressIn()):
            return _covers_lists(wide, narrow)
    return False


def _covers_lists(wide: Expression, narrow: Expression) -> bool:
    holding = dict(_list_ranges(wide))
    return all(
        any(low <= first and last <= high for low, high in holding.get(key, ()))
        for key, ranges in _list_ranges(narrow)
        for first, last in ranges
    )


def _covers_numbers(wide: ast.Compare, narrow: ast.Compare) -> bool:
    """Of comparisons: the ranges of whole numbers that they stand for."""
    return all(
        any(low <= first and last <= high for low, high in to_ranges(wide))
        for first, last in to_ranges(narrow)
    )


def to_ranges(leaf: ast.Compare) -> tuple[tuple[float, float], ...]:
    """The whole numbers of which a comparison is true."""
    number, infinite = leaf.number, float("inf")
    return {
        "<": ((-infinite, number - 1),),
        "<=": ((-infinite, number),),
        "=": ((number, number),),
        "!=": ((-infinite, number - 1), (number + 1, infinite)),
        ">=": ((number, infinite),),
        ">": ((number + 1, infinite),),
    }[leaf.operator]
