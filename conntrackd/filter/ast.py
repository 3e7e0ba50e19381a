"""Rules and expressions: immutable, compared by value, knowing their span in the text.

An expression is true, false or unknown of an event (Kleene's three values). A leaf is unknown when the event
does not carry an optional field that it asks about (a port of ICMP, the state of UDP, a counter, a country):

    not unknown = unknown        unknown and false = false        unknown or true = true
    every other `and` and `or` with an unknown part = unknown, unless the other parts settle it as above

A rule matches when its expression is true: one that needs what the event does not carry does not match, with
or without a `not` in front. A field that is not optional is always known (a mark, a zone or a status that the
message leaves out is 0). An address of the other family is known, and is not in the list: false.

A leaf asks about one or more `fields`, and is the `or` of what it asks about each (`port 80`: either side).
Leaves hold integers, bytes, and names that fields.py declares. The only texts are the countries and cities of
LocationIn, which the core never sees.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from conntrackd.filter import fields
from conntrackd.filter.fields import NETWORKS, PUBLIC, Field, Prefix
from conntrackd.filter.limit import Limit
from conntrackd.filter.sets import AddressSet, Sets
from conntrackd.flow import Nat

Span = tuple[int, int]
Range = tuple[int, int]
NO_SPAN: Span = (0, 0)


@dataclass(frozen=True, slots=True)
class Anything:
    """True of every event (`any`)."""

    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class TypeIs:
    """The event's type is one of these bits (EventType)."""

    mask: int
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class NumberIn:
    """A number (protocol, port, ICMP identifier, state, zone, family) lies in one of these inclusive ranges.

    All fields are of one kind; the ranges are sorted and without duplicates, but may overlap or touch.
    """

    fields: tuple[Field, ...]
    ranges: tuple[Range, ...]
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class StatusHas:
    """The status has at least one of these bits (Status)."""

    mask: int
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class NatHas:
    """The flow is translated at one of these ends at least (Nat bits), as compute_nat() has it."""

    mask: int
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class MarkIn:
    """The mark under a mask is the value, for one of these pairs of value and mask. value & ~mask is 0."""

    marks: tuple[tuple[int, int], ...]
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class AddressIn:
    """An address lies in one of these prefixes, which are sorted (see sort_prefixes) and may overlap."""

    fields: tuple[Field, ...]
    prefixes: tuple[Prefix, ...]
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class SetIn:
    """An address lies in a named set; the name alone is compared, for rules of one configuration."""

    fields: tuple[Field, ...]
    name: str
    addresses: AddressSet = field(compare=False)
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class NetworkIn:
    """An address lies in one of these networks (names of fields.NETWORKS, sorted). See expand_network()."""

    fields: tuple[Field, ...]
    names: tuple[str, ...]
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class LocationIn:
    """A country is one of these codes (upper case) or names (case-folded), or a city one of these names.

    Unknown where there is no location, or one whose text is empty.
    """

    fields: tuple[Field, ...]
    values: tuple[str, ...]
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """A counter or the duration (in nanoseconds) compared with a number; `operator` is one of OPERATORS."""

    subject: Field
    operator: str
    number: int
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """Never holds another Not: make it with negate()."""

    item: "Expression"
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class And:
    """Two items or more, none of them an And: make it with conjoin()."""

    items: tuple["Expression", ...]
    span: Span = field(default=NO_SPAN, compare=False)


@dataclass(frozen=True, slots=True)
class Or:
    """Two items or more, none of them an Or: make it with disjoin()."""

    items: tuple["Expression", ...]
    span: Span = field(default=NO_SPAN, compare=False)


Leaf = (
    Anything
    | TypeIs
    | NumberIn
    | StatusHas
    | NatHas
    | MarkIn
    | AddressIn
    | SetIn
    | NetworkIn
    | LocationIn
    | Compare
)
Expression = Leaf | Not | And | Or


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do (`keep`: log it, else drop it) with an event of which the expression is true."""

    keep: bool
    expression: Expression
    text: str = field(default="", compare=False)
    origin: str = field(default="", compare=False)
    sample: int = 0
    """One flow of so many is logged, and the others are not, though the rule matches; 0: each is."""
    limit: Limit | None = None
    """How many of the events are logged, and the others are not, though the rule matches."""


def negate(item: Expression, span: Span = NO_SPAN) -> Expression:
    """`not item`; of a Not its item, which is the same in three-valued logic too."""
    return item.item if isinstance(item, Not) else Not(item, span)


def conjoin(items: Iterable[Expression], span: Span = NO_SPAN) -> Expression:
    """All of them, flat; a single one is itself."""
    flat = tuple(part for item in items for part in (item.items if isinstance(item, And) else (item,)))
    return flat[0] if len(flat) == 1 else And(flat, span)


def disjoin(items: Iterable[Expression], span: Span = NO_SPAN) -> Expression:
    """Any of them, flat; a single one is itself."""
    flat = tuple(part for item in items for part in (item.items if isinstance(item, Or) else (item,)))
    return flat[0] if len(flat) == 1 else Or(flat, span)


def list_leaves(expression: Expression) -> Iterator[Leaf]:
    """All leaves, from left to right."""
    match expression:
        case And(items) | Or(items):
            for item in items:
                yield from list_leaves(item)
        case Not(item):
            yield from list_leaves(item)
        case _:
            yield expression


def list_fields(expression: Expression) -> Iterator[Field]:
    """The attributes of the message that a condition asks for."""
    for leaf in list_leaves(expression):
        match leaf:
            case NumberIn(asked) | AddressIn(asked):
                yield from (field for field in asked if field.paths)
            case StatusHas():
                yield fields.STATUS
            case MarkIn():
                yield fields.MARK
            case NatHas(mask):
                if mask & Nat.SNAT:
                    yield from (fields.SRC, fields.REPLY_DST, fields.SPORT, fields.REPLY_DPORT)
                    yield from fields.ICMP_IDS.values()
                if mask & Nat.DNAT:
                    yield from (fields.DST, fields.REPLY_SRC, fields.DPORT, fields.REPLY_SPORT)
            case Compare(subject) if subject.paths:
                yield subject
            case _:
                pass


def is_undecidable(leaf: Leaf) -> bool:
    """Whether the kernel's program has to leave it to the core."""
    is_duration = isinstance(leaf, Compare) and leaf.subject is fields.DURATION
    return is_duration or isinstance(leaf, LocationIn | SetIn)


def get_sets(rules: Iterable[Rule]) -> dict[str, AddressSet]:
    """The sets that rules name, in the order of their names."""
    leaves = (leaf for rule in rules for leaf in list_leaves(rule.expression) if isinstance(leaf, SetIn))
    return {leaf.name: leaf.addresses for leaf in sorted(leaves, key=lambda leaf: leaf.name)}


def put_sets(rules: Iterable[Rule], sets: Sets) -> tuple[Rule, ...]:
    """The same rules with these sets, as far as there are some of the names."""
    return tuple(replace(rule, expression=_put_sets(rule.expression, sets)) for rule in rules)


def _put_sets(expression: Expression, sets: Sets) -> Expression:
    match expression:
        case And(items) | Or(items):
            return replace(expression, items=tuple(_put_sets(item, sets) for item in items))
        case Not(item):
            return replace(expression, item=_put_sets(item, sets))
        case SetIn(_, name) if name in sets:
            return replace(expression, addresses=sets[name])
        case _:
            return expression


def uses_location(rules: Sequence[Rule]) -> bool:
    """Whether a rule asks for a country or city, so that events must be located before they are selected."""
    return any(isinstance(leaf, LocationIn) for rule in rules for leaf in list_leaves(rule.expression))


def has_limits(rules: Sequence[Rule]) -> bool:
    """Whether a rule has a limit."""
    return any(rule.limit is not None for rule in rules)


def expand_network(leaf: NetworkIn) -> Expression:
    """The same condition in prefixes. PUBLIC: in none of the networks that the leaf does not name."""
    if PUBLIC not in leaf.names:
        return AddressIn(leaf.fields, _list_prefixes(leaf.names), leaf.span)
    others = _list_prefixes([name for name in NETWORKS if name not in leaf.names])
    return disjoin((Not(AddressIn((address,), others, leaf.span)) for address in leaf.fields), leaf.span)


def _list_prefixes(names: Iterable[str]) -> tuple[Prefix, ...]:
    return sort_prefixes(prefix for name in names for prefix in NETWORKS[name])


def sort_prefixes(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """In the order of AddressIn: IPv4 before IPv6, then by address and length; without duplicates."""
    return tuple(sorted(set(prefixes), key=lambda prefix: (len(prefix.network), prefix)))


def merge_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The fewest inclusive ranges that hold the same numbers, in order."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def compute_span(prefix: Prefix) -> Range:
    """The first and the last address of a prefix, as numbers."""
    first = int.from_bytes(prefix.network, "big")
    return first, first | (1 << len(prefix.network) * 8 - prefix.length) - 1


def push_not_inward(expression: Expression) -> Expression:  # one for each kind of node
    """The same condition with every Not directly around a leaf, and networks as prefixes.

    Then it is true exactly where its And and Or of true leaves and false `not` leaves say so, and a compiler
    needs no third value: it only has to know when a leaf is true and when it is false.
    """
    match expression:
        case And(items, span):
            return conjoin((push_not_inward(item) for item in items), span)
        case Or(items, span):
            return disjoin((push_not_inward(item) for item in items), span)
        case NetworkIn():
            return expand_network(expression)
        case Not(Or(items, span)):
            return conjoin((push_not_inward(negate(item)) for item in items), span)
        case Not(And(items, span)):
            return disjoin((push_not_inward(negate(item)) for item in items), span)
        case Not(NetworkIn() as leaf):
            return push_not_inward(negate(expand_network(leaf)))
        case _:
            return expression
