"""What rules mean, as plainly as can be: three values, one event, one rule after the other.

The reference: tools use it, and the core's decisions are compared with it. None is the third value, unknown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import eq, ge, gt, le, lt, ne
from types import MappingProxyType
from typing import Any, Final, NamedTuple, assert_never

from conntrackd.filter import ast
from conntrackd.filter.ast import Expression, Range, Rule
from conntrackd.filter.fields import DURATION, Field, is_in_prefixes, name_network
from conntrackd.filter.sample import is_sampled
from conntrackd.flow import ABSENT, ALL_EVENTS, Flow, Location, compute_nat, find_duration

OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = MappingProxyType(
    {"<": lt, "<=": le, "=": eq, "!=": ne, ">=": ge, ">": gt}
)
Truth = bool | None


class Decision(NamedTuple):
    """What becomes of an event. Neither kept nor decided by a rule: its type or protocol is left out."""

    keep: bool
    rule_number: int
    """From 1; 0 where no rule matched."""


def evaluate(
    rules: Sequence[Rule], flow: Flow, protocols: frozenset[int] | None = None, events: int = ALL_EVENTS
) -> Decision:
    """By the first rule that matches, for these protocols (None: all) and event types (bits)."""
    if is_left_out(flow, protocols, events):
        return Decision(False, 0)
    for number, rule in enumerate(rules, 1):
        if evaluate_expression(rule.expression, flow) is True:
            return Decision(rule.keep and is_sampled(flow.id, rule.sample), number)
    return Decision(True, 0)


def is_left_out(flow: Flow, protocols: frozenset[int] | None, events: int) -> bool:
    """Whether it is of a protocol or type that is not wanted, whatever the rules say."""
    is_other_type = events & ALL_EVENTS != ALL_EVENTS and not flow.type & events
    return is_other_type or (protocols is not None and flow.protocol not in protocols)


def evaluate_expression(expression: Expression, flow: Flow) -> Truth:  # noqa: PLR0912  # one for each node
    """True, False, or None for unknown."""
    match expression:
        case ast.Anything():
            return True
        case ast.Not(item):
            truth = evaluate_expression(item, flow)
            return None if truth is None else not truth
        case ast.And(items):
            return all_of(evaluate_expression(item, flow) for item in items)
        case ast.Or(items):
            return any_of(evaluate_expression(item, flow) for item in items)
        case ast.TypeIs(mask):
            return flow.type & mask != 0
        case ast.StatusHas(mask):
            return flow.status & mask != 0
        case ast.NatHas(mask):
            return compute_nat(flow) & mask != 0
        case ast.MarkIn(marks):
            return any(flow.mark & mask == value for value, mask in marks)
        case ast.NumberIn(fields, ranges):
            return any_of(_is_in_ranges(_read(field, flow), ranges) for field in fields)
        case ast.AddressIn(fields, prefixes):
            return any(is_in_prefixes(_read(field, flow), prefixes) for field in fields)
        case ast.SetIn(fields, _, addresses):
            return any(_read(field, flow) in addresses for field in fields)
        case ast.NetworkIn(fields, names):
            return any(name_network(_read(field, flow)) in names for field in fields)
        case ast.LocationIn(fields, values):
            return any_of(_is_located_in(field, flow, values) for field in fields)
        case ast.Compare(subject, operator, number):
            value = _find_quantity(subject, flow)
            return None if value is None else OPERATORS[operator](value, number)
    assert_never(expression)


def all_of(truths: Iterable[Truth]) -> Truth:
    """Kleene's `and`."""
    found = set(truths)
    return False if False in found else None if None in found else True


def any_of(truths: Iterable[Truth]) -> Truth:
    """Kleene's `or`."""
    found = set(truths)
    return True if True in found else None if None in found else False


def is_located_in(attribute: str, location: Location, values: Sequence[str]) -> Truth:
    """Whether a country, by code or name, or a city is one of these, as LocationIn has them."""
    if attribute == "country":
        known = {location.country_code.upper(), location.country.casefold()}
    else:
        known = {location.city.casefold()}
    known.discard("")
    return bool(known & set(values)) if known else None


def _read(field: Field, flow: Flow) -> Any:  # noqa: ANN401  # a number or an address
    return getattr(flow, field.attribute)


def _is_in_ranges(number: int, ranges: Sequence[Range]) -> Truth:
    return None if number == ABSENT else any(low <= number <= high for low, high in ranges)


def _is_located_in(field: Field, flow: Flow, values: Sequence[str]) -> Truth:
    end, _, attribute = field.attribute.partition(".")
    location = getattr(flow, end)
    return None if location is None else is_located_in(attribute, location, values)


def _find_quantity(subject: Field, flow: Flow) -> int | None:
    """A counter, or the duration, which may be negative: the clock was set back."""
    if subject is DURATION:
        return find_duration(flow)
    count: int = _read(subject, flow)
    return None if count == ABSENT else count
