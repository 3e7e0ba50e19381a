"""What all events have in common that rules can keep: the simple parts, for a store that has an index."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from conntrackd.filter.ast import AddressIn, And, Anything, Expression, NumberIn, Rule, TypeIs
from conntrackd.flow import EventType
from conntrackd.render.fields import FIELDS
from conntrackd.render.parse import REPORTS
from conntrackd.render.plain import render_address

Condition = dict[str, list[str]]
"""Names of fields, with the values that each of them can have."""

# Of one list in a rule: with more an index gains nothing.
MAX_VALUES: Final = 64


def find_conditions(rules: Sequence[Rule]) -> list[Condition] | None:
    """What every event that is kept has, in one of several ways: fields, with the values they can have.

    None where it may be any event: one is kept that no rule matches, unless a rule drops all that is left.
    """
    found: list[Condition] = []
    for rule in rules:
        if isinstance(rule.expression, Anything):
            return None if rule.keep else found
        if rule.keep:
            condition = _make_condition(rule.expression)
            if not condition:
                return None
            found.append(condition)
    return None


def fulfils_any(record: Mapping[str, Any], conditions: Sequence[Condition]) -> bool:
    """False only of an event that has other values: what has none is for the rules to decide."""
    return str(record.get("type")) in REPORTS or any(
        all(str(record.get(name, values[0])) in values for name, values in condition.items())
        for condition in conditions
    )


def _make_condition(expression: Expression) -> Condition:
    """Of a rule's parts those that the journal's index can answer; all of them have to hold."""
    condition: Condition = {}
    for part in expression.items if isinstance(expression, And) else (expression,):
        name, values = _list_values(part)
        if values and name not in condition:
            condition[name] = values
    return condition


def _list_values(part: Expression) -> tuple[str, list[str]]:
    """The field that is asked about, and its values as they are written; none where it is not that simple."""
    match part:
        case TypeIs(mask):
            # Of all members: a type of more than one bit is in no iteration over the flags.
            return "type", [name for name, event in EventType.__members__.items() if event & mask]
        case NumberIn((field,), ranges) if sum(high - low + 1 for low, high in ranges) <= MAX_VALUES:
            output = OUTPUTS.get(field.attribute)
            if output is not None:
                numbers = sorted({number for low, high in ranges for number in range(low, high + 1)})
                return output.name, [output.names.get(number) or str(number) for number in numbers]
        case AddressIn((field,), prefixes) if len(prefixes) <= MAX_VALUES:
            output = OUTPUTS.get(field.attribute)
            if output is not None and all(len(net) * 8 == length for net, length in prefixes):
                return output.name, [render_address(net) for net, _ in prefixes]
    return "", []


# What is written whatever its value is: no field of a translation, and no zone, which may be 0.
OUTPUTS: Final = {field.attribute: field for field in FIELDS if not field.needs and field.attribute != "zone"}
