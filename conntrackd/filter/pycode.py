"""AST -> Python source -> batch selector: one loop, in which rules are tests one below the other.

Rules that stand side by side and differ in one list only share one look-up (merge.py). User text is never
run: see pyexpr.py for what the source is made of.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from conntrackd.filter.ast import Anything, NumberIn, Rule, push_not_inward, uses_location
from conntrackd.filter.fields import FAMILIES
from conntrackd.filter.merge import Interval, Run, find_runs, flatten, list_intervals
from conntrackd.filter.pyexpr import SIZES, Expressions, join, to_value
from conntrackd.flow import EventType, Flow
from conntrackd.generated import define

Select = Callable[[list[Flow], list[int]], list[Flow]]
# What there can be: SNAPSHOT is what events of the other types are called later.
ALL_EVENTS: Final = int(EventType.NEW | EventType.UPDATE | EventType.DESTROY)
# Counters of this many rules are local variables, added up once a batch; more would make short batches slow.
LOCAL_COUNTERS: Final = 32
# An attribute that is read this often is read into a local variable first.
HOISTED_FROM: Final = 3


class Selector:
    """Filters batches. Immutable, but for the counts of events that each rule decided."""

    __slots__ = ("_select", "counts", "needs_location", "rules", "source")

    def __init__(self, rules: Sequence[Rule], source: str, select: Select) -> None:
        self.rules = tuple(rules)
        self.source = source
        self.counts = [0] * (len(rules) + 1)
        """Index 0: events that no rule matched. One of a protocol or type left out is counted nowhere."""
        self.needs_location = uses_location(rules)
        """Whether events have to be located before they are selected."""
        self._select = select

    def __call__(self, batch: list[Flow]) -> list[Flow]:
        """The events to be logged, in their order."""
        return self._select(batch, self.counts)

    def judge(self, flow: Flow) -> tuple[bool, int]:
        """Whether the event is kept, and the rule that decided, from 1 (0: none). Counts nothing."""
        counts = [0] * len(self.counts)
        kept = self._select([flow], counts)
        return bool(kept), counts.index(1) if 1 in counts else 0

    def decide(self, flow: Flow) -> int:
        """The number of the rule that decides, from 1; 0 where none does. Counts nothing."""
        return self.judge(flow)[1]


def compile_selector(
    rules: Sequence[Rule], *, protocols: frozenset[int] | None = None, events: int = ALL_EVENTS
) -> Selector:
    """A selector by the first rule that matches, for these protocols (None: all) and event types (bits)."""
    plain = [replace(rule, expression=push_not_inward(rule.expression)) for rule in rules]
    runs = {run.first: run for run in find_runs(plain)}
    # Once to see which attributes are read often, and once more with these in local variables.
    draft = _Source(plain, runs, frozenset())
    draft.write(protocols, events)
    hoisted = frozenset(name for name, uses in draft.expressions.uses.items() if uses >= HOISTED_FROM)
    final = _Source(plain, runs, hoisted)
    text = final.write(protocols, events)
    return Selector(rules, text, define(text, "select", final.expressions.constants))


class _Source:
    """The text of one select function."""

    def __init__(self, rules: Sequence[Rule], runs: dict[int, Run], hoisted: frozenset[str]) -> None:
        self.expressions = Expressions(hoisted)
        self._rules = rules
        self._runs = runs
        self._hoisted = sorted(hoisted)
        self._counted: list[int] = []  # rules with local counters
        self._lines: list[str] = []

    def write(self, protocols: frozenset[int] | None, events: int) -> str:
        self._write_prerequisites(protocols, events)
        self._lines += [f"        {name} = f.{name}" for name in self._hoisted]
        if self._write_rules():
            self._lines += [f"        {self._count(0)}", "        keep(f)"]
        head = [f"    c{number} = 0" for number in self._counted]
        tail = [f"    counts[{number}] += c{number}" for number in self._counted]
        return "\n".join(
            [
                "def select(batch, counts):",
                "    kept = []",
                "    keep = kept.append",
                *head,
                "    for f in batch:",
                *self._lines,
                *tail,
                "    return kept",
                "",
            ]
        )

    def _write_prerequisites(self, protocols: frozenset[int] | None, events: int) -> None:
        if protocols is not None:
            text = self.expressions.write_membership("f.protocol", sorted(map(int, protocols)))
            self._lines += [f"        if not {text}:", "            continue"]
        if events & ALL_EVENTS != ALL_EVENTS:
            self._lines += [f"        if not f.type & {int(events)}:", "            continue"]

    def _write_rules(self) -> bool:
        """All rules; False when the last one written takes every event, so that nothing comes after it."""
        number = 1
        while number <= len(self._rules):
            run = self._runs.get(number)
            if run:
                self._write_run(run)
                number += len(run.leaves)
                continue
            rule = self._rules[number - 1]
            if isinstance(rule.expression, Anything):
                self._lines += [f"        {line}" for line in self._decide(number, rule.keep)]
                return False
            self._lines.append(f"        if {self.expressions.write(rule.expression)}:")
            self._lines += [f"            {line}" for line in (*self._decide(number, rule.keep), "continue")]
            number += 1
        return True

    def _decide(self, number: int, keep: bool) -> list[str]:
        return [self._count(number), "keep(f)"] if keep else [self._count(number)]

    def _count(self, number: int) -> str:
        if len(self._rules) > LOCAL_COUNTERS:
            return f"counts[{number}] += 1"
        self._counted.append(number)
        return f"c{number} += 1"

    def _write_run(self, run: Run) -> None:
        """Rules that a table decides: n becomes the first that matches, or 0."""
        indent = " " * 8
        if run.rest:
            condition = join(" and ", [self.expressions.write(each) for each in run.rest])
            self._lines.append(f"{indent}if {condition}:")
            indent += " " * 4
        look_up = self._write_look_up(run)
        self._lines.append(f"{indent}n = {look_up[0]}")
        if len(look_up) > 1:
            self._lines += [
                f"{indent}m = {look_up[1]}",
                f"{indent}if m and (m < n or not n):",
                f"{indent}    n = m",
            ]
        numbers = range(run.first, run.first + len(run.leaves))
        kept = frozenset(number for number in numbers if self._rules[number - 1].keep)
        self._lines += [f"{indent}if n:", f"{indent}    counts[n] += 1"]
        if len(kept) == len(run.leaves):
            self._lines.append(f"{indent}    keep(f)")
        elif kept:
            keep = self.expressions.keep(kept)
            self._lines += [f"{indent}    if n in {keep}:", f"{indent}        keep(f)"]
        self._lines.append(f"{indent}    continue")

    def _write_look_up(self, run: Run) -> list[str]:
        """For each field an expression that gives the rule's number."""
        sizes = (None,) if isinstance(run.leaves[0], NumberIn) else tuple(SIZES)
        found = {size: list(list_intervals(run, size)) for size in sizes}
        if all(each.low == each.high for intervals in found.values() for each in intervals):
            table = {
                to_value(each.low, size): each.number
                for size, intervals in found.items()
                for each in reversed(intervals)  # the first rule that names a value comes last, and stays
            }
            name = self.expressions.keep(table)
            return [f"{name}.get({self.expressions.read(each.attribute)}, 0)" for each in run.fields]
        ways = {size: self._keep_table(intervals, size) for size, intervals in found.items()}
        return [self._choose(ways, self.expressions.read(each.attribute)) for each in run.fields]

    def _keep_table(self, intervals: list[Interval], size: int | None) -> tuple[str, str]:
        """The names of the two constants that a bisection needs."""
        bounds, numbers = flatten(intervals)
        keep = self.expressions.keep
        return keep([to_value(each, size) for each in bounds]), keep(numbers)

    def _choose(self, ways: dict[int | None, tuple[str, str]], name: str) -> str:
        texts = [f"{numbers}[bisect({bounds}, {name})]" for bounds, numbers in ways.values()]
        if len(texts) == 1:
            return texts[0]
        return f"{texts[0]} if {self.expressions.read('family')} == {FAMILIES['IPV4']} else {texts[1]}"
