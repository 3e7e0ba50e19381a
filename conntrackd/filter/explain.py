"""What becomes of rules, for people: canonical text, groups, what the kernel decides, the table of tests."""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import pairwise
from typing import Final

from conntrackd import bpf
from conntrackd.config.options import CONNTRACK_EVENTS, CONNTRACK_PROTOCOLS
from conntrackd.filter import fields
from conntrackd.filter.ast import Rule, get_sets
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.render import render
from conntrackd.filter.sets import AddressSet, Sets
from conntrackd.filter.table import (
    FOUND,
    MAX_NUMBER,
    WORD_BITS,
    Condition,
    Interval,
    Table,
    Test,
    compile_table,
)
from conntrackd.flow import NANO, EventType
from conntrackd.units import DURATION_UNITS, MAX_U32, render_size, render_whole

# Of a long list the first of it; all of 1,000 addresses help nobody.
SHOWN: Final = 6
BITS: Final[Mapping[str, Mapping[str, int]]] = {
    "type": fields.TYPES,
    "status": fields.STATUSES,
    "nat": {name: bits for name, bits in fields.NATS.items() if name != "ANY"},
}
NAMES: Final[Mapping[str, Mapping[int, str]]] = {
    "protocol": {number: name for name, number in fields.PROTOCOLS.items()},
    "state": {number: name for name, number in fields.STATES.items()},
    "family": {number: name for name, number in fields.FAMILIES.items()},
}
PHRASES: Final[Mapping[str, str]] = {
    **{field.attribute: field.phrase for field in (*fields.COUNTERS.values(), *fields.ICMP_IDS.values())},
    **{
        field.attribute: f"{field.phrase} {kind}"
        for (kind, _), pair in fields.SIDES.items()
        for field in pair
        if kind in {"address", "port"}
    },
}


def render_sections(sections: dict[str, list[str]]) -> str:
    """As text with headings."""
    return "\n\n".join(
        "\n".join([title, *(f"  {line}".rstrip() for line in lines)]) for title, lines in sections.items()
    )


def list_sections(
    rules: Sequence[Rule],
    protocols: frozenset[int] | None,
    events: int,
    *,
    core: bool = False,
    listing: bool = False,
    remembers: bool = False,
) -> dict[str, list[str]]:
    """The lines of each section, by its heading."""
    kernel = compile_kernel(rules, protocols=protocols, events=events, remembers=remembers)
    groups = [event_type.name or "" for event_type in EventType if event_type & kernel.groups]
    program = kernel.program
    sections = {
        "Rules": _list_rules(rules),
        "Settings": [
            f"{CONNTRACK_EVENTS.key}: {CONNTRACK_EVENTS.kind.render(EventType(events))}",
            f"{CONNTRACK_PROTOCOLS.key}: {CONNTRACK_PROTOCOLS.kind.render(protocols)}",
        ],
        "Groups joined": [", ".join(groups) or "none: no event is wanted"],
        "Program in the kernel": [
            "none: every event is passed up" if program is None else f"{len(program)} instructions"
        ],
        "Left to the core": kernel.notes or ["nothing"],
    }
    sets = get_sets(rules)
    if sets:
        sections["Sets"] = [f"{describe_set(found)} from {found.path}" for found in sets.values()]
    if core:
        sections["Table in the core"] = render_table(compile_table(rules, protocols, events)).splitlines()
    if listing:
        sections["BPF"] = ["none"] if program is None else bpf.render(program).splitlines()
    return sections


def explain_sink_rules(sink: str, rules: Sequence[Rule]) -> str:
    """The same for the rules of one sink."""
    return render_sections(list_sink_sections(sink, rules))


def list_sink_sections(sink: str, rules: Sequence[Rule], *, core: bool = False) -> dict[str, list[str]]:
    """The lines of each section, by its heading."""
    sections = {
        "Rules": _list_rules(rules),
        "Evaluated": [f"in the core, for sink {sink} alone, on events that the global filter keeps"],
    }
    if core:
        sections["Table in the core"] = render_table(compile_table(rules)).splitlines()
    return sections


def _list_rules(rules: Sequence[Rule]) -> list[str]:
    return [f"{number:4}  {render(rule)}" for number, rule in enumerate(rules, 1)] or [
        "none: every event is logged"
    ]


def describe_set(addresses: AddressSet) -> str:
    """Its name and its size, in place of a million networks."""
    count = addresses.entries
    return f"@{addresses.name} ({count:,} {'entry' if count == 1 else 'entries'})"


def list_set_changes(old: Sets, new: Sets) -> Iterator[str]:
    """Sets that hold something else than before; that there are others is a change of the setting."""
    for name, found in new.items():
        if name in old and not found.has_same(old[name]):
            yield f"set {describe_set(found)} has changed"


def render_table(table: Table) -> str:
    """Which test comes first, and all of them, numbered; an end is a rule, or says what it is."""
    lines = [f"begin at {_render_target(table, table.start)}"]
    for number, test in enumerate(table.tests):
        yes, no = (_render_target(table, target) for target in (test.yes, test.no))
        lines.append(f"{number:4}  {_render_question(table, test)}: {yes}, else {no}")
    return "\n".join(lines)


def _render_target(table: Table, target: int) -> str:
    end = target - len(table.tests)
    if end < 0:
        return str(target)
    if end >= len(table.keeps):
        return "the rule found" if target == table.found_end else "left out"
    if not end:
        return "no rule (log)"
    sample = f" sample 1/{table.rates[end]}" if table.rates[end] else ""
    return f"rule {end} ({'log' if table.keeps[end] else 'drop'}{sample})"


def _render_question(table: Table, test: Test) -> str:
    if test.field == FOUND:
        return "a rule was found"
    if test.field in BITS:
        return f"{test.field} {_render_bits(test.mask, BITS[test.field])}"
    if test.field.endswith("_location"):
        bit = test.word * WORD_BITS + test.mask.bit_length() - 1
        side = "source" if test.field.startswith("src") else "destination"
        return f"{side} {_render_condition(table.conditions[bit])}"
    name, _, _ = test.field.partition(".")
    phrase = PHRASES.get(name, name)
    if test.word:
        return f"{phrase} in {describe_set(table.sets[test.word - 1])}"
    others = _list_others(test)
    intervals = others or test.intervals
    mask = "" if test.mask in (MAX_NUMBER, MAX_U32) else f"/{test.mask:#x}"
    shown = [_render_interval(test.field, interval) + mask for interval in intervals[:SHOWN]]
    more = f" and {len(intervals) - SHOWN:,} more" if len(intervals) > SHOWN else ""
    return f"{phrase} {'not ' if others else ''}{', '.join(shown)}{more}"


def _list_others(test: Test) -> list[Interval]:
    """What a person would name of numbers that include the lowest and the highest: those between."""
    found = test.intervals
    if found[0].low or found[-1].high != MAX_NUMBER or any(interval.number for interval in found):
        return []
    return [Interval(one.high + 1, other.low - 1, 0) for one, other in pairwise(found)]


def _render_bits(mask: int, vocabulary: Mapping[str, int]) -> str:
    names = [name for name, bits in vocabulary.items() if mask & bits == bits]
    known = sum({vocabulary[name] for name in names})
    return ",".join([*names, *([f"{mask & ~known:#x}"] if mask & ~known else [])])


def _render_condition(condition: Condition) -> str:
    """Names of cities in quotes, as they come from people."""
    values = ",".join(ascii(value) if condition.attribute == "city" else value for value in condition.values)
    return f"{condition.attribute} is {'' if condition.truth else 'not '}{values}"


def _render_interval(field: str, interval: Interval) -> str:
    low, high, number = interval
    text = _render_bounds(field, low, high)
    return f"{text} (rule {number})" if number else text


def _render_bounds(field: str, low: int, high: int) -> str:
    if field.endswith(".ipv4"):
        return _render_addresses(IPv4Address(low), IPv4Address(high))
    if field.endswith(".ipv6"):
        return _render_addresses(IPv6Address(low), IPv6Address(high))
    if (low, high) == (0, MAX_NUMBER):
        return "any"
    if high == MAX_NUMBER:
        return min(f"from {_render_value(field, low)}", f"above {_render_value(field, low - 1)}", key=len)
    if low == 0 < high and field not in NAMES:
        return min(f"up to {_render_value(field, high)}", f"below {_render_value(field, high + 1)}", key=len)
    if field in NAMES and high - low < SHOWN:
        return ",".join(_render_value(field, number) for number in range(low, high + 1))
    return "-".join(dict.fromkeys((_render_value(field, low), _render_value(field, high))))


def _render_value(field: str, number: int) -> str:
    """As a rule would have it."""
    if field == "duration":  # see core/decide.h: one more than it is, 0 for a negative one
        whole, rest = divmod(number - 1, NANO // 1000)
        return (
            "negative" if number == 0 else f"{number - 1}ns" if rest else render_whole(whole, DURATION_UNITS)
        )
    if field.endswith("_bytes"):
        return render_size(number)
    return hex(number) if field == "mark" else NAMES.get(field, {}).get(number, str(number))


def _render_addresses(low: IPv4Address | IPv6Address, high: IPv4Address | IPv6Address) -> str:
    """As a network where it is one."""
    if low == high:
        return str(low)
    networks = list(summarize_address_range(low, high))
    return str(networks[0]) if len(networks) == 1 else f"{low}-{high}"
