"""Words of a rule -> leaves of the tree, with all semantic checks of what a person typed."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_interface, ip_network
from typing import Final, NamedTuple, TypeVar

from conntrackd.filter import ast, fields
from conntrackd.filter.ast import Expression, Range, conjoin, disjoin, negate, sort_prefixes
from conntrackd.filter.diagnostics import Mistake, suggest
from conntrackd.filter.limit import Limit, parse_limit
from conntrackd.filter.sample import MAX_RATE
from conntrackd.filter.sets import NO_SETS, Sets
from conntrackd.flow import Nat, Status
from conntrackd.text import quote
from conntrackd.units import MAX_U32, SIZE_UNITS

NUMBER: Final = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,20}", re.ASCII | re.IGNORECASE)
QUANTITY: Final = re.compile(r"([0-9]{1,20})([a-z]*)", re.ASCII | re.IGNORECASE)
# Types of records that no event of the kernel has.
PAST_EVERY_FILTER: Final = "such a record passes every filter"
RECORDS: Final = {
    "FLOW": "a FLOW record is matched as the DESTROY that it is made from: type DESTROY",
    "LOST": PAST_EVERY_FILTER,
    "SNAPSHOT": "a SNAPSHOT record is matched as the NEW that was not seen: type NEW",
    "SUPPRESSED": PAST_EVERY_FILTER,
}
MAX_PORT: Final = (1 << 16) - 1
MAX_ICMP_ID: Final = (1 << 16) - 1
# What may be asked for as a range, with its last number.
RANGED: Final = {"port": MAX_PORT, "ICMP identifier": MAX_ICMP_ID}
MAX_ZONE: Final = (1 << 16) - 1
MAX_PROTOCOL: Final = (1 << 8) - 1
MAX_COUNTER: Final = (1 << 64) - 1
ADDRESS: Final = re.compile(r"[0-9a-f:.]+(/[0-9]{1,3})?", re.ASCII | re.IGNORECASE)

T = TypeVar("T")


class Word(NamedTuple):
    """One value as it stands in the rule; a quoted one without its quotes."""

    text: str
    start: int
    end: int


class Invalid(Exception):  # noqa: N818  # never leaves this module: it becomes a Mistake
    """What is wrong with one word, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Side(NamedTuple):
    """`reply source` and the like; `end` 0 is the source, 1 the destination, None either."""

    reply: bool
    end: int | None


EITHER: Final = Side(reply=False, end=None)


class Builder:
    """Makes leaves, and collects the mistakes found on the way; a leaf of a mistake is still a leaf."""

    def __init__(self, sets: Sets = NO_SETS) -> None:
        self.mistakes: list[Mistake] = []
        self._sets = sets

    def build(self, keyword: str, words: list[Word], span: Range) -> Expression:
        """A condition of the form `keyword value,value`."""
        build = {
            "TYPE": self._build_type,
            "PROTOCOL": self._build_protocol,
            "STATE": self._build_state,
            "STATUS": self._build_status,
            "NAT": self._build_nat,
            "MARK": self._build_mark,
            "ZONE": self._build_zone,
            "FAMILY": self._build_family,
        }[keyword]
        return build(words, span)

    def build_network(self, side: Side, words: list[Word], span: Range) -> Expression:
        names = self._collect(words, _parse_network)
        return ast.NetworkIn(self._get_fields("network", side, span), names, span)

    def build_location(self, kind: str, side: Side, words: list[Word], span: Range) -> Expression:
        """A country or a city."""
        parse = _parse_country if kind == "country" else _parse_city
        return ast.LocationIn(self._get_fields(kind, side, span), self._collect(words, parse), span)

    def build_ports(self, side: Side, ports: list[Range], span: Range) -> Expression:
        return ast.NumberIn(self._get_fields("port", side, span), tuple(sorted(set(ports))), span)

    def build_address(
        self, side: Side, words: list[Word], ports: list[Range] | None, span: Range
    ) -> Expression:
        """Addresses; with ports those of the same side, so that `either` becomes two conditions."""
        prefixes = sort_prefixes(self._collect((word for word in words if not _is_set(word)), _parse_prefix))
        sets = self._collect(filter(_is_set, words), self._parse_set)
        if ports is None:
            return self._join_lists(side, prefixes, sets, span)
        sides = [side] if side.end is not None else [Side(side.reply, 0), Side(side.reply, 1)]
        return disjoin(
            (
                conjoin(
                    [self._join_lists(end, prefixes, sets, span), self.build_ports(end, ports, span)], span
                )
                for end in sides
            ),
            span,
        )

    def _join_lists(
        self, side: Side, prefixes: tuple[fields.Prefix, ...], sets: tuple[str, ...], span: Range
    ) -> Expression:
        """What is written out and what is in sets."""
        asked = self._get_fields("address", side, span)
        written = [ast.AddressIn(asked, prefixes, span)] if prefixes or not sets else []
        return disjoin([*written, *(ast.SetIn(asked, name, self._sets[name], span) for name in sets)], span)

    def _parse_set(self, word: str) -> str:
        name = word[1:].lower()
        if name in self._sets:
            return name
        known = ", ".join(f"@{name}" for name in self._sets)
        hint = f"known here: {known}" if known else f"sets: {{{name or 'NAME'}: FILE}} in the configuration"
        raise Invalid(f"there is no set {quote(word)}{suggest(name, self._sets)}", hint)

    def build_comparison(self, kind: str, reply: bool, operator: str, word: Word, span: Range) -> Expression:
        parse = {"bytes": _parse_size, "duration": _parse_duration, "packets": _parse_packets}[kind]
        field = fields.COUNTERS.get((kind, reply))
        if field is None:
            self.mistakes.append(Mistake(f"a {kind} has no reply side", *span))
            field = fields.COUNTERS[kind, False]
        return ast.Compare(field, "=" if operator == "==" else operator, self._parse_or(word, parse, 0), span)

    def build_icmp_id(self, reply: bool, pairs: list[tuple[Word, Word]], span: Range) -> Expression:
        ranges = self.parse_ranges("ICMP identifier", pairs)
        return ast.NumberIn((fields.ICMP_IDS[reply],), tuple(sorted(set(ranges))), span)

    def parse_sample(self, keep: bool, keyword: Word, word: Word) -> int:
        """`1/100`, of a rule that logs."""
        if not keep:
            message = "a rule that drops has no sample"
            hint = "what it drops is nowhere; `log ... sample 1/N` logs one flow of N and drops the others"
            self.mistakes.append(Mistake(message, keyword.start, word.end, hint))
        return self._parse_or(word, _parse_rate, 0)

    def parse_limit(self, keep: bool, words: list[Word]) -> Limit | None:
        """`limit 10/second`, of a rule that logs."""
        if not keep:
            message = "a rule that drops has no limit"
            hint = "`log ... limit RATE` logs so many and drops the others"
            self.mistakes.append(Mistake(message, words[0].start, words[-1].end, hint))
        limit = parse_limit(words[1:])
        if isinstance(limit, Mistake):
            self.mistakes.append(limit)
            return None
        return limit

    def parse_ranges(self, kind: str, pairs: list[tuple[Word, Word]]) -> list[Range]:
        """Numbers and ranges of ports or identifiers."""
        return [self._parse_range(kind, first, last) for first, last in pairs]

    def _parse_range(self, kind: str, first: Word, last: Word) -> Range:
        """`80` (first is last) or `80-90`."""
        maximum = RANGED[kind]
        low = self._parse_or(first, lambda word: _parse_number(word, kind, maximum), 0)
        high = low
        if last is not first:
            high = self._parse_or(last, lambda word: _parse_number(word, kind, maximum), maximum)
        if low > high:
            message = f"the range {low}-{high} is empty: it ends before it begins"
            self.mistakes.append(Mistake(message, first.start, last.end, f"did you mean {high}-{low}?"))
        return low, high

    def _build_type(self, words: list[Word], span: Range) -> Expression:
        return ast.TypeIs(sum(self._look_up(words, "type", fields.TYPES)), span)

    def _build_protocol(self, words: list[Word], span: Range) -> Expression:
        return ast.NumberIn((fields.PROTOCOL,), _to_ranges(self._collect(words, _parse_protocol)), span)

    def _build_state(self, words: list[Word], span: Range) -> Expression:
        return ast.NumberIn((fields.STATE,), _to_ranges(self._look_up(words, "state", fields.STATES)), span)

    def _build_family(self, words: list[Word], span: Range) -> Expression:
        return ast.NumberIn(
            (fields.FAMILY,), _to_ranges(self._look_up(words, "family", fields.FAMILIES)), span
        )

    def _build_zone(self, words: list[Word], span: Range) -> Expression:
        return ast.NumberIn((fields.ZONE,), _to_ranges(self._collect(words, _parse_zone)), span)

    def _build_mark(self, words: list[Word], span: Range) -> Expression:
        return ast.MarkIn(self._collect(words, _parse_mark), span)

    def _build_status(self, words: list[Word], span: Range) -> Expression:
        vocabulary = {**fields.STATUSES, fields.UNREPLIED: 0}
        masks = self._look_up(words, "status", vocabulary)
        mask = 0
        for bits in masks:
            mask |= bits
        unreplied = negate(ast.StatusHas(int(Status.SEEN_REPLY), span), span)
        items: list[Expression] = [ast.StatusHas(mask, span)] if mask else []
        return disjoin([*items, unreplied] if 0 in masks or not mask else items, span)

    def _build_nat(self, words: list[Word], span: Range) -> Expression:
        masks = self._look_up(words, "nat", {**fields.NATS, fields.BOTH: 0})
        if masks == (0,):
            return conjoin([ast.NatHas(int(Nat.SNAT), span), ast.NatHas(int(Nat.DNAT), span)], span)
        mask = 0
        for bits in masks:  # beside another word BOTH adds nothing: that one is true of it already
            mask |= bits
        return ast.NatHas(mask, span)

    def _get_fields(self, kind: str, side: Side, span: Range) -> tuple[fields.Field, ...]:
        pair = fields.SIDES.get((kind, side.reply))
        if pair is None:
            self.mistakes.append(Mistake(f"a {kind} has no reply side", *span))
            pair = fields.SIDES[kind, False]
        return pair if side.end is None else (pair[side.end],)

    def _look_up(self, words: list[Word], kind: str, vocabulary: Mapping[str, int]) -> tuple[int, ...]:
        return self._collect(words, lambda word: vocabulary[_parse_name(word, kind, vocabulary)])

    def _collect(self, words: Iterable[Word], parse: Callable[[str], T]) -> tuple[T, ...]:
        """What the words stand for, sorted and without duplicates; those that are wrong left out."""
        values = {value for word in words for value in self._try(word, parse)}
        return tuple(sorted(values))  # type: ignore[type-var]  # numbers, texts, or pairs of these

    def _parse_or(self, word: Word, parse: Callable[[str], T], otherwise: T) -> T:
        """What the word stands for, or the other value where it is wrong."""
        return next(iter(self._try(word, parse)), otherwise)

    def _try(self, word: Word, parse: Callable[[str], T]) -> list[T]:
        try:
            return [parse(word.text)]
        except Invalid as error:
            self.mistakes.append(Mistake(error.message, word.start, word.end, error.hint))
            return []


def _is_set(word: Word) -> bool:
    return word.text.startswith("@")


def _to_ranges(numbers: Iterable[int]) -> tuple[Range, ...]:
    return tuple((number, number) for number in numbers)


def _parse_name(word: str, kind: str, vocabulary: Iterable[str]) -> str:
    name = word.upper()
    names = list(vocabulary)
    if name in names:
        return name
    of_records = RECORDS.get(name) if kind == "type" else None
    hint = of_records or f"one of: {', '.join(names)}"
    raise Invalid(f"unknown {kind} {quote(word)}{'' if of_records else suggest(word, names)}", hint)


def _parse_number(word: str, kind: str, maximum: int) -> int:
    if NUMBER.fullmatch(word):
        number = int(word, 16 if word[:2].lower() == "0x" else 10)
        if number <= maximum:
            return number
    ranges = ", or a range such as 1-99" if kind in RANGED else ""
    raise Invalid(f"{quote(word)} is not a valid {kind}", f"a number from 0 to {maximum}{ranges}")


def _parse_network(word: str) -> str:
    try:
        return _parse_name(word, "network", fields.NETWORKS)
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}; addresses and sets stand behind 'address'") from None


def _parse_rate(word: str) -> int:
    one, _, rate = word.partition("/")
    if one == "1" and NUMBER.fullmatch(rate) and rate.isdecimal() and 2 <= int(rate) <= MAX_RATE:
        return int(rate)
    raise Invalid(f"{quote(word)} is not a valid sample", f"1/N for one flow of N, from 1/2 to 1/{MAX_RATE}")


def _parse_zone(word: str) -> int:
    return _parse_number(word, "zone", MAX_ZONE)


def _parse_packets(word: str) -> int:
    return _parse_number(word, "number of packets", MAX_COUNTER)


def _parse_protocol(word: str) -> int:
    if word.isdecimal():
        return _parse_number(word, "protocol", MAX_PROTOCOL)
    try:
        return fields.PROTOCOLS[_parse_name(word, "protocol", fields.PROTOCOLS)]
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}, or a number from 0 to {MAX_PROTOCOL}") from None


def _parse_mark(word: str) -> tuple[int, int]:
    value_text, slash, mask_text = word.partition("/")
    value = _parse_number(value_text, "mark", MAX_U32)
    mask = _parse_number(mask_text, "mask of a mark", MAX_U32) if slash else MAX_U32
    if value & ~mask:
        raise Invalid(
            f"{quote(word)} can never match: the value has bits outside its mask",
            f"did you mean {value & mask:#x}/{mask:#x}?",
        )
    return value, mask


def _parse_prefix(word: str) -> fields.Prefix:
    # ip_network takes a net mask too, and scope ids: neither belongs to the language.
    is_address = ADDRESS.fullmatch(word) is not None
    with suppress(ValueError):
        if is_address:
            return fields.to_prefix(ip_network(word))
    try:
        interface = ip_interface(word if is_address else "")
    except ValueError:
        raise Invalid(
            f"{quote(word)} is not a valid address",
            "IPv4 or IPv6, with or without a prefix length, such as 10.0.0.0/8",
        ) from None
    raise Invalid(
        f"{quote(word)} has host bits set under its prefix length",
        f"did you mean {interface.network} or {interface.ip}?",
    )


def _parse_country(word: str) -> str:
    """A code in capitals; the name of a country, which is longer, as that of a city."""
    if len(word) == 2 and word.isascii() and word.isalpha():
        return word.upper()
    is_name = len(word) > 3 or not word.isascii()  # three letters are a code of another table
    if is_name and word.strip() and not any(char.isdigit() for char in word):
        return word.casefold()
    raise Invalid(
        f"{quote(word)} is not a valid country", 'two letters of ISO 3166, such as DE, or a name: "Germany"'
    )


def _parse_city(word: str) -> str:
    if word.strip():
        return word.casefold()
    raise Invalid("the name of a city is empty")


def _parse_size(word: str) -> int:
    return _parse_quantity(word, "size", SIZE_UNITS, "a number of bytes, with K, M or G for powers of 1024")


def _parse_duration(word: str) -> int:
    return _parse_quantity(
        word, "duration", fields.DURATION_UNITS, "a number with ms, s, m or h, such as 60s"
    )


def _parse_quantity(word: str, kind: str, units: Mapping[str, int], hint: str) -> int:
    match = QUANTITY.fullmatch(word)
    unit = match[2].casefold() if match else ""
    factor = {"": fields.NO_UNIT[kind], **{name.casefold(): size for name, size in units.items()}}.get(unit)
    if match is None or factor is None or int(match[1]) * factor > MAX_COUNTER:
        raise Invalid(f"{quote(word)} is not a valid {kind}", hint)
    return int(match[1]) * factor
