"""What is wanted of what was logged, and what of it could not be read.

And what all events that rules can keep have in common: the simple parts, for a store that has an index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from conntrackd.errors import ConntrackdError, DataError, NotPermittedError
from conntrackd.filter.ast import AddressIn, And, Anything, Expression, NumberIn, Rule, TypeIs
from conntrackd.filter.evaluate import Decision, evaluate
from conntrackd.flow import EventType, Flow
from conntrackd.history.times import Span
from conntrackd.render.fields import FIELDS
from conntrackd.render.parse import LEFT_OUT, REPORTS, find_nanoseconds, parse_record
from conntrackd.render.plain import render_address

Condition = dict[str, list[str]]
"""Names of fields, with the values that each of them can have."""

# Of one list in a rule: with more an index gains nothing.
MAX_VALUES: Final = 64
# What is written whatever its value is: no field of a translation, and no zone, which may be 0.
OUTPUTS: Final = {field.attribute: field for field in FIELDS if not field.needs and field.attribute != "zone"}


@dataclass(slots=True)
class Damage:
    """Records that cannot be read: left out, counted, and reported at the end. And what may not be seen."""

    count: int = 0
    first: DataError | None = None
    hidden: NotPermittedError | None = None

    def add(self, origin: str, error: DataError) -> None:
        """One more, with where it is."""
        self.count += 1
        if self.first is None:
            error.origin = origin
            self.first = error

    def list_warnings(self) -> list[ConntrackdError]:
        """One message about all that is damaged, one about what is hidden."""
        found: list[ConntrackdError] = [] if self.hidden is None else [self.hidden]
        if self.first is not None:
            number = "one record is" if self.count == 1 else f"{self.count} records are"
            first = "" if self.count == 1 else ", the first one here"
            message = f"{number} damaged and left out{first}: {self.first.message}"
            found.append(DataError(message, origin=self.first.origin, hint=self.first.hint))
        return found


ALWAYS: Final = Span()


@dataclass(frozen=True, slots=True)
class HistorySelection:
    """A time, rules as the daemon has them, and where damage is counted."""

    span: Span = ALWAYS
    rules: Sequence[Rule] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    damage: Damage = field(default_factory=Damage)

    def accepts(self, record: Mapping[str, Any]) -> bool:
        """Whether the record is wanted. LOST and SUPPRESSED records pass every rule. Raises DataError."""
        flow = parse_record(record, self.labels)
        time = find_nanoseconds(record.get("time")) if flow is None else flow.time
        if time is None:
            raise DataError("its time cannot be read")
        if flow is None:
            return self.span.holds(time)
        if self.span != ALWAYS and record.get("time") is None:
            raise DataError("the required field 'time' is missing", hint=LEFT_OUT)
        return evaluate_record(self.rules, record, flow).keep and self.span.holds(time)


def evaluate_record(rules: Sequence[Rule], record: Mapping[str, Any], flow: Flow) -> Decision:
    """What the rules say of a record read as `flow`. Raises DataError where a sample is not known."""
    decision = evaluate(rules, flow)
    number = decision.rule_number
    if number and rules[number - 1].sample and record.get("flow") is None:
        raise DataError("the required field 'flow' is missing, which a sample asks for", hint=LEFT_OUT)
    return decision


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
