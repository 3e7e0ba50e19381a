"""What rules mean, written as plainly as can be: three values, one event, one rule after the other.

Shares nothing with the compilers but the tree: addresses go through the ipaddress module, not through
prefixes and bounds; None is the third value.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from operator import attrgetter, eq, ge, gt, le, lt, ne

from conntrackd.filter.ast import (
    AddressIn,
    And,
    Anything,
    Compare,
    Expression,
    LocationIn,
    MarkIn,
    NatHas,
    NetworkIn,
    Not,
    NumberIn,
    Or,
    Rule,
    StatusHas,
    TypeIs,
)
from conntrackd.flow import Flow, find_nat

OPERATORS = {"<": lt, "<=": le, "=": eq, "!=": ne, ">=": ge, ">": gt}
Truth = bool | None


def evaluate(expression: Expression, flow: Flow) -> Truth:  # noqa: PLR0912  # one for each node
    """True, False, or None for unknown."""
    match expression:
        case Anything():
            return True
        case Not(item):
            truth = evaluate(item, flow)
            return None if truth is None else not truth
        case And(items):
            return all_of([evaluate(item, flow) for item in items])
        case Or(items):
            return any_of([evaluate(item, flow) for item in items])
        case TypeIs(mask):
            return flow.type & mask != 0
        case StatusHas(mask):
            return flow.status & mask != 0
        case NatHas(mask):
            return find_nat(flow) & mask != 0
        case MarkIn(marks):
            return any(flow.mark & mask == value for value, mask in marks)
        case NumberIn(fields, ranges):
            return any_of([is_number_in(getattr(flow, each.attribute), ranges) for each in fields])
        case AddressIn(fields, prefixes):
            networks = [ip_network((each.network, each.length)) for each in prefixes]
            addresses = [ip_address(getattr(flow, each.attribute)) for each in fields]
            return any(address in network for address in addresses for network in networks)
        case NetworkIn(fields, names):
            return any(name_network(ip_address(getattr(flow, each.attribute))) in names for each in fields)
        case LocationIn(fields, values):
            return any_of([is_place_in(flow, each.attribute, values) for each in fields])
        case Compare(subject, operator, number):
            value = (
                find_duration(flow) if subject.attribute == "duration" else getattr(flow, subject.attribute)
            )
            return None if value in {None, -1} else OPERATORS[operator](value, number)


def all_of(truths: list[Truth]) -> Truth:
    if False in truths:
        return False
    return None if None in truths else True


def any_of(truths: list[Truth]) -> Truth:
    if True in truths:
        return True
    return None if None in truths else False


def is_number_in(number: int, ranges: Sequence[tuple[int, int]]) -> Truth:
    return None if number == -1 else any(low <= number <= high for low, high in ranges)


def name_network(address: IPv4Address | IPv6Address) -> str:
    networks = {
        "LOCAL": "127.0.0.0/8 169.254.0.0/16 ::1 fe80::/10",
        "PRIVATE": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
        "MULTICAST": "224.0.0.0/4 ff00::/8",
    }
    for name, texts in networks.items():
        if any(address in ip_network(text) for text in texts.split()):
            return name
    return "PUBLIC"


def is_place_in(flow: Flow, attribute: str, values: Sequence[str]) -> Truth:
    if getattr(flow, attribute.split(".", maxsplit=1)[0]) is None:
        return None
    place = attrgetter(attribute)(flow)
    if not place:
        return None
    return place in values if attribute.endswith("country") else place.casefold() in values


def find_duration(flow: Flow) -> int | None:
    return flow.stop - flow.start if flow.start and flow.stop else None


def judge(rules: Sequence[Rule], flow: Flow) -> tuple[bool, int]:
    """Whether the event is logged, and the number of the rule that decides, 0 for none."""
    for number, rule in enumerate(rules, 1):
        if evaluate(rule.expression, flow) is True:
            return rule.keep, number
    return True, 0
