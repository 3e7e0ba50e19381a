"""Random rules, each with what it means: a judge of records that shares nothing with the daemon's filter."""

import random
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

Record = dict[str, Any]
Predicate = Callable[[Record], bool | None]
"""None: about a field that the record does not have."""
PORTS: Final = range(20_000, 30_000)
ADDRESSES: Final = (
    "10.1.0.2",
    "10.1.0.3",
    "10.2.0.2",
    "10.1.0.1",
    "fd01::2",
    "fd01::3",
    "fd02::2",
    "fd01::1",
)
NETWORKS: Final = ("10.1.0.0/24", "10.0.0.0/8", "10.2.0.2/31", "fd00::/8", "fd01::/127", "0.0.0.0/0")
STATES: Final = ("SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE_WAIT")
SIDES: Final = {"source": ("src", "sport"), "destination": ("dst", "dport")}
# Of a flow that is translated at both ends each is.
ENDS: Final = {
    "SNAT": ("SNAT", "BOTH"),
    "DNAT": ("DNAT", "BOTH"),
    "BOTH": ("BOTH",),
    "ANY": ("SNAT", "DNAT", "BOTH"),
}
COUNTERS: Final = {"bytes": "bytes", "reply bytes": "reply_bytes", "packets": "packets"}


class Condition(NamedTuple):
    """A text, and what it says of a record."""

    text: str
    holds: Predicate


class RuleSet(NamedTuple):
    """Rules, of which the first that matches decides. What none matches is logged."""

    rules: Sequence[tuple[bool, Condition]]

    @property
    def texts(self) -> list[str]:
        return [f"{'log' if keep else 'drop'} {condition.text}" for keep, condition in self.rules]

    def keeps(self, record: Record) -> bool:
        return next((keep for keep, condition in self.rules if condition.holds(record)), True)


def make_rules(chooser: random.Random) -> RuleSet:
    rules = [(chooser.random() < 0.5, _make(chooser, 3)) for _ in range(chooser.randint(1, 6))]
    if chooser.random() < 0.5:
        rules.append((False, Condition("any", lambda _: True)))
    return RuleSet(rules)


def _make(chooser: random.Random, depth: int) -> Condition:
    kind = chooser.random()
    if depth == 0 or kind < 0.4:
        return chooser.choice(LEAVES)(chooser)
    if kind < 0.55:
        return _negate(_make(chooser, depth - 1))
    return _join(
        chooser.choice(("and", "or")), [_make(chooser, depth - 1) for _ in range(chooser.randint(2, 3))]
    )


def _join(word: str, parts: Sequence[Condition]) -> Condition:
    """One side decides `and` where it is false, `or` where it is true; else none may be unknown."""
    decisive = word == "or"

    def holds(record: Record) -> bool | None:
        truths = [part.holds(record) for part in parts]
        return decisive if decisive in truths else None if None in truths else not decisive

    return Condition(f" {word} ".join(f"({part.text})" for part in parts), holds)


def _negate(inner: Condition) -> Condition:
    def holds(record: Record) -> bool | None:
        truth = inner.holds(record)
        return None if truth is None else not truth

    return Condition(f"not ({inner.text})", holds)


def _choose_name(word: str, name: str, values: Sequence[str]) -> Callable[[random.Random], Condition]:
    def make(chooser: random.Random) -> Condition:
        chosen = chooser.sample(values, chooser.randint(1, 2))
        return Condition(
            f"{word} {','.join(chosen)}", lambda record: record[name] in chosen if name in record else None
        )

    return make


def _choose_port(chooser: random.Random) -> Condition:
    side = chooser.choice(["", *SIDES])
    names = [SIDES[side][1]] if side else [name for _, name in SIDES.values()]
    low, high = sorted((chooser.choice(PORTS), chooser.choice(PORTS)))
    return Condition(
        f"{side} port {low}-{high}".strip(),
        lambda record: any(low <= record[name] <= high for name in names),
    )


def _choose_address(chooser: random.Random) -> Condition:
    side = chooser.choice(list(SIDES))
    texts = [chooser.choice(ADDRESSES + NETWORKS) for _ in range(chooser.randint(1, 3))]
    networks = [ip_network(text, strict=False) for text in texts]
    return Condition(
        f"{side} address {','.join(texts)}",
        lambda record: any(ip_address(record[SIDES[side][0]]) in network for network in networks),
    )


def _choose_counter(chooser: random.Random) -> Condition:
    word, most = chooser.choice(list(COUNTERS)), chooser.randrange(400)
    name, most = COUNTERS[word], most % 4 if word == "packets" else most
    return Condition(f"{word} > {most}", lambda record: record[name] > most if name in record else None)


def _choose_family(chooser: random.Random) -> Condition:
    version = chooser.choice((4, 6))
    return Condition(f"family IPV{version}", lambda record: ip_address(record["src"]).version == version)


def _choose_nat(chooser: random.Random) -> Condition:
    word = chooser.choice(list(ENDS))
    return Condition(f"nat {word}", lambda record: record.get("nat") in ENDS[word])


LEAVES: Final = (
    _choose_name("type", "type", ("NEW", "UPDATE", "DESTROY")),
    _choose_name("protocol", "prot", ("TCP", "UDP")),
    _choose_name("state", "state", STATES),
    _choose_nat,
    _choose_port,
    _choose_address,
    _choose_counter,
    _choose_family,
)
