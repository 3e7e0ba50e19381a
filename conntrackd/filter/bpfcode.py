"""Conditions -> steps of classic BPF that look at one conntrack message.

Attributes are found once, before the first rule; their offsets stand in the scratch memory, 0 for one that
the message does not carry. Rules then are tests one below the other, with the same short cuts as in Python.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from conntrackd import bpf
from conntrackd.bpf import Instruction, Label, Step
from conntrackd.filter import ast, fields
from conntrackd.filter.ast import (
    Expression,
    Leaf,
    Range,
    Rule,
    compute_span,
    is_undecidable,
    list_fields,
    list_leaves,
    merge_ranges,
)
from conntrackd.filter.fields import FAMILIES, FAMILY, Field, Prefix
from conntrackd.filter.sample import FACTORS, SHIFTS, compute_limit
from conntrackd.flow import EventType, Nat
from conntrackd.netlink import constants as c

# nlmsg_type and nlmsg_flags are in the byte order of the host, and loads in that of the network: single bytes
# are the same in both.
LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
TYPE_OFFSET: Final = 4
FLAGS_OFFSET: Final = 6
FIRST_ATTRIBUTE: Final = c.NLMSG_HDRLEN + c.NFGENMSG_LEN
IPV4: Final = FAMILIES["IPV4"]
# Two words of the scratch memory are for the event's type and for what is compared with something else.
TYPE_SLOT: Final = bpf.BPF_MEMWORDS - 1
SPARE_SLOT: Final = bpf.BPF_MEMWORDS - 2
ACCEPT: Final = "accept"
DROP: Final = "drop"
WORD: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to go when a condition holds and when it does not; `unsure` is for the undecidable."""

    yes: str
    no: str
    unsure: str


class Program:
    """Compiles one program."""

    def __init__(self, rules: Sequence[Rule], protocols: frozenset[int] | None, events: int) -> None:
        self._rules = rules
        self._protocols = protocols
        self._events = events
        self._steps: list[Step | Label] = []
        self._labels = 0
        self._marks = 0
        self.written = 0
        self._slots: dict[Field, int] = {}
        self._samples: dict[int, str] = {}

    def write(self) -> list[Instruction] | None:
        """Compile the rules; None as soon as they are too long, with `written` the number of rules so far.

        First the event's type, then the protocols of the settings, both of which reject most. Then one search
        for each attribute that a rule asks about, into a word of scratch memory; attributes beyond its size
        make their conditions undecidable. Then the rules, each with its conditions as jumps: true goes to the
        rule's action, false to the next rule. What cannot be decided here is passed up by a rule that logs,
        and goes on to the next rule behind one that drops.
        """
        wanted = [fields.PROTOCOL] if self._protocols is not None else []
        wanted += [field for rule in self._rules for field in list_fields(rule.expression)]
        for field in dict.fromkeys(wanted):
            if len(self._slots) < SPARE_SLOT:
                self._slots[field] = len(self._slots)
        self._write_type()
        self._write_protocols()
        for field in self._slots:
            if self._protocols is None or field is not fields.PROTOCOL:
                self._write_search(field)
        for rule in self._rules:
            self._write_rule(rule)
            self.written += 1
            if self._count_steps() > bpf.ROOM:
                return None
        if self._samples:
            self._add(bpf.JA, yes=ACCEPT)
        for rate, label in self._samples.items():
            self._write_sample(rate, label)
        self._steps += [Label(ACCEPT), Step(bpf.RET, bpf.ALL_BYTES)]
        if any(isinstance(step, Step) and DROP in (step.yes, step.no) for step in self._steps):
            self._steps += [Label(DROP), Step(bpf.RET, 0)]
        program = bpf.link(self._steps)
        return program if len(program) <= bpf.ROOM else None

    def _count_steps(self) -> int:
        """The instructions so far, at least: long jumps take more."""
        return len(self._steps) - self._marks

    def _new_label(self) -> str:
        self._labels += 1
        return f"L{self._labels}"

    def _add(self, code: int, k: int = 0, yes: str = "", no: str = "") -> None:
        self._steps.append(Step(code, k, yes, no))

    def _mark(self, label: str) -> None:
        self._steps.append(Label(label))
        self._marks += 1

    # ---- before the rules -----------------------------------------------------------------------------

    def _write_type(self) -> None:
        """Store the type's bit in its slot. What is not an event is passed up, to be counted there."""
        known, other, destroy, update, new, done = (self._new_label() for _ in range(6))
        self._add(bpf.LD_BYTE, TYPE_OFFSET + HIGH)
        self._add(bpf.JEQ, c.NFNL_SUBSYS_CTNETLINK, known, ACCEPT)
        self._mark(known)
        self._add(bpf.LD_BYTE, TYPE_OFFSET + LOW)
        self._add(bpf.JEQ, c.IPCTNL_MSG_CT_DELETE, destroy, other)
        self._mark(other)
        not_new = self._new_label()
        self._add(bpf.JEQ, c.IPCTNL_MSG_CT_NEW, not_new, ACCEPT)
        self._mark(not_new)
        self._add(bpf.LD_BYTE, FLAGS_OFFSET + HIGH)
        self._add(bpf.JSET, (c.NLM_F_CREATE | c.NLM_F_EXCL) >> 8, new, update)
        for label, event_type in (
            (new, EventType.NEW),
            (update, EventType.UPDATE),
            (destroy, EventType.DESTROY),
        ):
            self._mark(label)
            if event_type & self._events:
                self._add(bpf.LD_IMM, event_type)
                self._add(bpf.JA, yes=done)
            else:
                self._add(bpf.JA, yes=DROP)
        self._mark(done)
        self._add(bpf.ST, TYPE_SLOT)

    def _write_protocols(self) -> None:
        if self._protocols is None:
            return
        self._write_search(fields.PROTOCOL)
        found, ours = self._new_label(), self._new_label()
        self._add(bpf.JEQ, 0, ACCEPT, found)  # without one it is malformed, which is counted
        self._mark(found)
        self._load_value(fields.PROTOCOL)
        self._write_ranges([(number, number) for number in sorted(self._protocols)], ours, DROP)
        self._mark(ours)

    def _write_search(self, field: Field) -> None:
        """The attribute's offset, or 0, into the field's slot, and into A."""
        end = self._new_label()
        paths = field.paths
        if _is_address(field):
            ipv4, ipv6 = self._new_label(), self._new_label()
            self._add(bpf.LD_BYTE, c.NLMSG_HDRLEN)
            self._add(bpf.JEQ, IPV4, ipv4, ipv6)
            self._mark(ipv4)
            self._write_walk(paths[0], end)
            self._add(bpf.JA, yes=end)
            self._mark(ipv6)
            self._write_walk(paths[1], end)
        else:
            for path in paths:
                missing = self._new_label()
                found = self._new_label()
                self._write_walk(path, missing)
                self._add(bpf.JEQ, 0, missing, found)
                self._mark(found)
                self._add(bpf.JA, yes=end)
                self._mark(missing)
        self._mark(end)
        self._add(bpf.ST, self._slots[field])

    def _write_walk(self, path: fields.Path, missing: str) -> None:
        """Down the nested attributes to A = the offset of the last; A is 0 at `missing`."""
        self._add(bpf.LD_IMM, FIRST_ATTRIBUTE)
        for depth, attribute in enumerate(path):
            if depth:
                further = self._new_label()
                self._add(bpf.JEQ, 0, missing, further)
                self._mark(further)
            self._add(bpf.LDX_IMM, attribute)
            self._steps.append(bpf.load_attribute(nested=depth > 0))

    # ---- rules ----------------------------------------------------------------------------------------

    def _write_rule(self, rule: Rule) -> None:
        matches = self._choose_label(rule) if rule.keep else DROP
        following = self._new_label()
        # Unknown: an event that a rule may keep is kept, one that a rule may drop goes on to the next rule.
        unsure = matches if rule.keep else following
        self._write(rule.expression, Goal(matches, following, unsure))
        self._mark(following)

    def _choose_label(self, rule: Rule) -> str:
        """Where what a rule that logs matches goes: through its sample only where the match is sure."""
        if not rule.sample or any(map(self._is_unsure, list_leaves(rule.expression))):
            return ACCEPT
        return self._samples.setdefault(rule.sample, f"sample {rule.sample}")

    def _write_sample(self, rate: int, label: str) -> None:
        """As is_sampled() of sample.py. What has no id is malformed, which is counted above."""
        carried = self._new_label()
        self._mark(label)
        self._write_walk((c.CTA_ID,), ACCEPT)
        self._add(bpf.JEQ, 0, ACCEPT, carried)
        self._mark(carried)
        self._add(bpf.TAX)
        self._add(bpf.LD_INDIRECT[4], c.NLA_HDRLEN)
        for shift, factors in zip(SHIFTS, (*((factor,) for factor in FACTORS), ()), strict=True):
            self._steps += [Step(bpf.TAX), Step(bpf.RSH, shift), Step(bpf.XOR_X)]
            self._steps += [Step(bpf.MUL, factor) for factor in factors]
        self._add(bpf.JGT, compute_limit(rate), DROP, ACCEPT)

    def _write(self, expression: Expression, goal: Goal) -> None:
        match expression:
            case ast.And(items):
                for item in items[:-1]:
                    further = self._new_label()
                    # The undecidable is true or false, and then it goes on as that.
                    unsure = further if goal.unsure == goal.yes else goal.unsure
                    self._write(item, Goal(further, goal.no, unsure))
                    self._mark(further)
                self._write(items[-1], goal)
            case ast.Or(items):
                for item in items[:-1]:
                    further = self._new_label()
                    unsure = further if goal.unsure == goal.no else goal.unsure
                    self._write(item, Goal(goal.yes, further, unsure))
                    self._mark(further)
                self._write(items[-1], goal)
            case ast.Not(item):
                assert not isinstance(item, ast.And | ast.Or | ast.Not)
                self._write_leaf(item, goal.no, goal.yes, goal)
            case _:
                self._write_leaf(expression, goal.yes, goal.no, goal)

    def _write_leaf(self, leaf: Leaf, true: str, false: str, goal: Goal) -> None:
        """To `true` where the leaf is true, to `false` where it is false, to goal.no where it is unknown."""
        if self._is_unsure(leaf):
            self._add(bpf.JA, yes=goal.unsure)
            return
        match leaf:
            case ast.Anything():
                self._add(bpf.JA, yes=true)
            case ast.TypeIs(mask):
                self._add(bpf.LD_MEM, TYPE_SLOT)
                self._add(bpf.JSET, mask, true, false)
            case ast.StatusHas(mask):
                self._load_or_zero(fields.STATUS)
                self._add(bpf.JSET, mask, true, false)
            case ast.MarkIn(marks):
                for value, mask in marks:
                    further = self._new_label()
                    self._load_or_zero(fields.MARK)
                    self._add(bpf.AND, mask)
                    self._add(bpf.JEQ, value, true, further)
                    self._mark(further)
                self._add(bpf.JA, yes=false)
            case ast.NumberIn():
                self._write_number(leaf, true, false, goal.no)
            case ast.AddressIn():
                self._write_addresses(leaf, true, false)
            case ast.NatHas(mask):
                self._write_nat(mask, true, false)
            case ast.Compare():
                self._write_comparison(leaf, true, false, goal.no)
            case ast.NetworkIn() | ast.LocationIn() | ast.SetIn():
                raise AssertionError("is expanded, or undecidable")
            case _:
                assert_never(leaf)

    def _is_unsure(self, leaf: Leaf) -> bool:
        return is_undecidable(leaf) or not all(field in self._slots for field in list_fields(leaf))

    def _load_value(self, field: Field) -> None:
        """A = the value of a field that the message carries."""
        self._add(bpf.LDX_MEM, self._slots[field])
        self._add(bpf.LD_INDIRECT[field.size], c.NLA_HDRLEN)

    def _load_or_go(self, field: Field, missing: str) -> None:
        """A = the value, or off to `missing` where there is none."""
        carried = self._new_label()
        self._add(bpf.LD_MEM, self._slots[field])
        self._add(bpf.JEQ, 0, missing, carried)
        self._mark(carried)
        self._load_value(field)

    def _load_or_zero(self, field: Field) -> None:
        """A = the value; of a field that the message leaves out 0, which A is then anyway."""
        done = self._new_label()
        self._load_or_go(field, done)
        self._mark(done)

    def _write_number(self, leaf: ast.NumberIn, true: str, false: str, unknown: str) -> None:
        """Of several fields: true where one is in, false where all are known and none is."""
        ranges = list(merge_ranges(leaf.ranges))
        missed = self._new_label()
        for index, field in enumerate(leaf.fields):
            further = self._new_label()
            if field is FAMILY:
                self._add(bpf.LD_BYTE, c.NLMSG_HDRLEN)
            elif field.optional:
                # Later fields may be in; if none is, what is missing makes it unknown.
                others = leaf.fields[index + 1 :]
                self._load_or_go(field, missed if others else unknown)
            else:
                self._load_or_zero(field)
            self._write_ranges(ranges, true, further)
            self._mark(further)
        self._add(bpf.JA, yes=false)
        if len(leaf.fields) == 1 or not leaf.fields[0].optional:
            return
        self._mark(missed)
        for field in leaf.fields[1:]:
            further = self._new_label()
            self._load_or_go(field, unknown)
            self._write_ranges(ranges, true, further)
            self._mark(further)
        self._add(bpf.JA, yes=unknown)

    def _write_ranges(self, ranges: Sequence[Range], true: str, false: str) -> None:
        """Whether A lies in one of the ranges, which are sorted and do not touch."""
        for low, high in ranges:
            further = self._new_label()
            if low == high:
                self._add(bpf.JEQ, low, true, further)
            else:
                reached = self._new_label()
                self._add(bpf.JGE, low, reached, false)  # below this one it is below all that follow
                self._mark(reached)
                self._add(bpf.JGT, high, further, true)
            self._mark(further)
        self._add(bpf.JA, yes=false)

    def _write_addresses(self, leaf: ast.AddressIn, true: str, false: str) -> None:
        ipv4, ipv6 = self._new_label(), self._new_label()
        self._add(bpf.LD_BYTE, c.NLMSG_HDRLEN)
        self._add(bpf.JEQ, IPV4, ipv4, ipv6)
        self._mark(ipv4)
        spans = merge_ranges(compute_span(prefix) for prefix in leaf.prefixes if len(prefix.network) == 4)
        for field in leaf.fields if spans else ():
            further = self._new_label()
            self._add(bpf.LDX_MEM, self._slots[field])
            self._add(bpf.LD_INDIRECT[4], c.NLA_HDRLEN)
            self._write_ranges(spans, true, further)
            self._mark(further)
        self._add(bpf.JA, yes=false)
        self._mark(ipv6)
        for field in leaf.fields:
            for prefix in leaf.prefixes:
                if len(prefix.network) == 16:
                    self._write_prefix(field, prefix, true)
        self._add(bpf.JA, yes=false)

    def _write_prefix(self, field: Field, prefix: Prefix, true: str) -> None:
        """Word by word; on to what follows where one differs."""
        further = self._new_label()
        self._add(bpf.LDX_MEM, self._slots[field])
        for offset in range(0, (prefix.length + 7) // 8, 4):
            bits = min(32, prefix.length - offset * 8)
            same = self._new_label()
            self._add(bpf.LD_INDIRECT[4], c.NLA_HDRLEN + offset)
            if bits < 32:
                self._add(bpf.AND, WORD << 32 - bits & WORD)
            self._add(bpf.JEQ, int.from_bytes(prefix.network[offset : offset + 4], "big"), same, further)
            self._mark(same)
        self._add(bpf.JA, yes=true)
        self._mark(further)

    def _write_nat(self, mask: int, true: str, false: str) -> None:
        """As compute_nat(): an end is translated where the reply is not the original turned round."""
        pairs = []
        if mask & Nat.SNAT:
            pairs += [(fields.SRC, fields.REPLY_DST), (fields.SPORT, fields.REPLY_DPORT)]
            pairs += [(fields.ICMP_ID, fields.REPLY_ICMP_ID)]
        if mask & Nat.DNAT:
            pairs += [(fields.DST, fields.REPLY_SRC), (fields.DPORT, fields.REPLY_SPORT)]
        for original, reply in pairs:
            if _is_address(original):
                self._write_same_address(original, reply, true)
            else:
                self._write_same_number(original, reply, true)
        self._add(bpf.JA, yes=false)

    def _write_same_address(self, original: Field, reply: Field, differs: str) -> None:
        """On to what follows where the two are the same."""
        ipv6, end = self._new_label(), self._new_label()
        for offset in range(0, 16, 4):
            same = self._new_label()
            self._write_same(original, reply, 4, offset, same, differs)
            self._mark(same)
            if offset == 0:
                self._add(bpf.LD_BYTE, c.NLMSG_HDRLEN)
                self._add(bpf.JEQ, IPV4, end, ipv6)
                self._mark(ipv6)
        self._mark(end)

    def _write_same_number(self, original: Field, reply: Field, differs: str) -> None:
        both, none, end = self._new_label(), self._new_label(), self._new_label()
        one = self._new_label()
        self._add(bpf.LD_MEM, self._slots[original])
        self._add(bpf.JEQ, 0, none, one)
        self._mark(one)
        self._add(bpf.LD_MEM, self._slots[reply])
        self._add(bpf.JEQ, 0, differs, both)
        self._mark(both)
        self._write_same(original, reply, 2, 0, end, differs)
        self._mark(none)
        self._add(bpf.LD_MEM, self._slots[reply])
        self._add(bpf.JEQ, 0, end, differs)
        self._mark(end)

    def _write_same(self, one: Field, other: Field, size: int, offset: int, same: str, differs: str) -> None:
        self._add(bpf.LDX_MEM, self._slots[one])
        self._add(bpf.LD_INDIRECT[size], c.NLA_HDRLEN + offset)
        self._add(bpf.ST, SPARE_SLOT)
        self._add(bpf.LDX_MEM, self._slots[other])
        self._add(bpf.LD_INDIRECT[size], c.NLA_HDRLEN + offset)
        self._add(bpf.LDX_MEM, SPARE_SLOT)
        self._add(bpf.JEQ_X, 0, same, differs)

    def _write_comparison(self, leaf: ast.Compare, true: str, false: str, unknown: str) -> None:
        """64 bits in two words: the upper one decides unless it is the same."""
        carried, upper, lower = self._new_label(), self._new_label(), self._new_label()
        self._add(bpf.LD_MEM, self._slots[leaf.subject])
        self._add(bpf.JEQ, 0, unknown, carried)
        self._mark(carried)
        high, low = leaf.number >> 32, leaf.number & WORD
        # Less, the same, or more: where to go then.
        less = true if leaf.operator in ("<", "<=", "!=") else false
        same = true if leaf.operator in ("<=", "=", ">=") else false
        more = true if leaf.operator in (">", ">=", "!=") else false
        self._add(bpf.LDX_MEM, self._slots[leaf.subject])
        self._add(bpf.LD_INDIRECT[4], c.NLA_HDRLEN)
        self._add(bpf.JEQ, high, lower, upper)
        self._mark(upper)
        self._add(bpf.JGT, high, more, less)
        self._mark(lower)
        equal, unequal = self._new_label(), self._new_label()
        self._add(bpf.LD_INDIRECT[4], c.NLA_HDRLEN + 4)
        self._add(bpf.JEQ, low, equal, unequal)
        self._mark(unequal)
        self._add(bpf.JGT, low, more, less)
        self._mark(equal)
        self._add(bpf.JA, yes=same)


def _is_address(field: Field) -> bool:
    return len(field.paths) == 2 and field.size == 16
