"""What the limits of rules have held back, on its way to sinks: for each rule a record a second at most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from conntrackd.config.named import KINDS, SECTION
from conntrackd.delivery.losses import join_losses
from conntrackd.engine import Limits, RuleTable
from conntrackd.filter.render import render
from conntrackd.flow import Lost

SECONDS: Final = 1.0
# Of a rule's text in a record, of which there may be 64 a second.
SHOWN: Final = 256
Report = tuple[str, Lost]
"""The sink that it is for, empty for all of them, and what its record says."""


@dataclass(eq=False, slots=True)
class Suppressor:
    """The limits of one filter: the global one, or that of a sink, which is named then."""

    sink: str
    table: RuleTable
    limits: Limits

    def take(self) -> Iterator[Lost]:
        """What they have held back since the last time."""
        section = "sink" if self.sink in KINDS else SECTION
        where = f"{section}.{self.sink}.filter" if self.sink else "filter"
        for number, count, since, until in self.limits.take():
            text = render(self.table.rules[number - 1])
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            yield Lost(count, since, until, where, shown, number)


class Suppressed:
    """The filters in force that have limits, and those before that a reader may still decide a batch by.

    Whoever calls has the pipeline's lock.
    """

    def __init__(self) -> None:
        self._in_force: tuple[Suppressor, ...] = ()
        self._retired: list[tuple[Suppressor, Sequence[int]]] = []
        self._reported_at = float("-inf")

    def replace(
        self, table: RuleTable, sinks: Mapping[str, Sequence[RuleTable]], turns: Sequence[int]
    ) -> None:
        """Other filters are in force now. `turns` are those that the readers have made."""
        tables = (("", table), *((name, own[0]) for name, own in sinks.items()))
        new = tuple(
            Suppressor(name, found, found.limits) for name, found in tables if found.limits is not None
        )
        kept = {id(one.limits) for one in new}
        self._retired += [(one, turns) for one in self._in_force if id(one.limits) not in kept]
        self._in_force = new

    def take(self, now: float, turns: Sequence[int], *, at_once: bool = False) -> list[Report]:
        """What is to be reported: nothing before a second has passed, unless all is wanted `at_once`."""
        if not (self._in_force or self._retired) or (now - self._reported_at < SECONDS and not at_once):
            return []
        self._reported_at = now
        # A reader that has gone round since decides by the filter that is in force now.
        over = [one for one, then in self._retired if _are_all_above(turns, then)]
        held: dict[str, list[Lost]] = {}
        for one in (*(one for one, _ in self._retired), *self._in_force):
            held.setdefault(one.sink, []).extend(one.take())
        self._retired = [(one, then) for one, then in self._retired if one not in over]
        return [(sink, lost) for sink, losses in held.items() for lost in join_losses(losses)]


def _are_all_above(turns: Sequence[int], then: Sequence[int]) -> bool:
    return all(now > before for now, before in zip(turns, then, strict=True))
