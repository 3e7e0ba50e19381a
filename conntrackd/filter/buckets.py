"""Token buckets as plainly as can be: the reference of core/limit.c."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from socket import AF_INET
from typing import Final, NamedTuple

from conntrackd.filter.ast import Rule
from conntrackd.filter.limit import ALL, SOURCE, Limit
from conntrackd.flow import Flow

# LIMIT_SETS and LIMIT_WAYS of core/limit.h.
SETS: Final = 512
WAYS: Final = 8
WORD: Final = (1 << 64) - 1
FACTOR: Final = 0x9E3779B97F4A7C15
Key = tuple[int, int, int]
"""The higher and the lower half of an address, and its family."""


class Held(NamedTuple):
    """What the limit of a rule has held back since it was asked last; times as in Flow."""

    rule: int
    events: int
    since: int
    until: int


@dataclass(slots=True)
class Bucket:
    """Each event takes `period` of its level, and each nanosecond adds `count`."""

    level: int = 0
    filled_at: int = 0
    key: Key | None = None

    def refill(self, limit: Limit, now: int) -> None:
        """With what has come since the last time, up to the burst."""
        if now > self.filled_at:
            elapsed, self.filled_at = now - self.filled_at, now
            self.level = min(limit.burst * limit.period, self.level + elapsed * limit.count)


@dataclass(slots=True)
class RuleBuckets:
    """The buckets of one rule, by set. The first is for all flows that have none of their own."""

    limit: Limit
    seed: int
    sets: dict[int, list[Bucket]] = field(default_factory=dict)

    def get_bucket(self, flow: Flow, now: int) -> Bucket:
        """That of the flow's key."""
        full = self.limit.burst * self.limit.period
        key = None if self.limit.key == ALL else make_key(self.limit, flow)
        number = 0 if key is None else hash_key(self.seed, key) % SETS
        shared, *own = self.sets.setdefault(number, [Bucket(full), *(Bucket() for _ in range(WAYS))])
        if key is None:
            return shared
        for bucket in own:
            if bucket.key == key:
                return bucket
        for bucket in own:
            bucket.refill(self.limit, now)
            if bucket.key is None or bucket.level == full:  # as that of a key that was never seen
                # It may have used the shared one: it begins with what is left there, not with a burst again.
                shared.refill(self.limit, now)
                bucket.key, bucket.level = key, shared.level
                return bucket
        return shared


def make_key(limit: Limit, flow: Flow) -> Key:
    """The leading bits of the address as two numbers, and its family."""
    address = flow.src if limit.key == SOURCE else flow.dst
    bits = limit.ipv4_bits if flow.family == AF_INET else limit.ipv6_bits
    packed = ip_network((address, bits), strict=False).network_address.packed.ljust(16, b"\0")
    return int.from_bytes(packed[:8], "big"), int.from_bytes(packed[8:], "big"), flow.family


def hash_key(seed: int, key: Key) -> int:
    """As hash_key() of core/limit.c."""
    found = seed
    for part in key:
        found = (found ^ part) * FACTOR & WORD
        found ^= found >> 32
    return found


class Buckets:
    """The limits of rules. From any thread."""

    def __init__(self, rules: Sequence[Rule], seed: int) -> None:
        self._lock = threading.Lock()
        self._totals = [0] * (len(rules) + 1)
        self._held: dict[int, Held] = {}
        self._buckets = {
            number: RuleBuckets(rule.limit, seed)
            for number, rule in enumerate(rules, 1)
            if rule.limit is not None
        }

    def take_token(self, rule: int, flow: Flow, now: int) -> bool:
        """Whether an event that the rule keeps is within its limit; else it is counted as held back."""
        buckets = self._buckets.get(rule)
        if buckets is None:
            return True
        with self._lock:
            bucket = buckets.get_bucket(flow, now)
            bucket.refill(buckets.limit, now)
            if bucket.level >= buckets.limit.period:
                bucket.level -= buckets.limit.period
                return True
            self._hold_back(rule, flow.time)
            return False

    def _hold_back(self, rule: int, time: int) -> None:
        held = self._held.get(rule, Held(rule, 0, time, time))
        self._held[rule] = Held(rule, held.events + 1, min(held.since, time), max(held.until, time))
        self._totals[rule] += 1

    @property
    def totals(self) -> list[int]:
        """Events that the limit of each rule has held back; index 0 is what no rule matched."""
        return list(self._totals)

    def take(self) -> list[Held]:
        """What was held back since the last time, by rule."""
        with self._lock:
            held, self._held = self._held, {}
        return [held[rule] for rule in sorted(held)]
