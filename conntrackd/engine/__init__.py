"""What happens to every event, behind one interface: the core in C, or the same in plain Python.

A selection is the indexes of events in a batch, as native uint16 in bytes; None selects all of them.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from conntrackd.delivery.loan import Loan, Passed, Writer
from conntrackd.filter.ast import Rule
from conntrackd.filter.sets import Sets
from conntrackd.flow import ALL_EVENTS, Location
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template
from conntrackd.resources import is_kernel

# An event has 150-350 bytes; labels, a helper's name and a security context can make it 700.
SLOT_BYTES: Final = 2048
# What is done once a batch counts where there are few events in it; more slots than this leave the cache.
SLOTS: Final = 256
INDEX_BYTES: Final = 2
SEED_BYTES: Final = 8
# Connections whose opening an item of metrics.flows remembers: 16 MiB in the core.
MAX_LIVING: Final = 1 << 20
# The kernel says since then why a flow ended: DESTROY carries what was left of its timeout (5.10).
REPORTS_REASON: Final = (5, 10)
# Seconds: what durations of connections are counted by, in series. core/series.c has the same.
DURATION_BOUNDS: Final = (0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
# Of one relay. core/batch.h has the same.
MOST_OUTLETS: Final = 8
# Takes the reference where the core could be had, to compare them.
VARIABLE: Final = "CONNTRACKD_ENGINE"

Selection = bytes
Opaque = Any
"""What an engine has made: of no use to the other one, nor to anybody else."""
Tally = tuple[int, int, int]
"""An event type, a protocol, and how many events have both."""

Value = int | bytes | None
"""Of a field of an event: a number, an address, or None where the event has none."""


class SeriesField(NamedTuple):
    """A field of Flow by whose values connections are counted."""

    attribute: str
    needs_nat: bool = False
    """Whether only a translated connection has it."""


class Sums(NamedTuple):
    """Of the connections of one series; each modulo 2^64."""

    opened: int = 0
    closed: int = 0
    living: int = 0
    """Of those that were opened; another one that ends is none of them."""
    orig_packets: int = 0
    orig_bytes: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0
    seconds: int = 0
    """This and the next: how long those of a known duration lasted together."""
    nanoseconds: int = 0


Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Sums, and how many connections lasted at most as long as each of DURATION_BOUNDS, and longer than all."""


class Received(NamedTuple):
    """What one receive brought, and what the kernel says of the socket's queue afterwards."""

    datagrams: int
    """Forged ones included; 0 for nothing in time."""
    forged: int
    """Sent by a process instead of the kernel."""
    malformed: int
    used: int
    """Bytes in the queue."""
    size: int
    """Bytes that may be in it."""
    drops: int
    """Events that it had no room for, modulo 2^32."""


class Link(NamedTuple):
    """Where relay() receives from: see EventBatch.receive()."""

    socket: int
    gather_us: int
    drops: int
    """The kernel's counter of events without room, so far."""


class Stages(NamedTuple):
    """What relay() does with events before it makes texts of them."""

    table: Opaque
    locations: Opaque = None
    """Where addresses are looked up, None where events have no location."""
    flows: Opaque = None
    """Where beginnings of flows are remembered."""
    writes_flows: bool = False
    """Whether a DESTROY that is kept is written as a FLOW."""


class Outlet(NamedTuple):
    """Where relay() puts the text of a template, and how many events of it may be given back."""

    template: Opaque
    loan: Loan
    room: int
    writer: Writer | None = None
    """Who takes it where it can, in place of the caller."""


class Relayed(NamedTuple):
    """Batches that needed nothing of Python."""

    received: tuple[int, ...]
    """Of the last batch, which was not relayed: see Received."""
    decided: Selection | None
    """What the rules keep of it, where it is decided: addresses of these are to be looked up."""
    batches: int
    datagrams: int
    forged: int
    malformed: int
    filtered: int
    forgotten: int
    """Flows: see Flows.note()."""
    looked_ns: int
    """When the kernel's counter of drops still was what it had been; 0 where that was not seen."""
    peak: int
    """The most bytes that were queued."""
    tally: tuple[Tally, ...]
    passed: Sequence[Passed]
    """Of each outlet."""


class EventBatch(Protocol):
    """Events that were read together. Belongs to one thread; the next receive() or load() replaces them."""

    received_ns: int

    def __len__(self) -> int: ...

    def receive(self, socket: int, patience_ms: int, gather_us: int, /) -> tuple[int, ...]:
        """Wait for events and read them: see Received. Raises OSError when the socket is gone.

        Where they come one after the other it reads every `gather_us`, and the core sooner where very many
        come; 0: as soon as there is one.
        """

    def interrupt(self) -> None:
        """Let a relay() that is under way leave what it receives next to its caller. From any thread."""

    def load(self, messages: bytes, offset: int, received_ns: int, /) -> tuple[int, int, int]:
        """Whole messages from there on, as far as they are events: where it ended, messages, malformed."""

    def datagrams(self, limit: int, /) -> tuple[int, bytes]:
        """The first datagrams of the last receive, each padded to a multiple of 4 bytes, and their number."""

    def tally(self, selection: Selection | None, /) -> tuple[Tally, ...]:
        """How many there are of each type and protocol."""

    def of_types(self, selection: Selection | None, mask: int, /) -> Selection:
        """Those whose type is in the mask."""

    def set_type(self, selection: Selection | None, event_type: int, /) -> None:
        """All of them are of this type now."""

    def time(self, selection: Selection | None, position: int, /) -> int:
        """The time of one of them, nanoseconds since the epoch."""

    def describe(self, index: int, /) -> dict[str, Any]:
        """All fields of an event by their name in Flow; None for what it does not carry."""


class Limits(Protocol):
    """The token buckets of rules with a limit, shared by the tables of these rules. From any thread."""

    @property
    def totals(self) -> list[int]:
        """Events that the limit of each rule has held back; index 0 is what no rule matched."""

    def take(self) -> Sequence[tuple[int, int, int, int]]:
        """Of each rule whose limit has held back some since the last time: its number, how many, the times
        of the first and the last, as in Flow."""


class RuleTable(Protocol):
    """Rules in force, with the counts of events that each of them decided."""

    @property
    def rules(self) -> tuple[Rule, ...]: ...

    @property
    def needs_location(self) -> bool:
        """Whether events have to be located before they are decided."""

    @property
    def counts(self) -> list[int]:
        """Index 0: events that no rule matched."""

    @property
    def limits(self) -> Limits | None:
        """None where no rule has one."""

    def use_sets(self, opened: Opaque, /) -> None:
        """What open_sets() has made, in the place of its sets, as far as that has the names.

        From the next decision on; in the thread that decides by this table.
        """


class Ids(Protocol):
    """A set of flows' ids."""

    def __len__(self) -> int: ...
    def add(self, batch: Opaque, selection: Selection | None, /) -> Selection:
        """Gives those whose id was not in the set before."""

    def discard(self, batch: Opaque, selection: Selection | None, /) -> None: ...
    def select(self, batch: Opaque, selection: Selection | None, is_known: bool, /) -> Selection:
        """Those whose id is in the set, or is not."""

    def remove(self, other: Opaque, /) -> None:
        """Forget all that are in the other set, too."""


class Flows(Protocol):
    """When flows began that have not ended."""

    def __len__(self) -> int: ...
    def note(self, batch: Opaque, /) -> int:
        """Remember each NEW, and give its time to the DESTROY as `first_seen`, unless that has a start.

        Returns how many flows were forgotten for want of room, before their end.
        """


class Deltas(Protocol):
    """What flows had counted at their last record. See core/deltas.h."""

    def __len__(self) -> int: ...
    def begin(self) -> None:
        """The table is read from its beginning."""

    def finish(self) -> None:
        """It has been read to its end; without this it is the same reading that is begun again."""

    def see(self, batch: Opaque, /) -> Selection:
        """Flows of the table that this reading has not seen before."""

    def advance(self, batch: Opaque, selection: Selection | None, /) -> int:
        """Give them their deltas, unless nobody knows; how many there is no room for."""

    def end(self, batch: Opaque, /) -> None:
        """Give the DESTROYs of these events their deltas, and forget their flows."""

    def hide(self, batch: Opaque, selection: Selection | None, /) -> None:
        """These have no deltas any more."""


class Series(Protocol):
    """Counts of connections by the values of some fields. See core/series.h."""

    @property
    def other(self) -> Counts:
        """What was counted for want of room for one more series."""

    @property
    def overflows(self) -> int:
        """How many events that was."""

    def __len__(self) -> int: ...
    def count(self, batch: Opaque, selection: Selection | None, /) -> None:
        """Count what these open and close."""

    def list(self) -> Sequence[tuple[tuple[Value, ...], Counts]]:
        """The values of each series, and what was counted."""


class Locations(Protocol):
    """What the databases say of addresses, remembered."""

    def locate(self, batch: Opaque, selection: Selection | None, /) -> None:
        """Set both Locations of these events."""


class LookUp(Protocol):
    """Where locations come from: the GeoIP databases."""

    generation: int
    """Changes when a database was replaced: what was said before holds no longer."""

    def look_up(self, address: bytes) -> Location | None: ...


class Engine(Protocol):
    """One of the two. What it makes is of no use to the other."""

    name: str
    fault: str
    """Why it is not the core, though that was asked for; empty where it is, or was not."""

    def open_batch(self) -> EventBatch: ...
    def open_ids(self) -> Ids: ...
    def open_flows(self, limit: int) -> Flows: ...
    def open_deltas(self, limit: int) -> Deltas: ...
    def open_series(self, fields: Sequence[SeriesField], limit: int, most_living: int = MAX_LIVING) -> Series:
        """At most so many series; what has no room in them is counted together."""

    def open_locations(self, databases: LookUp, limit: int) -> Locations: ...
    def open_writer(self) -> Writer | None:
        """None where the engine relays nothing."""

    def open_limits(self, rules: Sequence[Rule], seed: int | None = None) -> Limits | None:
        """Full buckets for those of the rules that have a limit; None where none has.

        `seed` says which keys compete for buckets: one that nobody knows, where it is not given.
        """

    def open_sets(self, sets: Sets) -> Opaque:
        """For the tables whose rules name them. Takes milliseconds for a million networks."""

    def compile_table(
        self,
        rules: Sequence[Rule],
        protocols: frozenset[int] | None = None,
        events: int = ALL_EVENTS,
        limits: Limits | None = None,
    ) -> RuleTable:
        """`limits` are those of the same rules, which have own ones where they are not given."""

    def compile_template(self, template: Template, community_seed: int | None = None) -> Opaque:
        """Without a seed no event has a Community ID."""

    def decide(
        self,
        batch: Opaque,
        table: Opaque,
        among: Selection | None,
        locations: Opaque | None,
        *,
        is_part: bool = False,
        now: int | None = None,
    ) -> Selection:
        """Those that the rules keep, in their order, each with the rate of the sample that it is in.

        `now`, by which buckets fill: nanoseconds of time.monotonic_ns(), where it is not given.

        `is_part`: they are what another table has kept, whose rates they keep. Those of this one are for
        render(), until its next decision.
        """

    def render(
        self,
        batch: Opaque,
        template: Opaque,
        selection: Selection,
        locations: Opaque | None,
        part: Opaque | None = None,
    ) -> Rendered:
        """The events of a selection, at least one, in the form of a compiled template.

        `part` is the table that has decided about them as a part: the sample is that of both.
        """

    def relay(
        self,
        batch: Opaque,
        stages: Stages,
        link: Link,
        outlets: Sequence[Outlet],
        seconds: float,
        /,
    ) -> Relayed | None:
        """Receive, decide, locate, render and write batch after batch, for so long or until Python is needed.

        Events ask for nothing else, such as the table of a sink. None, and nothing was received: this engine
        cannot, or not now. Raises OSError when the socket is gone.
        """


def choose_seed() -> int:
    """Of a hash by which nobody outside shall aim. The module `secrets` would load OpenSSL, 3 MiB, for it."""
    return int.from_bytes(os.urandom(SEED_BYTES), "little")


def load_engine(environ: Mapping[str, str] | None = None) -> Engine:
    """The core, or plain Python where it cannot be loaded: that works too, at fifty times the cost."""
    environ = os.environ if environ is None else environ
    reports_reason, fault = is_kernel(*REPORTS_REASON), ""
    if environ.get(VARIABLE) != "plain":
        try:
            from conntrackd.engine.native import NativeEngine  # noqa: PLC0415  # it may not be there

            return NativeEngine(reports_reason)
        except ImportError as error:
            fault = str(error)
    from conntrackd.engine.plain import PlainEngine  # noqa: PLC0415  # memory that the core does not need

    return PlainEngine(reports_reason, fault)
