"""Whether events that happen now can be heard: tracking, the kernel's switch for events, namespace and table.

Looked at when nftables announces a change, and now and then for what nobody announces. What was not heard in
the meantime is a gap, from the last look at which all was well.
"""

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from conntrackd.errors import ConntrackdError, ResourceError, UnavailableError
from conntrackd.netlink import tracking
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.table import ConntrackTable

LOOK_SECONDS: Final = 4.0
"""What changes is seen within this time, and what nftables changes at once."""
# Above that the kernel is about to refuse new connections, or does: of those there is no event.
FULL: Final = 0.95

EVENTS_OFF: Final = "the kernel is set to send no events: nf_conntrack_events is 0"
OTHER_NAMESPACE: Final = (
    "the network namespace was deleted or replaced: events of the new one are not received"
)
TABLE_FULL: Final = "the connection table is full or nearly full: the kernel refuses new connections"
# What a LOST record says for the first three.
REASONS: Final = {
    tracking.NOT_TRACKED: "connections were not tracked",
    EVENTS_OFF: "nf_conntrack_events was 0",
    OTHER_NAMESPACE: "in another network namespace",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What there was to see at one moment. None stands for what is unknown."""

    is_asked_for: bool | None = None
    """Whether rules have connections tracked."""
    events: int | None = None
    """nf_conntrack_events."""
    entries: int | None = None
    share: float = 0.0
    """How full the table is."""
    is_here: bool = True
    """Whether the namespace of the configuration is still the one that is listened to."""


class Hearing:
    """Keeps what the last looks saw. Belongs to one thread."""

    def __init__(self, namespace: str | None, cookie: bytes) -> None:
        """`cookie`: of the network namespace that is listened to, see read_namespace()."""
        self.look_at = 0.0
        """When to look next, by time.monotonic()."""
        self.faults: tuple[str, ...] = ()
        """Why events are not heard, or not all of them. The first three kinds are those of REASONS."""
        self.is_tracking: bool | None = None
        self._namespace = namespace
        self._cookie = cookie
        self._low: int | None = None  # entries, when they were counted last in a time without a rule
        self._is_tracked_otherwise = False
        self._well_ns = 0  # of the last look at which all was heard
        self._deaf_ns = 0
        self._reason = ""

    def look(self, now_ns: int, *, is_timed: bool = True) -> None:
        """Check tracking, the kernel's switch, namespace and table.

        `is_timed`: not because of news, so that some time has passed since the last check.
        """
        self.look_at = time.monotonic() + LOOK_SECONDS
        seen = self._see()
        if seen is not None:
            self.note(seen, now_ns, is_timed=is_timed)

    def note(self, seen: Look, now_ns: int, *, is_timed: bool = True) -> None:
        """Note what was seen."""
        self.is_tracking = self._evaluate(seen, is_timed)
        faults = [
            tracking.NOT_TRACKED if self.is_tracking is False else "",
            EVENTS_OFF if seen.events == 0 else "",
            "" if seen.is_here else OTHER_NAMESPACE,
            TABLE_FULL if seen.share >= FULL else "",
        ]
        self.faults = tuple(filter(None, faults))
        reasons = [REASONS[fault] for fault in self.faults if fault in REASONS]
        if not reasons:
            self._well_ns = now_ns
        elif self._well_ns and not self._deaf_ns:
            self._deaf_ns, self._reason = self._well_ns, reasons[0]

    def _evaluate(self, seen: Look, is_timed: bool) -> bool | None:
        """Whether connections are tracked.

        Open vSwitch and tc have that done without a rule, and more entries in the table show it. Those of the
        moment in which a rule went do not count, nor what events say, which may have waited in the buffer.
        """
        if seen.is_asked_for is not False:
            self._low, self._is_tracked_otherwise = None, False
            return seen.is_asked_for
        if is_timed and seen.entries is not None:
            self._is_tracked_otherwise |= self._low is not None and seen.entries > self._low
            self._low = seen.entries
        return None if self._is_tracked_otherwise else False

    def _see(self) -> Look | None:
        """None where it cannot be looked now, because no file can be opened."""
        try:
            with enter(self._namespace):
                return self._see_here()
        except (ResourceError, OSError):
            return None
        except ConntrackdError:  # a namespace that cannot be entered any more is not the one there was
            return Look(is_here=False)

    def _see_here(self) -> Look:
        asked, events = tracking.is_asked_for(), tracking.read_setting("nf_conntrack_events")
        with closing(ConntrackTable()) as table:  # no two sockets at a time: descriptors may be few
            is_here = table.read_namespace() == self._cookie
            try:
                fill = table.measure()
            except UnavailableError:
                return Look(asked, events, is_here=is_here)
        share = fill.entries / fill.limit if fill.limit else 0.0
        return Look(asked, events, fill.entries, share, is_here)

    # ---- the gap --------------------------------------------------------------------------------------

    @property
    def deaf_ns(self) -> int:
        """Since when nothing is heard, 0 where that is not so or was never otherwise."""
        return self._deaf_ns

    def resume(self, deaf_ns: int) -> None:
        """An earlier process heard nothing from then on."""
        self._deaf_ns, self._reason = deaf_ns, "the kernel made no events"

    def pop_gap(self, now_ns: int, *, at_end: bool = False) -> tuple[int, int, str] | None:
        """Between which looks events may be missing and why, once it is over, or at the daemon's end."""
        if not self._deaf_ns or (not at_end and any(fault in REASONS for fault in self.faults)):
            return None
        since, self._deaf_ns = self._deaf_ns, 0
        return since, now_ns, self._reason
