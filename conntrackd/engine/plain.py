"""The engine in plain Python: the reference of walk, decide and render, for a daemon that has no core."""

import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NamedTuple

from conntrackd.engine import (
    MAX_LIVING,
    SLOT_BYTES,
    SLOTS,
    Limits,
    Link,
    LookUp,
    Selection,
    SeriesField,
    Stages,
    Tally,
    choose_seed,
)
from conntrackd.engine.plain_deltas import PlainDeltas, identify
from conntrackd.engine.plain_series import PlainSeries
from conntrackd.filter.ast import Rule, has_limits, put_sets, uses_location
from conntrackd.filter.buckets import Buckets
from conntrackd.filter.evaluate import Decision, evaluate, is_left_out
from conntrackd.filter.sets import NO_SETS, Sets
from conntrackd.flow import ABSENT, ALL_EVENTS, EventType, Flow, Location
from conntrackd.netlink.constants import MSG_TRUNC, NLMSG_HDRLEN, NLMSG_MIN_TYPE
from conntrackd.netlink.labels import read_label_names
from conntrackd.netlink.message import HEADER, MalformedError, split, walk
from conntrackd.netlink.socket import measure
from conntrackd.render.plain import render_flows
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template

FIELD_NAMES: Final = tuple(field.name for field in fields(Flow))


class PlainBatch:
    """See engine.Batch."""

    def __init__(self, reports_reason: bool) -> None:
        self.received_ns = 0
        self.flows: list[Flow] = []
        self._reports_reason = reports_reason
        self._datagrams: list[bytes] = []
        self._malformed = 0
        self._read_at = 0.0

    def __len__(self) -> int:
        return len(self.flows)

    def receive(self, descriptor: int, patience_ms: int, gather_us: int, /) -> tuple[int, ...]:
        next_at = self._read_at + gather_us / 1e6
        if not select.select([descriptor], [], [], patience_ms / 1000)[0]:
            self._begin(0)
            with _borrow(descriptor) as netlink:
                return (0, 0, 0, *measure(netlink))
        time.sleep(max(0.0, next_at - time.monotonic()))
        self._read_at = time.monotonic()
        with _borrow(descriptor) as netlink:
            datagrams, senders = _read_queue(netlink)
            fill = measure(netlink)
        self._begin(time.time_ns())
        self._datagrams = [data for data, port in zip(datagrams, senders, strict=True) if port == 0]
        for datagram in self._datagrams:
            for message in split(datagram) if len(datagram) <= SLOT_BYTES else [b""]:
                self._append(message)
        forged = len(senders) - len(self._datagrams)
        return (len(senders), forged, self._malformed, *fill)

    def interrupt(self) -> None:
        """Nothing is ever under way: see relay()."""

    def load(self, messages: bytes, offset: int, received_ns: int, /) -> tuple[int, int, int]:
        self._begin(received_ns)
        count = 0
        while len(messages) - offset >= NLMSG_HDRLEN and count < SLOTS:
            length, kind, *_ = HEADER.unpack_from(messages, offset)
            if not NLMSG_HDRLEN <= length <= len(messages) - offset or kind < NLMSG_MIN_TYPE:
                break
            self._append(messages[offset : offset + length])
            offset = min(offset + (length + 3 & ~3), len(messages))
            count += 1
        return offset, count, self._malformed

    def datagrams(self, limit: int, /) -> tuple[int, bytes]:
        chosen = [data for data in self._datagrams if len(data) <= SLOT_BYTES][:limit]
        return len(chosen), b"".join(data + bytes(-len(data) % 4) for data in chosen)

    def tally(self, selection: Selection | None, /) -> tuple[Tally, ...]:
        counts = Counter((flow.type, flow.protocol) for flow in self.select(selection))
        return tuple((*kind, count) for kind, count in counts.items())

    def of_types(self, selection: Selection | None, mask: int, /) -> Selection:
        return self.make_selection(
            index for index in self.list_indexes(selection) if self.flows[index].type & mask
        )

    def set_type(self, selection: Selection | None, event_type: int, /) -> None:
        for flow in self.select(selection):
            flow.type = event_type
            is_incomplete = event_type == EventType.FLOW and not (flow.start or flow.first_seen)
            flow.incomplete = 1 if is_incomplete else ABSENT

    def time(self, selection: Selection | None, position: int, /) -> int:
        return self.select(selection)[position].time

    def describe(self, index: int, /) -> dict[str, Any]:
        flow = self.flows[index]
        return {
            name: None if getattr(flow, name) in (ABSENT, b"") else getattr(flow, name)
            for name in FIELD_NAMES
        }

    # ---- for the rest of the reference ----------------------------------------------------------------

    def list_indexes(self, selection: Selection | None) -> Sequence[int]:
        """The numbers in a selection."""
        return range(len(self.flows)) if selection is None else array("H", selection)

    def select(self, selection: Selection | None) -> list[Flow]:
        """The events of a selection."""
        return [self.flows[index] for index in self.list_indexes(selection)]

    @staticmethod
    def make_selection(indexes: Iterable[int]) -> Selection:
        """Numbers of events as a selection."""
        return array("H", indexes).tobytes()

    def list_moments(self) -> list[int]:
        """The time of each event; one nanosecond after the last one's where both have the same."""
        moments: list[int] = []
        for index, flow in enumerate(self.flows):
            is_same = index > 0 and self.flows[index - 1].time == flow.time
            moments.append(moments[-1] + 1 if is_same else flow.time)
        return moments

    def _begin(self, received_ns: int) -> None:
        self.received_ns = received_ns
        self.flows, self._datagrams, self._malformed = [], [], 0

    def _append(self, message: bytes) -> None:
        try:
            self.flows.append(walk(message, self.received_ns, reports_reason=self._reports_reason))
        except MalformedError:
            self._malformed += 1


@contextmanager
def _borrow(descriptor: int) -> Iterator[socket.socket]:
    """A socket object of its descriptor, which stays open: for a duplicate there may be no number left."""
    netlink = socket.socket(fileno=descriptor)
    try:
        yield netlink
    finally:
        netlink.detach()


def _read_queue(netlink: socket.socket) -> tuple[list[bytes], list[int]]:
    """Datagrams that are there, at most SLOTS, and the port id of each one's sender."""
    datagrams: list[bytes] = []
    senders: list[int] = []
    while len(datagrams) < SLOTS:
        try:
            data, _, _, sender = netlink.recvmsg(SLOT_BYTES + 1, 0, socket.MSG_DONTWAIT | MSG_TRUNC)
        except (BlockingIOError, InterruptedError):
            break
        datagrams.append(data)
        senders.append(sender[0] if sender else 0)
    return datagrams, senders


@dataclass(slots=True)
class PlainTable:
    """See engine.Table."""

    rules: tuple[Rule, ...]
    protocols: frozenset[int] | None
    events: int
    needs_location: bool
    counts: list[int]
    limits: Buckets | None = None
    part_rates: dict[int, int] = field(default_factory=dict)
    opened: Sets = field(default_factory=lambda: NO_SETS)
    """What it uses in the place of the sets that it was compiled with."""

    def use_sets(self, opened: Sets, /) -> None:
        if opened is not self.opened:
            self.opened, self.rules = opened, put_sets(self.rules, opened)

    def decide(self, flow: Flow, now: int) -> Decision:
        """What becomes of it; counts who decided."""
        decision = evaluate(self.rules, flow, self.protocols, self.events)
        if not is_left_out(flow, self.protocols, self.events):
            self.counts[decision.rule_number] += 1
        if decision.keep and self.limits is not None:
            return decision._replace(keep=self.limits.take_token(decision.rule_number, flow, now))
        return decision

    def get_rate(self, decision: Decision) -> int:
        """The N of the sample 1/N of the rule that decided, 0 for none."""
        return self.rules[decision.rule_number - 1].sample if decision.rule_number else 0


class PlainLocations:
    """See engine.Locations."""

    def __init__(self, databases: LookUp, limit: int) -> None:
        self._databases = databases
        self._limit = max(1, limit)
        self._generation = databases.generation
        self._known: dict[bytes, Location | None] = {}

    def locate(self, batch: PlainBatch, selection: Selection | None) -> None:
        if self._generation != self._databases.generation or len(self._known) > self._limit:
            self._generation = self._databases.generation
            self._known.clear()
        for flow in batch.select(selection):
            flow.src_location, flow.dst_location = self._find(flow.src), self._find(flow.dst)

    def _find(self, address: bytes) -> Location | None:
        if address not in self._known:
            self._known[address] = self._databases.look_up(address)
        return self._known[address]


class PlainIds:
    """See engine.Ids."""

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, batch: PlainBatch, selection: Selection | None, /) -> Selection:
        fresh = []
        for index in batch.list_indexes(selection):
            if batch.flows[index].id not in self._ids:
                self._ids.add(batch.flows[index].id)
                fresh.append(index)
        return batch.make_selection(fresh)

    def discard(self, batch: PlainBatch, selection: Selection | None, /) -> None:
        self._ids.difference_update(flow.id for flow in batch.select(selection))

    def select(self, batch: PlainBatch, selection: Selection | None, is_known: bool, /) -> Selection:
        indexes = batch.list_indexes(selection)
        return batch.make_selection(i for i in indexes if (batch.flows[i].id in self._ids) == is_known)

    def remove(self, other: "PlainIds", /) -> None:
        self._ids -= set(other._ids)


class PlainFlows:
    """See engine.Flows. Of all flows the oldest is forgotten; the core takes the oldest of some."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._times: dict[tuple[Any, ...], int] = {}

    def __len__(self) -> int:
        return len(self._times)

    def note(self, batch: PlainBatch, /) -> int:
        forgotten = 0
        for flow in batch.flows:
            key = identify(flow)
            if flow.type == EventType.NEW:
                if key not in self._times and len(self._times) >= self._limit:
                    del self._times[min(self._times, key=self._times.__getitem__)]
                    forgotten += 1
                self._times[key] = flow.time
            elif flow.type == EventType.DESTROY and key in self._times:
                time_of_new = self._times.pop(key)
                flow.first_seen = 0 if flow.start else time_of_new
        return forgotten


class PlainTemplate(NamedTuple):
    """A template, and the seed of the Community ID where there is one."""

    template: Template
    community_seed: int | None


class PlainEngine:
    """See Engine."""

    name = "plain"

    def __init__(self, reports_reason: bool, fault: str = "") -> None:
        self.fault = fault
        self._reports_reason = reports_reason
        self._label_names = read_label_names()

    def open_batch(self) -> PlainBatch:
        return PlainBatch(self._reports_reason)

    def open_ids(self) -> PlainIds:
        return PlainIds()

    def open_flows(self, limit: int) -> PlainFlows:
        return PlainFlows(limit)

    def open_deltas(self, limit: int) -> PlainDeltas:
        return PlainDeltas(limit)

    def open_series(
        self, fields: Sequence[SeriesField], limit: int, most_living: int = MAX_LIVING
    ) -> PlainSeries:
        return PlainSeries(fields, limit, most_living)

    def open_locations(self, databases: LookUp, limit: int) -> PlainLocations:
        return PlainLocations(databases, limit)

    def open_writer(self) -> None:
        return None

    def open_limits(self, rules: Sequence[Rule], seed: int | None = None) -> Buckets | None:
        if not has_limits(rules):
            return None
        return Buckets(rules, choose_seed() if seed is None else seed)

    def open_sets(self, sets: Sets) -> Sets:
        return sets

    def compile_table(
        self,
        rules: Sequence[Rule],
        protocols: frozenset[int] | None = None,
        events: int = ALL_EVENTS,
        limits: Limits | None = None,
    ) -> PlainTable:
        own = limits if isinstance(limits, Buckets) else self.open_limits(rules)
        counts = [0] * (len(rules) + 1)
        return PlainTable(tuple(rules), protocols, events, uses_location(rules), counts, own)

    def compile_template(self, template: Template, community_seed: int | None = None) -> PlainTemplate:
        return PlainTemplate(template, community_seed)

    def decide(
        self,
        batch: PlainBatch,
        table: PlainTable,
        among: Selection | None,
        _: PlainLocations | None,
        *,
        is_part: bool = False,
        now: int | None = None,
    ) -> Selection:
        kept, moment = [], time.monotonic_ns() if now is None else now
        for index in batch.list_indexes(among):
            decision = table.decide(batch.flows[index], moment)
            flow, rate = batch.flows[index], table.get_rate(decision)
            if is_part:
                table.part_rates[index] = max(rate, flow.sample_rate) or ABSENT
            else:
                flow.sample_rate = rate or ABSENT
            kept += [index] if decision.keep else []
        return batch.make_selection(kept)

    def render(
        self,
        batch: PlainBatch,
        template: PlainTemplate,
        selection: Selection,
        _: PlainLocations | None,
        part: PlainTable | None = None,
    ) -> Rendered:
        moments, indexes = batch.list_moments(), batch.list_indexes(selection)
        flows = batch.select(selection)
        if part is not None:
            rates = [part.part_rates[index] for index in indexes]
            flows = [replace(flow, sample_rate=rate) for flow, rate in zip(flows, rates, strict=True)]
        chosen = [moments[index] for index in indexes]
        return render_flows(template.template, flows, chosen, self._label_names, template.community_seed)

    def relay(
        self, _batch: PlainBatch, _stages: Stages, _link: Link, _outlets: object, _seconds: float, /
    ) -> None:
        """It has nothing that would be cheaper than a batch at a time."""
