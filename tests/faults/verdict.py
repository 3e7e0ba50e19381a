"""The law: sent = delivered + reported as lost + filtered + dropped by named reasons, for each sink.

evaluate() reads what each sink received and compares it with what was sent: each event once (or as often as
the fault allows), with the fields that were sent, the same in every sink, and nothing that was not sent.
"""

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.producer import CLIENT, SERVER, compute_number
from tests.faults.receivers import Record

KERNEL, DAEMON = "kernel", "daemon"
KILLED = "ended without a stop"


@dataclass
class Tally:
    """What one sink received."""

    name: str
    kind: str = "NEW"
    seen: Counter[int] = field(default_factory=Counter)
    payloads: dict[int, int] = field(default_factory=dict)
    filtered: frozenset[int] = frozenset()
    """Those that are none for this sink, by a filter of its own."""
    lost: int = 0
    """Told as lost before the daemon had it."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Told as dropped by this sink, by reason."""
    killed: list[Record] = field(default_factory=list)
    """What says that a process was killed, in so many of which nobody knows what died."""
    strange: list[Record] = field(default_factory=list)

    @property
    def delivered(self) -> int:
        return len(self.seen)

    @property
    def duplicated(self) -> int:
        return self.seen.total() - len(self.seen)

    @property
    def accounted(self) -> int:
        return self.delivered + len(self.filtered) + self.lost + self.dropped.total()

    def add(self, records: list[Record]) -> None:
        for record in records:
            if record.get("type") == "LOST":
                self._add_lost(record)
            else:
                self._add_event(record)

    def _add_lost(self, record: Record) -> None:
        # Where nobody knows the number there is a record without one, which accounts for nothing.
        count, where = int(record.get("lost", 0)), record["where"]
        if where == KERNEL:
            self.lost += count
        elif where == self.name and record.get("reason"):
            self.dropped[record["reason"]] += count
        elif where == DAEMON and record["reason"] == KILLED and "lost" not in record:
            self.killed.append(record)
        else:
            self.strange.append(record)

    def _add_event(self, record: Record) -> None:
        number = compute_number(int(record.get("sport", -1)), int(record.get("dport", -1)))
        payload = hash(tuple(sorted(record.items())))
        known = [record.get(name) for name in ("type", "prot", "src", "dst")]
        if number < 0 or known != [self.kind, "UDP", CLIENT, SERVER]:
            self.strange.append(record)
        elif self.payloads.setdefault(number, payload) != payload:
            self.strange.append(record)  # the same event with other words
        else:
            self.seen[number] += 1


@dataclass(frozen=True)
class Verdict:
    """The sums of one run, of the sink that fared worst where sinks differ."""

    sent: int
    delivered: int
    duplicated: int
    lost: int
    filtered: int
    dropped: int
    died: int


def evaluate(
    sent: int,
    tallies: list[Tally],
    *,
    first: int = 0,
    filtered: int = 0,
    duplicates: int = 0,
    died: int = 0,
    kills: int = 0,
) -> Verdict:
    """Holds what was received against the law.

    `first`: the number of the first flow that was sent. `duplicates`: what at-least-once allows in this
    fault, a batch in flight. `died`: what a process that was killed had in its memory alone, so that there is
    no number; 0 in every fault but SIGKILL. `kills`: how often each sink was told so.
    """
    assert kills or not died
    for tally in tallies:
        assert len(tally.killed) == kills, f"{tally.name}: not {kills} kills: {tally.killed}"
        assert not tally.strange, f"{tally.name}: unknown or changed: {tally.strange[:3]}"
        beyond = [number for number in tally.seen if not first <= number < first + sent]
        assert not beyond, f"{tally.name}: not sent now: {beyond[:3]}"
        assert not tally.filtered & tally.seen.keys(), f"{tally.name}: got what its own filter drops"
        assert tally.duplicated <= duplicates, f"{tally.name}: {tally.duplicated} came twice"
        total = tally.accounted + filtered + died
        assert total == sent, (
            f"{tally.name}: sent {sent}, but delivered {tally.delivered} + lost {tally.lost} + filtered "
            f"{filtered} and {len(tally.filtered)} + dropped {dict(tally.dropped)} + died {died} = {total}"
        )
    _compare(tallies)
    return Verdict(
        sent,
        min(tally.delivered for tally in tallies),
        max(tally.duplicated for tally in tallies),
        max(tally.lost for tally in tallies),
        filtered,
        max(tally.dropped.total() for tally in tallies),
        died,
    )


def _compare(tallies: list[Tally]) -> None:
    """An event has the same fields wherever it is delivered."""
    first, *others = tallies
    for other in others:
        both = first.payloads.keys() & other.payloads.keys()
        differ = [number for number in both if first.payloads[number] != other.payloads[number]]
        assert not differ, f"{first.name} and {other.name} differ in {differ[:3]}"
