"""`limit 10/second burst 20 per source`: how many of the events that a rule matches are logged.

What is beyond the limit is dropped, counted and reported as SUPPRESSED; no later rule gets it.
"""

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from conntrackd.errors import ManyErrors, RuleError
from conntrackd.filter.diagnostics import Mistake, suggest
from conntrackd.flow import NANO
from conntrackd.text import quote
from conntrackd.units import SECOND_UNITS

if TYPE_CHECKING:  # they have limits
    from conntrackd.filter.ast import Rule
    from conntrackd.filter.build import Word

UNITS: Final = SECOND_UNITS
# MAX_LIMIT of core/limit.h: with it a level of a bucket has 64 bits.
MAX_COUNT: Final = 100_000
# MAX_LIMITS of core/limit.h: so many rules by key have buckets of 11.25 MiB.
MAX_RULES: Final = 64
ALL, SOURCE, DESTINATION = range(3)  # enum limit_key of core/limit.h
# Whoever has one address of IPv6 has the 2^64 of its network: as such a network it is one in 4,096 buckets.
IPV6_NETWORK: Final = 64
IPV4_BITS: Final = 32
IPV6_BITS: Final = 128
RATE: Final = re.compile(r"(\d{1,9})/([a-z]+)", re.ASCII | re.IGNORECASE)
NETWORK: Final = re.compile(r"network/(\d{1,3})", re.ASCII | re.IGNORECASE)
SIDES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("source", "src"), SOURCE),
    **dict.fromkeys(("destination", "dst", "dest"), DESTINATION),
}
KEYS: Final = "per source, per destination or per network/N"
EXAMPLE: Final = "such as limit 10/second burst 20 per source"
BOTH: Final = "a rule has a sample or a limit, and not both"
BOTH_HINT: Final = "a sample in the global filter and a limit in that of a sink go together"
# struct limit of core/limit.h
LIMIT: Final = struct.Struct("=QIIIHH")
NO_LIMIT: Final = bytes(LIMIT.size)


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket, or one for each key: the leading bits of an address."""

    count: int
    unit: str
    """In which so many events are logged, one of UNITS."""
    burst: int
    """How many are logged at once, after a time without events."""
    key: int = ALL
    ipv4_bits: int = IPV4_BITS
    ipv6_bits: int = IPV6_BITS

    @property
    def period(self) -> int:
        """In nanoseconds."""
        return UNITS[self.unit] * NANO


def render_limit(limit: Limit) -> str:
    """As it stands in a rule, behind the word."""
    text = f"{limit.count}/{limit.unit}"
    text += f" burst {limit.burst}" if limit.burst != limit.count else ""
    if limit.ipv6_bits == IPV6_NETWORK:
        return f"{text} per network/{limit.ipv4_bits}"
    return text + ("", " per source", " per destination")[limit.key]


def assemble_limits(rules: "Sequence[Rule]") -> bytes:
    """An array of core/limit.h's struct limit, of each rule from 0, which is what no rule matched."""
    return NO_LIMIT + b"".join(
        NO_LIMIT
        if (limit := rule.limit) is None
        else LIMIT.pack(limit.period, limit.count, limit.burst, limit.key, limit.ipv4_bits, limit.ipv6_bits)
        for rule in rules
    )


def refuse_limits(rules: "Iterable[Rule]", why: str) -> None:
    """Raises ManyErrors where a rule has a limit, though nobody reports there what it holds back."""
    errors = [
        RuleError(why, origin=rule.origin, excerpt=rule.text, hint="write the rule without its limit")
        for rule in rules
        if rule.limit is not None
    ]
    if errors:
        raise ManyErrors(errors)


class _Wrong(Exception):  # noqa: N818  # never leaves this module
    def __init__(self, word: "Word", message: str, hint: str) -> None:
        super().__init__(message)
        self.mistake = Mistake(message, word.start, word.end, hint)


def parse_limit(words: "Sequence[Word]") -> Limit | Mistake:
    """The words behind `limit`, of which there is one at least."""
    try:
        return _parse(list(words))
    except _Wrong as wrong:
        return wrong.mistake


def _parse(words: "list[Word]") -> Limit:
    rate = words.pop(0)
    match = RATE.fullmatch(rate.text)
    if match is None or not 1 <= int(match[1]) <= MAX_COUNT:
        hint = f"a number from 1 to {MAX_COUNT}, a slash and a unit: {', '.join(UNITS)}"
        raise _Wrong(rate, f"{quote(rate.text)} is not a valid rate", hint)
    unit = match[2].lower()
    if unit not in UNITS:
        raise _Wrong(rate, f"unknown unit {quote(unit)}{suggest(unit, UNITS)}", f"one of: {', '.join(UNITS)}")
    count = burst = int(match[1])
    if words and words[0].text.lower() == "burst":
        burst = _parse_burst(words)
    key, bits = ALL, None
    if words and words[0].text.lower() == "per":
        key, bits = _parse_key(words)
    if words:
        _refuse_word(words[0])
    if bits is None:
        return Limit(count, unit, burst, key)
    return Limit(count, unit, burst, key, bits, IPV6_NETWORK)


def _parse_burst(words: "list[Word]") -> int:
    word = words.pop(0)
    number = words.pop(0) if words else word
    text = number.text
    if number is word or not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_COUNT):
        message = "the burst is missing" if number is word else f"{quote(text)} is not a valid burst"
        raise _Wrong(number, message, f"a number from 1 to {MAX_COUNT}, {EXAMPLE}")
    return int(text)


def _parse_key(words: "list[Word]") -> tuple[int, int | None]:
    """Which address, and how many bits of it where the key is a network."""
    word = words.pop(0)
    if not words:
        raise _Wrong(word, "what the limit counts by is missing", KEYS)
    word = words.pop(0)
    if word.text.lower() in SIDES:
        return SIDES[word.text.lower()], None
    match = NETWORK.fullmatch(word.text)
    if match is None:
        raise _Wrong(word, f"a limit does not count by {quote(word.text)}", KEYS)
    if not 1 <= int(match[1]) <= IPV4_BITS:
        hint = f"from 1 to {IPV4_BITS}, of the source of IPv4; of IPv6 it is /{IPV6_NETWORK}"
        raise _Wrong(word, f"{quote(word.text)} is not a valid prefix length", hint)
    return SOURCE, int(match[1])


def _refuse_word(word: "Word") -> None:
    if word.text.lower() == "sample":
        raise _Wrong(word, BOTH, BOTH_HINT)
    near = suggest(word.text, ("burst", "per"))
    hint = f"a limit ends the rule, {EXAMPLE}; conditions stand before it"
    raise _Wrong(word, f"unexpected {quote(word.text)} in the limit{near}", hint)
