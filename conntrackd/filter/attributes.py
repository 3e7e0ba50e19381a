"""What of a message a condition asks for, and what no message can answer."""

from collections.abc import Iterator

from conntrackd.filter import fields
from conntrackd.filter.ast import (
    AddressIn,
    Compare,
    Expression,
    Leaf,
    LocationIn,
    MarkIn,
    NatHas,
    NumberIn,
    SetIn,
    StatusHas,
    list_leaves,
)
from conntrackd.filter.fields import DURATION, Field
from conntrackd.flow import Nat


def is_undecidable(leaf: Leaf) -> bool:
    """Whether the kernel's program has to leave it to the core."""
    return isinstance(leaf, LocationIn | SetIn) or (isinstance(leaf, Compare) and leaf.subject is DURATION)


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
