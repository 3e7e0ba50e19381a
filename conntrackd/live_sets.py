"""The sets in force: what their files hold, and what was added or removed at run time, and for how long.

All of it happens in the thread of the event loop, one change at a time; what takes time, in one of its own.
"""

import asyncio
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from heapq import merge
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from conntrackd.active_filter import RUN_TIME
from conntrackd.apart import run_apart
from conntrackd.bus.control import SetEntry, SetStatus
from conntrackd.config.read import Config
from conntrackd.config.rules import list_set_files, read_files
from conntrackd.engine import Engine, Opaque
from conntrackd.errors import ConntrackdError, ManyErrors, UsageError
from conntrackd.filter.ast import Rule, get_sets
from conntrackd.filter.explain import list_set_changes
from conntrackd.filter.sets import (
    FAULTS,
    MAX_ENTRIES,
    MAX_MISTAKES,
    AddressSet,
    Sets,
    explain,
    pack_entry,
    unpack_entry,
)
from conntrackd.text import quote, suggest

if TYPE_CHECKING:
    from conntrackd.daemon import Daemon

logger = logging.getLogger(__name__)

# Entries that are added or removed at run time, in all sets: some 200 bytes each. More belong into a file.
MAX_CHANGES: Final = 10_000
MAX_PAGE: Final = 2000  # entries that are shown at a time
MAX_NAMED: Final = 3  # entries of a change that its answer names
MAX_USES: Final = 8  # rules that are named for each set; all filters may have thousands
# A change may end so much later than it was to: of a large set each end is a rebuild.
GATHER_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class SetChange:
    """What was done with an entry at run time, which is not as the file has it."""

    is_added: bool
    ends: float
    """When it is over by itself, a time of the event loop; infinity for never."""


Changes = Mapping[str, Mapping[bytes, SetChange]]
"""By the name of the set and the entry."""


class LiveSets:
    """The sets that the configuration names."""

    def __init__(self, daemon: "Daemon", sets: Sets) -> None:
        self._daemon = daemon
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._ended = -math.inf
        self.configure(daemon.config, sets)

    def configure(self, config: Config, sets: Sets) -> None:
        """Those of the files, in the place of all others. The caller puts them in force."""
        self._files = {file.name: file for file in list_set_files(config)}
        self._unchanged = sets
        """As their files have them."""
        self.in_force = sets
        """What decides now."""
        self._changes: Changes = {}
        self._set_timer()

    # ---- what there is to know ------------------------------------------------------------------------

    def list_changed(self) -> list[str]:
        """Names of the sets that are not as their files."""
        return [name for name, changes in self._changes.items() if changes]

    def list_statuses(self) -> list[SetStatus]:
        """As they are shown to people."""
        uses = self._list_uses()
        return [self._get_status(found, uses.get(name, [])) for name, found in self.in_force.items()]

    def list_entries(self, name: str, after: str) -> list[SetEntry]:
        """A page of the entries, with those that were removed. Raises UsageError."""
        read = self._get_set(name)
        changes = self._changes.get(read.name, {})
        least = _pack([after])[0] if after else b""
        own = sorted((entry for entry, change in changes.items() if change.is_added), key=_get_order)
        own = [entry for entry in own if not after or _get_order(entry) > _get_order(least)]
        found: dict[bytes, None] = {}
        for entry in merge(read.list_entries(least), own, key=_get_order):
            found[entry] = None
            if len(found) == MAX_PAGE:
                break
        return [self._describe(entry, changes.get(entry)) for entry in found]

    def _get_status(self, found: AddressSet, uses: Sequence[str]) -> SetStatus:
        changes = self._changes.get(found.name, {}).values()
        added = sum(change.is_added for change in changes)
        ends = min((change.ends for change in changes), default=math.inf)
        return SetStatus(
            found.name,
            str(found.path),
            found.entries,
            added,
            len(changes) - added,
            self._compute_left(ends),
            (*uses[:MAX_USES], f"{len(uses) - MAX_USES} more") if len(uses) > MAX_USES else tuple(uses),
        )

    def _describe(self, entry: bytes, change: SetChange | None) -> SetEntry:
        if change is None:
            return SetEntry(unpack_entry(entry))
        what = "added" if change.is_added else "removed"
        return SetEntry(unpack_entry(entry), what, self._compute_left(change.ends))

    def _compute_left(self, ends: float) -> int:
        """Seconds, 0 for something that does not end."""
        if ends == math.inf:
            return 0
        return max(1, round(ends - asyncio.get_running_loop().time()))

    def _list_uses(self) -> dict[str, list[str]]:
        """Which rules in force name a set."""
        found = dict[str, list[str]]()
        for use, rules in self._list_rules():
            for name in get_sets(rules):
                found.setdefault(name, []).append(use)
        return found

    def _list_rules(self) -> Iterator[tuple[str, Sequence[Rule]]]:
        """What decides, for people; each rule of a filter by itself."""
        daemon = self._daemon
        filters = {"": daemon.filter.parsed}
        filters |= {f" of sink {name}": own.parsed for name, own in daemon.sink_filters.in_force.items()}
        for whose, rules in filters.items():
            for number, rule in enumerate(rules, 1):
                yield f"rule {number}{whose}", [rule]
        for tail in daemon.tails.wanting:
            yield "tail", tail.rules[0].rules
        for metric in daemon.pipeline.flow_metrics:
            if metric.tables:
                yield f"metric {metric.setting.name}", metric.tables[0].rules

    def _get_set(self, name: str) -> AddressSet:
        """As its file has it. Raises UsageError."""
        found = self._unchanged.get(name.removeprefix("@").lower())
        if found is None:
            known = ", ".join(self._unchanged)
            hint = suggest(name, self._unchanged) or (f"sets: {known}" if known else "")
            raise UsageError(
                f"there is no set {quote(name)}", hint=hint or "sets: {bad: FILE} in the configuration"
            )
        return found

    # ---- changes, under the lock of control -----------------------------------------------------------

    async def reload(self, names: Sequence[str]) -> list[str]:
        """Read files anew, all where there are no names. Raises all mistakes, and changes nothing then."""
        chosen = list(dict.fromkeys(self._get_set(name).name for name in names or self._unchanged))
        before = self.in_force
        read = await run_apart(self._read_files, chosen)
        left = {name: changes for name, changes in self._changes.items() if name not in chosen}
        await self._put_in_force(read, left, chosen)
        return list(list_set_changes(before, self.in_force)) or ["nothing has changed"]

    async def change(self, name: str, texts: Sequence[str], timeout_s: int, *, is_added: bool) -> list[str]:
        """Add entries to what is in force, or remove them; as lines for people. Raises UsageError."""
        read, entries = self._get_set(name), _pack(texts)
        ends = asyncio.get_running_loop().time() + timeout_s if timeout_s else math.inf
        changes, done, undone = dict(self._changes.get(read.name, {})), list[bytes](), list[bytes]()
        for entry in entries:
            if read.has_entry(entry) is not is_added:
                changes[entry] = SetChange(is_added, ends)
                done.append(entry)
            elif changes.pop(entry, None) is not None:
                undone.append(entry)
        self._check_room(read, changes)
        if changes != self._changes.get(read.name, {}):
            await self._put_in_force(self._unchanged, {**self._changes, read.name: changes}, [read.name])
        lines, what = list[str](), f"{'added to' if is_added else 'removed from'} @{read.name}"
        if done:
            lines.append(f"{what} {f'for {timeout_s} s' if timeout_s else RUN_TIME}: {_list_some(done)}")
        if undone:
            lines.append(f"{what} again, as its file has it: {_list_some(undone)}")
        left = set(entries).difference(done, undone)
        lines += self._explain_left(read.name, left, entries, is_added=is_added)
        if read.name not in self._list_uses():
            lines.append(f"no rule in force names @{read.name}")
        return lines

    def _explain_left(
        self, name: str, left: Set[bytes], entries: Iterable[bytes], *, is_added: bool
    ) -> Iterator[str]:
        """Why there was nothing to add or to remove; and what stays, though it was removed."""
        for entry in entries:
            text, network = unpack_entry(entry), self.in_force[name].find_network(entry)
            if is_added and entry in left:
                yield f"{text} is in @{name} already"
            elif not is_added and network is not None:
                yield f"{text} stays in @{name} as a part of {unpack_entry(network)}, which can be removed"
            elif entry in left:
                yield f"{text} is not in @{name}"

    def _check_room(self, read: AddressSet, changes: Mapping[bytes, SetChange]) -> None:
        others = sum(len(found) for name, found in self._changes.items() if name != read.name)
        if others + len(changes) > MAX_CHANGES:
            raise UsageError(
                f"more than {MAX_CHANGES:,} addresses and networks would be added or removed at run time",
                hint=f"change {read.path}, then: conntrackctl set reload {read.name}",
            )

    def _read_files(self, names: Sequence[str]) -> Sets:
        """All sets, these of them read. Raises ManyErrors."""
        others = [found.entries for name, found in self._unchanged.items() if name not in names]
        read = read_files((self._files[name] for name in names), MAX_ENTRIES - sum(others))
        return MappingProxyType({**self._unchanged, **read})

    async def _put_in_force(self, read: Sets, changes: Changes, names: Sequence[str]) -> None:
        """All filters have them from their next batch on. Whatever fails, fails before that."""
        in_force, opened = await run_apart(
            _build, self._daemon.engine, self.in_force, read, changes, tuple(names)
        )
        self._unchanged, self.in_force, self._changes = read, in_force, changes
        self._daemon.pipeline.set_sets(opened)
        self._set_timer()

    # ---- the end of a change --------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = [change.ends for changes in self._changes.values() for change in changes.values()]
        if (first := min(ends, default=math.inf)) < math.inf:
            moment = max(first, self._ended + GATHER_SECONDS)
            self._timer = asyncio.get_running_loop().call_at(moment, self._begin_end)

    def _begin_end(self) -> None:
        self._timer = None
        self._ending = asyncio.get_running_loop().create_task(self._end_changes())

    async def _end_changes(self) -> None:
        """Of all that are over by now; where that fails it is tried again."""
        loop = asyncio.get_running_loop()
        async with self._daemon.control.turn:
            now = self._ended = loop.time()
            left = {
                name: {entry: change for entry, change in changes.items() if change.ends > now}
                for name, changes in self._changes.items()
            }
            names = [name for name, changes in left.items() if len(changes) < len(self._changes[name])]
            try:
                if names:
                    await self._put_in_force(self._unchanged, left, names)
            except (ConntrackdError, MemoryError) as error:
                logger.error("sets: run-time changes have expired, retrying their end in 1 s: %s", error)
                names = []
            self._set_timer()  # also where the clock was a moment early
        for name in names:
            logger.info("run-time changes of set @%s have expired", name)


def _build(
    engine: Engine, before: Sets, read: Sets, changes: Changes, names: Sequence[str]
) -> tuple[Sets, Opaque]:
    """The sets with the changes of these, and what the engine makes of all."""
    made = dict(before)
    for name in names:
        found, own = read[name], changes.get(name, {})
        added = [entry for entry, change in own.items() if change.is_added]
        removed = [entry for entry, change in own.items() if not change.is_added]
        made[name] = found.change(added, removed) if own else found
    return MappingProxyType(made), engine.open_sets(made)


def _pack(texts: Iterable[str]) -> list[bytes]:
    """Each once. Raises UsageError and ManyErrors for what is not an address or network."""
    found: dict[bytes, None] = {}
    mistakes: list[ConntrackdError] = []
    for text in texts:
        try:
            found[pack_entry(text)] = None
        except FAULTS:
            message, hint = explain(text)
            mistakes.append(UsageError(message, hint=hint.removesuffix(", one a line")))
    if mistakes:
        raise ManyErrors(mistakes[:MAX_MISTAKES])
    if not found:
        raise UsageError("there is no address to add or remove", hint="such as 192.0.2.7 or 2001:db8::/32")
    return list(found)


def _get_order(entry: bytes) -> tuple[int, bytes]:
    return len(entry), entry


def _list_some(entries: Sequence[bytes]) -> str:
    shown = ", ".join(map(unpack_entry, entries[:MAX_NAMED]))
    return shown + (f" and {len(entries) - MAX_NAMED:,} more" if len(entries) > MAX_NAMED else "")
