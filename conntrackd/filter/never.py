"""Rules and values that no event of the kernel can match, with the likely meaning. Never warns wrongly.

shadowing.py compares a rule with earlier ones; here a rule is checked alone, against what the kernel can
report and what the settings let in.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Final, NamedTuple

from conntrackd.errors import RuleError
from conntrackd.filter import ast, fields
from conntrackd.filter.ast import (
    Expression,
    Leaf,
    Range,
    Rule,
    Span,
    compute_span,
    list_leaves,
    merge_ranges,
    push_not_inward,
)
from conntrackd.filter.diagnostics import show
from conntrackd.filter.render import render
from conntrackd.filter.shadowing import list_shadowed, to_ranges
from conntrackd.flow import ALL_EVENTS, EventType, Protocol
from conntrackd.text import quote, suggest

LOGS_FIRST_HINT: Final = "put a rule that logs before the one that drops any"
LOGS_NOTHING_HINT: Final = f"{LOGS_FIRST_HINT}, or switch off the sink"
DROP_ANY_HINT: Final = "a last rule 'drop any' leaves out what no other one logs"
ALL_PROTOCOLS: Final = frozenset(range(256))
# nf_conntrack_proto_*.c: those whose tuples have ports. ICMP's are an identifier, type and code.
WITH_PORTS: Final = frozenset({6, 17, 33, 47, 132, 136})
WITH_ICMP_IDS: Final = frozenset({int(Protocol.ICMP), int(Protocol.ICMPV6)})
ICMP_IDS: Final = frozenset(fields.ICMP_IDS.values())
PORTS: Final = frozenset({fields.SPORT, fields.DPORT, fields.REPLY_SPORT, fields.REPLY_DPORT})
COUNTRIES: Final = frozenset({fields.SRC_COUNTRY, fields.DST_COUNTRY})
NAMES: Final = {int(protocol): protocol.name for protocol in Protocol}
MAPPED: Final = ip_network("::ffff:0:0/96")
MAPPED_RANGE: Final = compute_span(fields.to_prefix(MAPPED))
# ISO 3166-1 alpha-2 by its first letter, and XK, which is Kosovo to everybody who makes such databases.
SECOND_LETTERS: Final = {
    "A": "DEFGILMOQRSTUWXZ", "B": "ABDEFGHIJLMNOQRSTVWYZ", "C": "ACDFGHIKLMNORUVWXYZ", "D": "EJKMOZ",
    "E": "CEGHRST", "F": "IJKMOR", "G": "ABDEFGHILMNPQRSTUWY", "H": "KMNRTU", "I": "DELMNOQRST",
    "J": "EMOP", "K": "EGHIMNPRWYZ", "L": "ABCIKRSTUVY", "M": "ACDEFGHKLMNOPQRSTUVWXYZ",
    "N": "ACEFGILOPRUZ", "O": "M", "P": "AEFGHKLMNRSTWY", "Q": "A", "R": "EOSUW",
    "S": "ABCDEGHIJKLMNORSTVXYZ", "T": "CDFGHJKLMNORTVWZ", "U": "AGMSYZ", "V": "ACEGINU", "W": "FS",
    "X": "K", "Y": "ET", "Z": "AMW",
}  # fmt: skip
CODES: Final = frozenset(first + second for first, letters in SECOND_LETTERS.items() for second in letters)

# Languages, domains, car plates, and states that are gone.
MEANT: Final = {
    "AN": "CW", "BU": "MM", "CS": "CZ", "DD": "DE", "EL": "GR", "EN": "GB", "FX": "FR", "JA": "JP",
    "KO": "KR", "SP": "ES", "SU": "RU", "SW": "SE", "TP": "TL", "UK": "GB", "YU": "RS", "ZR": "CD",
}  # fmt: skip
# Conditions of all rules that are looked at, 26 us each: what comes after them is not claimed to be in vain.
MAX_STEPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class EventScope:
    """What the settings let in."""

    events: int = ALL_EVENTS | EventType.ALIVE
    protocols: frozenset[int] = ALL_PROTOCOLS
    has_locations: bool = True
    """Whether a database says where addresses are."""
    has_flows_alone: bool = False
    """Whether conntrack.records has the rules evaluate the ends of flows alone."""
    has_table: bool = True
    """Whether flows of the table are logged too, which have counters whatever their type."""


class NeverMatch(NamedTuple):
    """Why something never matches, the words that say it, and what was meant."""

    message: str
    span: Span
    hint: str = "remove it"

    def to_warning(self, rule: Rule, number: int) -> RuleError:
        """As it is shown to people."""
        excerpt = show(rule.text, *self.span) if rule.text else render(rule)
        return RuleError(
            self.message, origin=rule.origin or f"rule {number}", excerpt=excerpt, hint=self.hint
        )


Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class World:
    """The events that are left by the conditions so far."""

    types: int
    protocols: frozenset[int]
    families: frozenset[int] = frozenset(fields.FAMILIES.values())
    numbers: dict[tuple[fields.Field, int], Ranges] = field(default_factory=dict)
    """Of a field, and for an address of each length in bytes."""


def logs_nothing(rules: Sequence[Rule]) -> bool:
    """Whether a rule drops any event before one logs. What no rule decides is logged."""
    ends = (rule.keep for rule in rules if rule.keep or isinstance(rule.expression, ast.Anything))
    return not next(ends, True)


def list_silence(rules: Sequence[Rule]) -> list[RuleError]:
    """A warning where the rules log nothing, for a filter that all sinks have in common."""
    return [RuleError("the filter logs no event", hint=LOGS_FIRST_HINT)] if logs_nothing(rules) else []


def drops_nothing(rules: Sequence[Rule]) -> bool:
    """Whether there are rules, they leave nothing out, and none of them is the `log any` that says so."""
    return bool(rules) and not any(
        rule.sample or rule.limit or not rule.keep or isinstance(rule.expression, ast.Anything)
        for rule in rules
    )


def list_notes(rules: Sequence[Rule]) -> list[RuleError]:
    """What is right, and maybe not what was meant."""
    text = "no rule drops anything: events that no rule matches are logged, too"
    return [RuleError(text, hint=DROP_ANY_HINT)] if drops_nothing(rules) else []


def list_warnings(rules: Sequence[Rule], scope: EventScope | None = None) -> list[RuleError]:
    """All that is in the rules and does nothing, in the order of the rules."""
    search = Search(scope or EventScope())
    shadowed = {rule.number: rule.to_warning() for rule in list_shadowed(rules)}
    found: list[RuleError] = []
    for number, rule in enumerate(rules, 1):
        reasons = list(list_empty_values(rule.expression))
        if not reasons and (reason := search.find(rule.expression)) is not None:
            reasons = [reason]
        found += [reason.to_warning(rule, number) for reason in reasons]
        if number in shadowed and not reasons:
            found.append(shadowed[number])
    return found


# ---- values -------------------------------------------------------------------------------------------


def list_empty_values(expression: Expression) -> Iterator[NeverMatch]:
    """Values that no event has, wherever they stand."""
    for leaf in list_leaves(expression):
        match leaf:
            case ast.AddressIn(_, prefixes, span):
                for prefix in prefixes:
                    yield from _check_mapped(prefix, span)
            case ast.SetIn(_, name, addresses, span) if not addresses.entries:
                yield NeverMatch(f"the set @{name} is empty and never matches", span, f"see {addresses.path}")
            case ast.LocationIn(asked, values, span) if set(asked) <= COUNTRIES:
                for code in values:
                    yield from _check_country(code, span)


def _check_mapped(prefix: fields.Prefix, span: Span) -> Iterator[NeverMatch]:
    """To conntrack an IPv4 flow is one of IPv4, whatever the socket of the program calls its addresses."""
    low, high = compute_span(prefix)
    if len(prefix.network) == 16 and MAPPED_RANGE[0] <= low and high <= MAPPED_RANGE[1]:
        network = ip_network((prefix.network[12:], prefix.length - MAPPED.prefixlen))
        meant = network.network_address if network.prefixlen == 32 else network
        yield NeverMatch("an IPv4-mapped address never matches", span, f"did you mean {meant}?")


def _check_country(code: str, span: Span) -> Iterator[NeverMatch]:
    if len(code) == 2 and code not in CODES:  # what is longer is a name
        meant = f"did you mean {MEANT[code]}?" if code in MEANT else "two letters of ISO 3166, such as DE"
        yield NeverMatch(f"{code} is not a country code and never matches", span, meant)


def list_unknown_countries(rules: Sequence[Rule], known: Collection[str]) -> list[RuleError]:
    """Names of countries that no database has; `known` are those that they have, or nothing."""
    found, folded = [], {name.casefold() for name in known}
    for number, rule in enumerate(rules if known else (), 1):
        for leaf in list_leaves(rule.expression):
            if isinstance(leaf, ast.LocationIn) and set(leaf.fields) <= COUNTRIES:
                names = (name for name in leaf.values if len(name) != 2 and name not in folded)
                found += [_explain_country(name, leaf.span, known).to_warning(rule, number) for name in names]
    return found


def _explain_country(name: str, span: Span, known: Collection[str]) -> NeverMatch:
    hint = suggest(name, known) or "names are those of geoip.locale; two letters of ISO 3166 match in any"
    return NeverMatch(f"no database has a country {quote(name)}", span, hint)


# ---- contradictions -----------------------------------------------------------------------------------


class Search:
    """Walks through rules, which take so many steps and no more."""

    def __init__(self, scope: EventScope) -> None:
        self._scope = scope
        self._steps = 0

    def find(self, expression: Expression) -> NeverMatch | None:
        """Why no event can match."""
        if self._steps > MAX_STEPS:
            return None
        world = World(self._scope.events, self._scope.protocols)
        found = self._narrow(push_not_inward(expression), world)
        return found if isinstance(found, NeverMatch) else None

    def _narrow(self, expression: Expression, world: World) -> World | NeverMatch:
        """What the condition leaves of the events, or why that is nothing."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            return world
        match expression:
            case ast.And(items):
                # What is one condition first: then each alternative is looked at beside all of them.
                for item in sorted(items, key=lambda item: isinstance(item, ast.Or)):
                    found = self._narrow(item, world)
                    if isinstance(found, NeverMatch):
                        return found
                    world = found
                return world
            case ast.Or(items):
                narrowed = [self._narrow(item, world) for item in items]
                reasons = [found for found in narrowed if isinstance(found, NeverMatch)]
                return reasons[0] if len(reasons) == len(narrowed) else world
            case ast.Not(item):
                return self._narrow_leaf(item, world, holds=False)  # type: ignore[arg-type]  # Nots are inward
            case _:
                return self._narrow_leaf(expression, world, holds=True)

    def _narrow_leaf(self, leaf: Leaf, world: World, *, holds: bool) -> World | NeverMatch:
        match leaf:
            case ast.TypeIs(mask, span):
                return self._narrow_types(world, mask if holds else ~mask, span)
            case ast.LocationIn(span=span) if not self._scope.has_locations:
                return NeverMatch(
                    "this rule can never match: no location is known", span, "set geoip.database"
                )
            case ast.Compare(subject, span=span):
                counted = EventType.DESTROY | EventType.ALIVE
                left = world if self._scope.has_table else self._narrow_types(world, counted, span)
                ranges = to_ranges(leaf) if holds else ()
                return (
                    left
                    if isinstance(left, NeverMatch) or not holds
                    else _cut(left, (subject, 0), ranges, span)
                )
            case ast.NumberIn(some, ranges, span) if some == (fields.PROTOCOL,):
                wanted = frozenset(number for low, high in ranges for number in range(low, high + 1))
                return self._narrow_protocols(world, wanted if holds else ALL_PROTOCOLS - wanted, span)
            case ast.NumberIn(some, ranges, span):
                return self._narrow_numbers(world, some, ranges, span, holds=holds)
            case ast.AddressIn():
                return _narrow_addresses(world, leaf, holds=holds)
        return world

    def _narrow_types(self, world: World, mask: int, span: Span) -> World | NeverMatch:
        if world.types & mask:
            return replace(world, types=world.types & mask)
        if not self._scope.events & mask:
            names = [
                str(event_type.name).lower() for event_type in EventType if event_type & mask & ALL_EVENTS
            ]
            hint = f"add {', '.join(names)} to conntrack.events" if names else "set conntrack.heartbeat"
            if self._scope.has_flows_alone and names:
                hint = "with conntrack.records: flows, only DESTROY events are evaluated"
            return NeverMatch("this rule can never match: events of this type are not processed", span, hint)
        return NeverMatch("this rule can never match: no event of its type has this", span)

    def _narrow_protocols(self, world: World, wanted: frozenset[int], span: Span) -> World | NeverMatch:
        if world.protocols & wanted:
            return replace(world, protocols=world.protocols & wanted)
        if not self._scope.protocols & wanted:
            names = ", ".join(NAMES.get(number, str(number)).lower() for number in sorted(wanted)[:8])
            hint = f"add {names} to conntrack.protocols"
            return NeverMatch("this rule can never match: this protocol is not processed", span, hint)
        return NeverMatch("this rule can never match: no event of its protocol has this", span)

    def _narrow_numbers(
        self,
        world: World,
        some: tuple[fields.Field, ...],
        ranges: tuple[Range, ...],
        span: Span,
        *,
        holds: bool,
    ) -> World | NeverMatch:
        """A port, identifier or state that is asked about is there, whatever the answer."""
        left: World | NeverMatch = world
        if some == (fields.STATE,):
            left = self._narrow_protocols(world, frozenset({int(Protocol.TCP)}), span)
        elif set(some) <= PORTS:
            left = self._narrow_protocols(world, WITH_PORTS, span)
        elif set(some) <= ICMP_IDS:
            left = self._narrow_protocols(world, WITH_ICMP_IDS, span)
        if isinstance(left, NeverMatch) or not holds:
            return left
        if some == (fields.FAMILY,):
            families = frozenset(number for number, _ in ranges)
            return _narrow_families(left, families, span)
        return left if len(some) > 1 else _cut(left, (some[0], 0), merge_ranges(ranges), span)


def _narrow_families(world: World, families: frozenset[int], span: Span) -> World | NeverMatch:
    if world.families & families:
        return replace(world, families=world.families & families)
    return NeverMatch("this rule can never match: no event is both IPv4 and IPv6", span)


def _narrow_addresses(world: World, leaf: ast.AddressIn, *, holds: bool) -> World | NeverMatch:
    if not holds:
        return world
    sizes = {len(prefix.network) for prefix in leaf.prefixes}
    by_size = {4: fields.FAMILIES["IPV4"], 16: fields.FAMILIES["IPV6"]}
    left = _narrow_families(world, frozenset(by_size[size] for size in sizes), leaf.span)
    if isinstance(left, NeverMatch) or len(leaf.fields) > 1 or len(sizes) > 1:
        return left
    (size,) = sizes
    ranges = merge_ranges(compute_span(prefix) for prefix in leaf.prefixes)
    return _cut(left, (leaf.fields[0], size), ranges, leaf.span)


def _cut(world: World, key: tuple[fields.Field, int], ranges: Ranges, span: Span) -> World | NeverMatch:
    """What two conditions on one field have in common."""
    common = _intersect(world.numbers.get(key, ((0, float("inf")),)), ranges)
    if not common:
        return NeverMatch("this rule can never match: its conditions exclude each other", span)
    return replace(world, numbers={**world.numbers, key: common})


def _intersect(first: Ranges, second: Ranges) -> Ranges:
    """What is in both; each is in order, and its ranges do not overlap."""
    common: list[tuple[float, float]] = []
    one, two = 0, 0
    while one < len(first) and two < len(second):
        low, high = max(first[one][0], second[two][0]), min(first[one][1], second[two][1])
        if low <= high:
            common.append((low, high))
        if first[one][1] < second[two][1]:
            one += 1
        else:
            two += 1
    return tuple(common)
