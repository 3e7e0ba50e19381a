"""What the bus can ask of the daemon: the methods of the XML, in the daemon's own types. No D-Bus here.

conntrackd/control.py implements Control; tests implement it with a recorder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NewType, Protocol

from conntrackd.config.flow_metrics import FlowMetricSetting
from conntrackd.delivery.delays import DelayCounts
from conntrackd.engine import Counts, Value

Counters = dict[str, int]
Descriptor = NewType("Descriptor", int)
"""A file descriptor that is the caller's when it has been sent, and closed here."""

FLUSH_SECONDS: Final = 10.0

asked_by_root: Final[ContextVar[bool]] = ContextVar("asked_by_root", default=True)
"""Whether root made the call that is being answered: the last few of what is limited are kept for root."""


@dataclass(frozen=True, slots=True)
class FilterStatus:
    """The rules in force. `origin` describes for people where they come from."""

    rules: tuple[str, ...]
    origin: str
    expires_s: int = 0
    """Seconds until run-time rules revert by themselves, 0 where they do not."""
    groups: int = 0
    """The kernel's multicast groups that are joined, EventType bits."""
    instructions: int = 0
    """Length of the program in the kernel, 0 where there is none."""


NO_FILTER: Final = FilterStatus((), "")


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """What `conntrackctl status` is about. `problems` is empty while the daemon is healthy."""

    version: str
    start_us: int
    paths: tuple[str, ...]
    filter: FilterStatus
    buffer: int
    log_level: str
    run_time: tuple[str, ...] = ()
    """What is not as configured: `filter`, `log level`, `filter of sink NAME`, `sink NAME`, `set NAME`."""
    problems: tuple[str, ...] = ()
    """One line each."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink: `state` is a SinkState's value, `error` its last trouble in one line, or empty."""

    state: str
    error: str
    counters: Mapping[str, int]
    filter: FilterStatus = NO_FILTER
    """Its own, which decides about what the global one keeps."""
    rule_matches: Sequence[int] = ()
    """As that of Statistics; empty where it has no rules."""
    rule_suppressed: Sequence[int] = ()


class SetStatus(NamedTuple):
    """A named set of addresses as it is now."""

    name: str
    path: str
    """Of its file."""
    entries: int
    added: int = 0
    """Entries that are not in the file, but were added at run time."""
    removed: int = 0
    """Entries of the file that were removed at run time."""
    expires_s: int = 0
    """Seconds until the next of these changes ends by itself, 0 where none does."""
    uses: tuple[str, ...] = ()
    """Which rules name it, for people: `rule 2`, `rule 1 of sink loki`, `tail`."""


class SetEntry(NamedTuple):
    """An address or network; `change` is empty, `added` or `removed`: what was done to it at run time."""

    text: str
    change: str = ""
    expires_s: int = 0
    """Seconds until that ends by itself, 0 where it does not."""


@dataclass(frozen=True, slots=True)
class FlowCounts:
    """What was counted for an item of metrics.flows: see engine.Series."""

    setting: FlowMetricSetting
    series: Sequence[tuple[tuple[Value, ...], Counts]]
    other: Counts
    overflows: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters by name; `rule_matches` as Selector.counts: index 0 for events that no rule decided."""

    counters: Mapping[str, int]
    sinks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rule_matches: Sequence[int] = ()
    delays: Mapping[str, DelayCounts] = field(default_factory=dict)
    """By sink: how late events were."""
    rule_suppressed: Sequence[int] = ()
    """Of the matches, those that the limit of each rule has held back."""
    flows: Sequence[FlowCounts] = ()


class Finding(NamedTuple):
    """A result of the doctor: `severity` is ok, note, warning or error; `remedy` is the fix."""

    severity: str
    check: str
    message: str
    remedy: str = ""


class Listener(Protocol):
    """Receives changes. Called from any thread, once a change; returns at once."""

    def filter_changed(self) -> None:
        """Rules, their origin, groups or program: to be read again from status()."""

    def events_lost(self, count: int) -> None:
        """The kernel had no room for so many more."""

    def status_changed(self) -> None:
        """Anything else that status(), list_sinks() or sink_status() say: to be read again from there."""


class Control(ABC):
    """The daemon. Called in the thread of the event loop; what takes time is a coroutine.

    The coroutines are the methods of org.conntrackd1.xml, and nothing else is one: interface.py compares
    their names and types. Those of a sink take its name first.

    Faults are errors of conntrackd.errors, and change nothing. The `changes` that some return are lines that
    describe to a person what is different now, and how long it lasts.
    """

    # ---- org.conntrackd1.Manager ----------------------------------------------------------------------

    @abstractmethod
    async def reload(self) -> list[str]:
        """Everything that a reload can change, from the configuration. All or nothing."""

    @abstractmethod
    async def reload_filter(self) -> list[str]:
        """The rules alone, from the configuration."""

    @abstractmethod
    async def set_filter(self, rules: list[str], timeout_s: int) -> list[str]:
        """These rules until reload, reset or restart; for a time, where `timeout_s` is not 0."""

    @abstractmethod
    async def reset_filter(self) -> list[str]:
        """Back from run-time rules to those of the configuration as it was last read."""

    @abstractmethod
    async def set_log_level(self, level: str) -> list[str]:
        """One of those there are, until a reload or restart."""

    @abstractmethod
    async def check_filter(self, rules: list[str]) -> list[str]:
        """The rules in their canonical form, or all their mistakes. Changes nothing."""

    @abstractmethod
    async def explain_filter(self, rules: list[str]) -> str:
        """What the rules become, in Python and in the kernel; with no rules, those in force."""

    @abstractmethod
    async def tail(self, rules: list[str], limit: int) -> Descriptor:
        """The reading end of a pipe that carries JSON lines. 0 means no limit."""

    @abstractmethod
    async def list_sets(self) -> list[SetStatus]:
        """All sets that the configuration names."""

    @abstractmethod
    async def show_set(self, name: str, after: str) -> list[SetEntry]:
        """The entries behind `after`, or the first where it is empty: a bounded number, none at the end."""

    @abstractmethod
    async def reload_sets(self, names: list[str]) -> list[str]:
        """Read their files anew, all of them where there are no names; what was changed in them is over."""

    @abstractmethod
    async def add_to_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        """Until it is reloaded, or a restart; for a time, where `timeout_s` is not 0."""

    @abstractmethod
    async def remove_from_set(self, name: str, entries: list[str], timeout_s: int) -> list[str]:
        """Likewise."""

    @abstractmethod
    async def doctor(self) -> list[Finding]:
        """The doctor's findings, seen from the daemon."""

    async def get_statistics(self) -> tuple[Counters, dict[str, Counters], list[int]]:
        """Counters of the daemon, of each sink, and matches of the rules."""
        statistics = self.statistics()
        sinks = {name: dict(counters) for name, counters in statistics.sinks.items()}
        return dict(statistics.counters), sinks, list(statistics.rule_matches)

    # ---- org.conntrackd1.Sink -------------------------------------------------------------------------

    @abstractmethod
    async def enable_sink(self, name: str) -> list[str]:
        """As configured."""

    @abstractmethod
    async def disable_sink(self, name: str) -> list[str]:
        """Until it is enabled, a reload or restart."""

    @abstractmethod
    async def flush_sink(self, name: str) -> bool:
        """True when all that waited has left within FLUSH_SECONDS."""

    @abstractmethod
    async def set_sink_filter(self, name: str, rules: list[str], timeout_s: int) -> list[str]:
        """As set_filter(), for one sink, of what the global filter keeps."""

    @abstractmethod
    async def reset_sink_filter(self, name: str) -> list[str]:
        """As reset_filter(), for one sink."""

    @abstractmethod
    async def explain_sink_filter(self, name: str, rules: list[str]) -> str:
        """As explain_filter(), for one sink."""

    # ---- what properties, signals and metrics are made of (properties.py) -----------------------------

    @abstractmethod
    def status(self) -> DaemonStatus:
        """What there is to know of this moment, without counters."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """The counters of this moment."""

    @abstractmethod
    def list_sinks(self) -> list[str]:
        """Names of all sinks there are, those that are disabled at run time included."""

    @abstractmethod
    def sink_status(self, name: str) -> SinkStatus:
        """The same of a sink, with its counters."""

    @abstractmethod
    def subscribe(self, listener: Listener) -> None:
        """For the life of the daemon."""
