"""AST -> the canonical text of a rule: what is parsed back gives the same AST."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, assert_never

from conntrackd.filter import ast, fields
from conntrackd.filter.ast import Expression, Leaf, Range, Rule
from conntrackd.filter.limit import render_limit
from conntrackd.flow import Status
from conntrackd.units import MAX_U32, SIZE_UNITS, render_whole

CODE_LETTERS: Final = 2  # of a country; what is longer is its name
VOCABULARIES: Final[Mapping[fields.Field, Mapping[str, int]]] = {
    fields.PROTOCOL: fields.PROTOCOLS,
    fields.STATE: fields.STATES,
    fields.FAMILY: fields.FAMILIES,
    fields.ZONE: {},
}
UNREPLIED_TREE: Final = ast.Not(ast.StatusHas(int(Status.SEEN_REPLY)))


def render(rule: Rule) -> str:
    """One rule as it would be written by somebody who always writes alike."""
    sample = f" sample 1/{rule.sample}" if rule.sample else ""
    limit = f" limit {render_limit(rule.limit)}" if rule.limit is not None else ""
    return f"{'log' if rule.keep else 'drop'} {render_expression(rule.expression)}{sample}{limit}"


def render_expression(expression: Expression) -> str:
    """A condition, with no more parentheses than it needs."""
    match expression:
        case ast.Or(items):
            return " or ".join(render_expression(item) for item in items)
        case ast.And(items):
            return " and ".join(_enclose(item, ast.Or) for item in items)
        case ast.Not():
            if expression == UNREPLIED_TREE:
                return f"status {fields.UNREPLIED}"
            return f"not {_enclose(expression.item, ast.Or | ast.And)}"
        case _:
            return _render_leaf(expression)


def _enclose(item: Expression, kinds: type | object) -> str:
    text = render_expression(item)
    return f"({text})" if isinstance(item, kinds) else text  # type: ignore[arg-type]  # a class or a union


def _render_leaf(leaf: Leaf) -> str:
    match leaf:
        case ast.Anything():
            text = "any"
        case ast.TypeIs(mask):
            text = f"type {_render_bits(mask, fields.TYPES)}"
        case ast.StatusHas(mask):
            text = f"status {_render_bits(mask, fields.STATUSES)}"
        case ast.NatHas(mask):
            # ANY has the bits of the others: alone where it is true.
            text = f"nat {'ANY' if mask == fields.NATS['ANY'] else _render_bits(mask, fields.NATS)}"
        case ast.MarkIn(marks):
            text = f"mark {','.join(_render_mark(value, mask) for value, mask in marks)}"
        case ast.NumberIn():
            text = _render_numbers(leaf)
        case ast.AddressIn(asked, prefixes):
            text = (
                f"{_render_side('address', asked)} {','.join(render_prefix(prefix) for prefix in prefixes)}"
            )
        case ast.SetIn(asked, name):
            text = f"{_render_side('address', asked)} @{name}"
        case ast.NetworkIn(asked, names):
            text = f"{_render_side('network', asked)} {','.join(names)}"
        case ast.LocationIn():
            text = _render_place(leaf)
        case ast.Compare(subject, operator, number):
            text = f"{subject.phrase} {operator} {_render_quantity(subject, number)}"
        case _:
            assert_never(leaf)
    return text


def _render_place(leaf: ast.LocationIn) -> str:
    if leaf.fields[0] in fields.SIDES["country", False]:
        texts = [value if len(value) == CODE_LETTERS else _quote(value) for value in leaf.values]
        return f"{_render_side('country', leaf.fields)} {','.join(texts)}"
    return f"{_render_side('city', leaf.fields)} {','.join(_quote(value) for value in leaf.values)}"


def _render_bits(mask: int, vocabulary: Mapping[str, int]) -> str:
    return ",".join(name for name, bits in vocabulary.items() if mask & bits == bits)


def _render_mark(value: int, mask: int) -> str:
    return f"{value:#x}" if mask == MAX_U32 else f"{value:#x}/{mask:#x}"


def _render_numbers(leaf: ast.NumberIn) -> str:
    if leaf.fields[0] in fields.ICMP_IDS.values():
        return f"{leaf.fields[0].phrase} {','.join(_render_range(ports) for ports in leaf.ranges)}"
    vocabulary = VOCABULARIES.get(leaf.fields[0])
    if vocabulary is None:
        return (
            f"{_render_side('port', leaf.fields)} {','.join(_render_range(ports) for ports in leaf.ranges)}"
        )
    names = {value: name for name, value in vocabulary.items()}
    words = [names.get(low, str(low)) for low, _ in leaf.ranges]
    return f"{leaf.fields[0].phrase} {','.join(words)}"


def _render_range(numbers: Range) -> str:
    low, high = numbers
    return str(low) if low == high else f"{low}-{high}"


def _render_side(kind: str, asked: tuple[fields.Field, ...]) -> str:
    """`reply source address`: of two fields only whether they are the reply's, of one its phrase."""
    if len(asked) == 1:
        return f"{asked[0].phrase} {kind}"
    return f"reply {kind}" if fields.SIDES.get((kind, True)) == asked else kind


def render_prefix(prefix: fields.Prefix) -> str:
    """An address, with its prefix length where that is not the whole address."""
    address = ip_address(prefix.network)
    return str(address) if prefix.length == address.max_prefixlen else f"{address}/{prefix.length}"


def _render_quantity(subject: fields.Field, number: int) -> str:
    if subject in {fields.PACKETS, fields.REPLY_PACKETS}:
        return str(number)
    return render_whole(number, fields.DURATION_UNITS if subject == fields.DURATION else SIZE_UNITS)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
