"""The engine in C: what conntrackd.core offers, with what Python knows of it beside."""

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Final

from conntrackd.core import _core as core
from conntrackd.core._core import LAYOUT
from conntrackd.delivery.loan import Passed, Written
from conntrackd.engine import (
    MAX_LIVING,
    SLOT_BYTES,
    SLOTS,
    Limits,
    Link,
    LookUp,
    Outlet,
    Relayed,
    Selection,
    SeriesField,
    Stages,
    choose_seed,
)
from conntrackd.filter.ast import Rule, has_limits
from conntrackd.filter.limit import LIMIT, assemble_limits
from conntrackd.filter.sets import AddressSet, Sets
from conntrackd.filter.table import CORE_FIELDS, FORMAT, TEST, Table, assemble, compile_table
from conntrackd.flow import ALL_EVENTS, Location
from conntrackd.netlink.labels import read_label_names
from conntrackd.render.anonymize import Anonymizer
from conntrackd.render.rendered import END_BYTES, Rendered, Stream
from conntrackd.render.steps import SLICE, STEP, compile_template, render_location
from conntrackd.render.template import Template

# Different Locations at a time; of a City database an address each has some. Above it they are forgotten.
MAX_LOCATIONS: Final = 16_384
# Addresses whose written form the core knows, for one sink and reader: 4 MB. Above it all are forgotten.
MAX_WRITTEN: Final = 32_768
# struct series_field of core/series.h
SERIES_FIELD: Final = struct.Struct("=QQ")
SIZES: Final = (TEST.size, LIMIT.size, STEP.size, SLICE.size, SERIES_FIELD.size)
if (FORMAT, len(CORE_FIELDS), *SIZES) != LAYOUT:  # as where it has no LAYOUT: load_engine() does without
    raise ImportError("the core was built from another version of conntrackd")
OpenSets = Mapping[str, core.AddressSet]
"""By their names."""


@dataclass(slots=True)
class Numbered:
    """How far something knows the Locations by number, and of which numbering."""

    numbering: object = None
    known: int = 0


@dataclass(slots=True)
class NativeTable:
    """Rules in the core."""

    rules: tuple[Rule, ...]
    description: Table
    limits: core.Limits | None
    core: core.Table
    locations: Numbered = field(default_factory=Numbered)
    opened: OpenSets = field(default_factory=dict)
    """What it uses in the place of the sets that it was compiled with."""

    @property
    def needs_location(self) -> bool:
        return bool(self.description.conditions)

    @property
    def counts(self) -> list[int]:
        return self.core.counts

    def use_sets(self, opened: OpenSets, /) -> None:
        if opened is not self.opened:
            self.opened, known = opened, zip(self.description.sets, self.core.sets, strict=True)
            self.core.use_sets(tuple(opened.get(found.name, own) for found, own in known))

    def learn(self, number: int, location: Location) -> None:
        """What the rules ask about a Location."""
        self.core.set_location(number, self.description.compute_location_bits(location))


def open_table(table: Table, limits: core.Limits | None = None) -> core.Table:
    """A table in the core. The networks of its sets are not copied, whatever the number of tables."""
    return core.Table(assemble(table), tuple(map(open_set, table.sets)), limits)


def open_set(addresses: AddressSet) -> core.AddressSet:
    """A set in the core, without a copy of its networks."""
    return core.AddressSet(addresses.networks[4], addresses.networks[16])


@dataclass(slots=True)
class NativeTemplate:
    """A template in the core."""

    template: Template
    core: core.Template
    written: "NativeWritten | None" = None
    locations: Numbered = field(default_factory=Numbered)

    def learn(self, number: int, location: Location) -> None:
        """A Location's texts."""
        self.core.set_location_texts(number, *render_location(self.template, location))


class NativeWritten:
    """What one sink writes in place of addresses, remembered."""

    def __init__(self, anonymizer: Anonymizer) -> None:
        self._anonymizer = anonymizer
        self.core = core.Anonymizer(MAX_WRITTEN, anonymizer.sides)

    def learn(self, batch: core.Batch, selection: Selection) -> None:
        """What is to be known before these events are rendered. Each address is asked about once."""
        unknown = self.core.find_unknown(batch, selection)
        if unknown:
            for address, written in zip(unknown, self._anonymizer.write(unknown), strict=True):
                self.core.put(address, written)


class NativeLocations:
    """Locations by number: the core has those of addresses, tables and templates know what they stand for."""

    def __init__(self, databases: LookUp, limit: int) -> None:
        self._databases = databases
        self._generation = databases.generation
        self.core = core.Locations(limit)
        # Another one each time that numbers get another meaning.
        self._numbering = object()
        self._list: list[Location] = [Location()]  # number 0 is none
        self._numbers: dict[Location, int] = {}

    def locate(self, batch: core.Batch, selection: Selection | None) -> None:
        """Each address that is not known is looked up once."""
        if self._is_outdated():
            self._forget()
        missing = batch.locate(self.core, selection, True)
        if missing:
            for address in missing:
                self.core.put(address, self._get_number(address))
            batch.locate(self.core, selection, False)

    def _is_outdated(self) -> bool:
        return self._generation != self._databases.generation or len(self._list) > MAX_LOCATIONS

    def teach_all(self, pupils: Sequence[NativeTable | NativeTemplate]) -> bool:
        """See teach(); False where the next locate() begins anew."""
        for pupil in pupils:
            self.teach(pupil)
        return not self._is_outdated()

    def teach(self, pupil: NativeTable | NativeTemplate) -> None:
        """Let a table or template know the Locations that are new since the last time."""
        progress = pupil.locations
        if progress.numbering != self._numbering:
            progress.numbering, progress.known = self._numbering, 0
        while progress.known < len(self._list) - 1:
            progress.known += 1
            pupil.learn(progress.known, self._list[progress.known])

    def _get_number(self, address: bytes) -> int:
        location = self._databases.look_up(address)
        if location is None:
            return 0
        number = self._numbers.get(location)
        if number is None:
            number = self._numbers[location] = len(self._list)
            self._list.append(location)
        return number

    def _forget(self) -> None:
        self._generation = self._databases.generation
        self.core.clear()
        self._numbering = object()
        self._numbers.clear()
        del self._list[1:]


class NativeEngine:
    """See Engine."""

    name = "core"
    fault = ""

    def __init__(self, reports_reason: bool) -> None:
        self._reports_reason = reports_reason
        self._label_names = read_label_names()

    def open_batch(self) -> core.Batch:
        return core.Batch(SLOTS, SLOT_BYTES, self._reports_reason)

    def open_ids(self) -> core.Ids:
        return core.Ids()

    def open_flows(self, limit: int) -> core.Flows:
        return core.Flows(limit)

    def open_deltas(self, limit: int) -> core.Deltas:
        return core.Deltas(limit)

    def open_series(
        self, fields: Sequence[SeriesField], limit: int, most_living: int = MAX_LIVING
    ) -> core.Series:
        packed = (
            SERIES_FIELD.pack(core.HAS["nat"] if needs_nat else 0, core.FIELDS.index(attribute))
            for attribute, needs_nat in fields
        )
        return core.Series(b"".join(packed), limit, most_living, choose_seed())

    def open_locations(self, databases: LookUp, limit: int) -> NativeLocations:
        return NativeLocations(databases, limit)

    def open_writer(self) -> core.Writer:
        return core.Writer()

    def open_limits(self, rules: Sequence[Rule], seed: int | None = None) -> core.Limits | None:
        if not has_limits(rules):
            return None
        return core.Limits(assemble_limits(rules), choose_seed() if seed is None else seed)

    def open_sets(self, sets: Sets) -> OpenSets:
        return {name: open_set(found) for name, found in sets.items()}

    def compile_table(
        self,
        rules: Sequence[Rule],
        protocols: frozenset[int] | None = None,
        events: int = ALL_EVENTS,
        limits: Limits | None = None,
    ) -> NativeTable:
        table = compile_table(rules, protocols, events)
        own = limits if isinstance(limits, core.Limits) else self.open_limits(rules)
        return NativeTable(tuple(rules), table, own, open_table(table, own))

    def compile_template(self, template: Template, community_seed: int | None = None) -> NativeTemplate:
        written = None if template.anonymizer is None else NativeWritten(template.anonymizer)
        return NativeTemplate(
            template, compile_template(template, self._label_names, community_seed), written
        )

    def decide(
        self,
        batch: core.Batch,
        table: NativeTable,
        among: Selection | None,
        locations: NativeLocations | None,
        *,
        is_part: bool = False,
        now: int | None = None,
    ) -> Selection:
        if locations is not None and table.needs_location:
            locations.teach(table)
        if table.limits is None:
            return batch.decide(table.core, among, is_part)
        return batch.decide(table.core, among, is_part, time.monotonic_ns() if now is None else now)

    def render(
        self,
        batch: core.Batch,
        template: NativeTemplate,
        selection: Selection,
        locations: NativeLocations | None,
        part: NativeTable | None = None,
    ) -> Rendered:
        if locations is not None:
            locations.teach(template)
        written = template.written
        if written is not None:
            written.learn(batch, selection)
        return _make_rendered(
            *batch.render(
                template.core,
                selection,
                None if part is None else part.core,
                None if written is None else written.core,
            )
        )

    def relay(
        self,
        batch: core.Batch,
        stages: Stages,
        link: Link,
        outlets: Sequence[Outlet],
        seconds: float,
    ) -> Relayed | None:
        table, locations, flows, writes_flows = stages
        if locations is not None and not locations.teach_all(
            [table, *(outlet.template for outlet in outlets)]
        ):
            return None
        received, decided, counts, tally, found = batch.relay(
            *link,
            int(seconds * 1000),
            table.core,
            None if locations is None else locations.core,
            flows,
            writes_flows,
            tuple((template.core, *loan, *others) for template, loan, *others in outlets),
        )
        passed = [
            Passed(tuple(map(Written._make, written)), _make_rendered(*rest), is_timed, *others)
            for written, rest, is_timed, *others in found
        ]
        return Relayed(received, decided, *counts, tally, passed)


def _make_rendered(
    text: bytes, ends: bytes, streams: Sequence[tuple[int, int, int]], moments: bytes, first: int
) -> Rendered:
    kinds = tuple(starmap(Stream, streams)) if streams else ()
    return Rendered(text, ends, len(ends) // END_BYTES, first, kinds, moments)
