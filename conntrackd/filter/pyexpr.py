"""A condition of one event -> a Python expression over `f`, made of integers, bytes and fields' attributes.

What a rule holds as text (countries, cities) and long lists become constants handed in beside the source.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, assert_never

from conntrackd.filter.ast import (
    AddressIn,
    And,
    Anything,
    Compare,
    Expression,
    Leaf,
    LocationIn,
    MarkIn,
    NatHas,
    NetworkIn,
    Not,
    NumberIn,
    Or,
    StatusHas,
    TypeIs,
    expand_network,
    find_span,
    merge_ranges,
)
from conntrackd.filter.fields import DURATION, FAMILIES, Field
from conntrackd.flow import ABSENT, Nat

# A list up to this length stands in the source, a longer one beside it.
SHORT: Final = 8
# From here on bisecting all bounds is quicker than comparing with one range after the other.
MANY_RANGES: Final = 4
FULL_MARK: Final = (1 << 32) - 1
# Bytes of an address, in the order of versions -> the family.
SIZES: Final = {4: FAMILIES["IPV4"], 16: FAMILIES["IPV6"]}
OPPOSITE: Final = {"<": ">=", "<=": ">", "=": "!=", "!=": "=", ">=": "<", ">": "<="}


class Expressions:
    """Writes expressions, and keeps the constants they need.

    Attributes in `hoisted` are read from a local variable of the same name; `uses` counts all reads.
    """

    def __init__(self, hoisted: frozenset[str] = frozenset()) -> None:
        self.constants: dict[str, Any] = {"bisect": bisect}
        self.uses: Counter[str] = Counter()
        self._hoisted = hoisted

    def write(self, expression: Expression) -> str:
        """True where the condition is true; Nots must have been pushed inward."""
        match expression:
            case And(items):
                return join(" and ", [self.write(item) for item in items])
            case Or(items):
                return join(" or ", [self.write(item) for item in items])
            case Not(item):
                assert not isinstance(item, And | Or | Not)
                return self._write_false(item)
            case _:
                return self._write_true(expression)

    def read(self, attribute: str) -> str:
        """An attribute of the event."""
        self.uses[attribute] += 1
        return attribute if attribute in self._hoisted else f"f.{attribute}"

    def keep(self, value: object) -> str:
        """The name of a constant."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def write_membership(self, name: str, values: Sequence[int | bytes]) -> str:
        """Whether what the text `name` stands for is one of the values."""
        if len(values) == 1:
            return f"{name} == {values[0]!r}"
        if 0 < len(values) <= SHORT:
            return f"{name} in {{{', '.join(repr(value) for value in values)}}}"
        return f"{name} in {self.keep(frozenset(values))}"

    def _write_true(self, leaf: Leaf) -> str:  # one for each kind of leaf
        match leaf:
            case Anything():
                return "True"
            case TypeIs(mask):
                return f"{self.read('type')} & {mask}"
            case StatusHas(mask):
                return f"{self.read('status')} & {mask}"
            case NatHas(mask):
                return self._write_nat(mask)
            case MarkIn(marks):
                return join(" or ", [self._write_mark(value, mask) for value, mask in marks])
            case NumberIn(fields):
                return join(" or ", [self._write_number(self.read(each.attribute), leaf) for each in fields])
            case AddressIn(fields):
                return join(" or ", [self._write_address(self.read(each.attribute), leaf) for each in fields])
            case NetworkIn():
                return self.write(expand_network(leaf))
            case LocationIn(fields):
                return join(" or ", [self._write_location(each, "in", leaf.values) for each in fields])
            case Compare(subject, operator, number):
                return self._write_comparison(subject, operator, number)
        assert_never(leaf)

    def _write_false(self, leaf: Leaf) -> str:
        """Where the condition is false, which is not where it is unknown."""
        match leaf:
            case NumberIn(fields) if fields[0].optional:
                known = [f"{self.read(each.attribute)} != {ABSENT}" for each in fields]
                return join(" and ", [*known, f"not {_enclose(self._write_true(leaf))}"])
            case LocationIn(fields):
                return join(" and ", [self._write_location(each, "not in", leaf.values) for each in fields])
            case Compare(subject, operator, number):
                return self._write_comparison(subject, OPPOSITE[operator], number)
            case _:
                return f"not {_enclose(self._write_true(leaf))}"

    def _write_nat(self, mask: int) -> str:
        """As find_nat() of flow.py, without the call."""
        ends = []
        if mask & Nat.SNAT:
            ends += [("reply_dst", "src"), ("reply_dport", "sport")]
        if mask & Nat.DNAT:
            ends += [("reply_src", "dst"), ("reply_sport", "dport")]
        return join(" or ", [f"{self.read(reply)} != {self.read(original)}" for reply, original in ends])

    def _write_mark(self, value: int, mask: int) -> str:
        masked = self.read("mark") if mask == FULL_MARK else f"{self.read('mark')} & {mask}"
        return f"{masked} == {value}"

    def _write_number(self, name: str, leaf: NumberIn) -> str:
        return self._write_ranges(name, [(low, high) for low, high in merge_ranges(leaf.ranges)], None)

    def _write_address(self, name: str, leaf: AddressIn) -> str:
        """Single addresses by a set, networks by their bounds, which say something within one family only."""
        alternatives = []
        for size, family in SIZES.items():
            spans = merge_ranges(find_span(each) for each in leaf.prefixes if len(each.network) == size)
            single = [low for low, high in spans if low == high]
            wide = [span for span in spans if span[0] != span[1]]
            if single:
                alternatives.append(
                    self.write_membership(name, [each.to_bytes(size, "big") for each in single])
                )
            if wide:
                family_test = f"{self.read('family')} == {family}"
                within = self._write_ranges(name, wide, size)
                alternatives.append(
                    join(" and ", [family_test] if within == "True" else [family_test, within])
                )
        return join(" or ", alternatives)

    def _write_ranges(self, name: str, ranges: Sequence[tuple[int, int]], size: int | None) -> str:
        """`size` None: of numbers, else of addresses of that many bytes."""
        if size is not None and ranges[0] == (0, (1 << size * 8) - 1):
            return "True"
        if len(ranges) > MANY_RANGES:
            if size is None and all(low == high for low, high in ranges):
                return self.write_membership(name, [low for low, _ in ranges])
            bounds = [bound for low, high in ranges for bound in (low, high + 1)]
            # An odd number of bounds at or below it: inside a range.
            return f"bisect({self.keep([to_value(each, size) for each in bounds])}, {name}) & 1"
        return join(
            " or ", [_write_range(name, to_value(low, size), to_value(high, size)) for low, high in ranges]
        )

    def _write_location(self, field: Field, operator: str, values: Iterable[str]) -> str:
        location, _, attribute = field.attribute.partition(".")
        text = f"{self.read(location)}.{attribute}"
        known = [f"{self.read(location)} is not None", text]
        fold = "upper" if attribute == "country" else "casefold"
        return join(" and ", [*known, f"{text}.{fold}() {operator} {self.keep(frozenset(values))}"])

    def _write_comparison(self, subject: Field, operator: str, number: int) -> str:
        operator = "==" if operator == "=" else operator
        if subject is DURATION:
            start, stop = self.read("start"), self.read("stop")
            return f"({start} and {stop} and {stop} - {start} {operator} {number})"
        name = self.read(subject.attribute)
        return f"({name} != {ABSENT} and {name} {operator} {number})"


def join(operator: str, parts: list[str]) -> str:
    """`(a and b)`; one part is itself, none is what decides nothing."""
    if not parts:
        return "False"
    return parts[0] if len(parts) == 1 else f"({operator.join(parts)})"


def to_value(number: int, size: int | None) -> int | bytes:
    """As the event has it: a number, or the bytes of an address; one past the last is above all of them."""
    if size is None:
        return number
    return number.to_bytes(size, "big") if number < 1 << size * 8 else b"\xff" * (size + 1)


def _write_range(name: str, low: int | bytes, high: int | bytes) -> str:
    return f"{name} == {low!r}" if low == high else f"{low!r} <= {name} <= {high!r}"


def _enclose(text: str) -> str:
    return text if text.startswith("(") and text.endswith(")") else f"({text})"
