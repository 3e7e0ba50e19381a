"""How much rules may cost: counted from what they would become, before any of it is made.

Short text can stand for much: `not network public` is 16 comparisons. Each bound here belongs to one step
(the text to parse, its words, what normalization and compilation would write out) and keeps the dearest rules
below 1 s and 64 MiB (tests/filter/test_cost.py). Rules come over D-Bus too, from who may only look.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from conntrackd.errors import ManyErrors, RuleError
from conntrackd.filter import ast
from conntrackd.filter.ast import Expression, Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.fields import NETWORKS, PUBLIC
from conntrackd.filter.limit import MAX_RULES, refuse_limits

MAX_CHARACTERS: Final = 256 << 10  # of all rules together: some 16,000 addresses
MAX_WORDS: Final = 40 << 10
WORD: Final = re.compile(r'[(),!<>="]|[^\s(),!<>="]+')  # a comma and a parenthesis are words too
MAX_COMPARISONS: Final = 12 << 10
# Of a tail: they are made for every event, in the reader's thread, and whoever may look may ask for them.
MAX_TAIL_COMPARISONS: Final = 1 << 10
# A list of more values is one look-up, whatever its length.
LONGEST_WRITTEN: Final = 8
# Lists that stand side by side under `and` are compared with those of the next rule, each beside all the
# rest: so many pairs cost as much as one comparison.
PAIRS: Final = 64
SPLIT: Final = "use fewer rules, or lists instead of conditions: `address A,B` for `address A or address B`"


class Size(NamedTuple):
    """What a condition becomes: comparisons, and the parts and lists of the `and` that it is."""

    comparisons: int
    parts: int = 1
    lists: int = 0


def check_texts(rules: Sequence[RuleText]) -> None:
    """Raises ManyErrors where there is more text than may be parsed."""
    characters = sum(len(rule.text) for rule in rules)
    if characters > MAX_CHARACTERS:
        raise _refuse(f"the rules have {characters:,} characters", MAX_CHARACTERS)
    words = sum(len(WORD.findall(rule.text)) for rule in rules)
    if words > MAX_WORDS:
        raise _refuse(f"the rules have {words:,} words", MAX_WORDS)


def check_rules(rules: Sequence[Rule]) -> None:
    """Raises ManyErrors where the rules would become more than may be compiled."""
    _check_comparisons(rules, MAX_COMPARISONS)
    limits = sum(rule.limit is not None for rule in rules)
    if limits > MAX_RULES:
        message = f"{limits:,} rules have a limit: at most {MAX_RULES} may have one"
        hint = "one rule with a list, or with a limit for each source, counts for many"
        raise ManyErrors([RuleError(message, hint=hint)])


def check_tail(rules: Iterable[Rule]) -> None:
    """Raises ManyErrors where a tail with these rules would hold up the events of all, or has limits."""
    refuse_limits(rules, "a tail has no limits: nobody reports what they hold back")
    _check_comparisons(rules, MAX_TAIL_COMPARISONS)


def _check_comparisons(rules: Iterable[Rule], limit: int) -> None:
    total = sum(count_comparisons(rule.expression) for rule in rules)
    if total > limit:
        raise _refuse(f"the rules need {total:,} comparisons", limit)


def count_comparisons(expression: Expression) -> int:
    """What is written out for a condition, at most."""
    return _measure(expression, negated=False).comparisons


def _refuse(message: str, limit: int) -> ManyErrors:
    return ManyErrors([RuleError(f"{message}: at most {limit:,} are allowed", hint=SPLIT)])


def _measure(expression: Expression, *, negated: bool) -> Size:
    """As push_not_inward() would make it; `negated` is whether a `not` stands around it."""
    match expression:
        case ast.Not(item):
            return _measure(item, negated=not negated)
        case ast.And(items) | ast.Or(items):
            sizes = [_measure(item, negated=negated) for item in items]
            total = sum(size.comparisons for size in sizes)
            if isinstance(expression, ast.Or) is not negated:
                return Size(total)
            parts, lists = sum(size.parts for size in sizes), sum(size.lists for size in sizes)
            return Size(total + parts * lists // PAIRS, parts, lists)
        case ast.NetworkIn(fields, names):
            return _measure_network(len(fields), names, negated=negated)
        case ast.AddressIn(fields, prefixes):
            return Size(len(fields) * _count_written(prefixes), lists=0 if negated else 1)
        case ast.NumberIn(fields, ranges):
            asks = int(negated and fields[0].optional)  # whether the event carries it
            return Size(len(fields) * (_count_written(ranges) + asks), lists=0 if negated else 1)
        case ast.SetIn(fields):  # a list like others, however long
            return Size(LONGEST_WRITTEN * len(fields))
        case ast.LocationIn(fields):
            return Size(3 * len(fields))
        case ast.MarkIn(marks):
            return Size(len(marks))
        case ast.NatHas():
            return Size(4)
        case ast.Compare():
            return Size(3)
        case _:
            return Size(1)


def _measure_network(fields: int, names: Sequence[str], *, negated: bool) -> Size:
    """See expand_network(): PUBLIC is `not` in the others, once for each field."""
    is_public = PUBLIC in names
    prefixes = [prefix for name in NETWORKS if (name in names) is not is_public for prefix in NETWORKS[name]]
    parts = fields if is_public and negated else 1
    lists = parts if is_public is negated else 0
    return Size(fields * _count_written(prefixes), parts, lists)


def _count_written(values: Sequence[object]) -> int:
    return max(1, min(len(values), LONGEST_WRITTEN))
