"""What is wanted of what was logged, and what of it could not be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from conntrackd.errors import ConntrackdError, DataError, NotPermittedError
from conntrackd.filter.ast import Rule
from conntrackd.filter.evaluate import Decision, evaluate
from conntrackd.flow import Flow
from conntrackd.history.times import Span
from conntrackd.render.parse import LEFT_OUT, find_nanoseconds, parse_record


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
