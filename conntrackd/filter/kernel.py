"""Rules -> multicast groups and a classic BPF program for the socket.

The program never drops an event that the core keeps; it may let through more. What it cannot
decide (a country, a duration) it takes for true where the rule keeps events and for false where it drops
them: then at most something is passed up that need not be.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from conntrackd import bpf
from conntrackd.bpf import Instruction
from conntrackd.filter import ast
from conntrackd.filter.ast import Expression, Rule, is_undecidable, list_leaves, push_not_inward
from conntrackd.filter.bpfcode import Program
from conntrackd.filter.evaluate import Truth, all_of, any_of
from conntrackd.flow import EventType

# Conditions that the program cannot decide, and why.
LEFT_TO_THE_CORE: Final[Mapping[type, str]] = {
    ast.Compare: "the duration is computed there",
    ast.LocationIn: "locations are looked up there",
    ast.SetIn: "sets are searched there",
}
# From the one a flow's beginning is remembered, with the other it is forgotten: of all flows, kept or not.
REMEMBERED: Final = int(EventType.NEW | EventType.DESTROY)
REMEMBERS: Final = "conntrack.records: NEW and DESTROY are passed up to remember when flows began"


class KernelFilter(NamedTuple):
    """What the kernel is given: groups to join (EventType bits), and a program, or None to drop nothing."""

    groups: int
    program: list[Instruction] | None
    notes: list[str]
    """What is left to the core and why, a line each."""


def compile_kernel(
    rules: Sequence[Rule], *, protocols: frozenset[int] | None, events: int, remembers: bool = False
) -> KernelFilter:
    """Groups and program for rules, protocols (None: all) and event types (bits).

    `remembers`: the core wants the REMEMBERED events of all flows of these protocols, rules or not.
    """
    plain = [replace(rule, expression=push_not_inward(rule.expression)) for rule in rules]
    if remembers:
        plain = [Rule(True, ast.TypeIs(REMEMBERED)), *plain]
        events |= REMEMBERED
    groups = sum(event_type for event_type in _list_types(events) if may_keep(plain, event_type))
    length, program = _fit(plain, protocols, events)
    notes = [REMEMBERS] if remembers else []
    notes += [note for number, rule in enumerate(plain[remembers:], 1) for note in _explain(number, rule)]
    if length < len(plain):
        first = length + 1 - remembers
        notes.append(f"rules {first} to {len(rules)}: the program has room for {bpf.ROOM} instructions")
    if not any(instruction.code == bpf.RET and instruction.k == 0 for instruction in program):
        return KernelFilter(groups, None, notes)
    return KernelFilter(groups, program, notes)


def _fit(
    rules: Sequence[Rule], protocols: frozenset[int] | None, events: int
) -> tuple[int, list[Instruction]]:
    """As many of the first rules as there is room for. What none of them decides is passed up."""
    whole = Program(rules, protocols, events)
    best = whole.write()
    if best is not None:
        return len(rules), best
    fits, too_many, best = 0, whole.written, []
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        program = Program(rules[:middle], protocols, events).write()
        if program is None:
            too_many = middle
        else:
            fits, best = middle, program
    return fits, best or Program([], protocols, events).write() or []


# ---- groups -----------------------------------------------------------------------------------------------


def _list_types(events: int) -> Iterator[int]:
    return (
        int(event_type)
        for event_type in (EventType.NEW, EventType.UPDATE, EventType.DESTROY)
        if event_type & events
    )


def may_keep(rules: Sequence[Rule], event_type: int) -> bool:
    """Whether the rules keep any event of this type, as far as the type alone decides it."""
    for rule in rules:
        answer = _evaluate_type(rule.expression, event_type)
        if answer is not False and rule.keep:
            return True
        if answer is True:
            return False
    return True


def _evaluate_type(expression: Expression, event_type: int) -> Truth:
    """What is known of the expression when only the type is; None: it depends."""
    match expression:
        case ast.Anything():
            return True
        case ast.TypeIs(mask):
            return bool(mask & event_type)
        case ast.Not(item):
            answer = _evaluate_type(item, event_type)
            return None if answer is None else not answer
        case ast.And(items):
            return all_of(_evaluate_type(item, event_type) for item in items)
        case ast.Or(items):
            return any_of(_evaluate_type(item, event_type) for item in items)
        case _:
            return None


# ---- what is left to the core ------------------------------------------------------------------------------


def _explain(number: int, rule: Rule) -> Iterator[str]:
    kinds = {LEFT_TO_THE_CORE[type(leaf)] for leaf in list_leaves(rule.expression) if is_undecidable(leaf)}
    for kind in sorted(kinds):
        yield f"rule {number}: {kind}"
