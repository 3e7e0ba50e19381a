"""The counters: name, one line of help, one integer.

What several readers write, they write under the pipeline's lock; reading one from another thread is safe.
"""

import resource
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final


def _counter(text: str, *, spool: bool = False) -> Any:  # noqa: ANN401  # stands in for its value
    return field(default=0, metadata={"help": text, "spool": spool})


@dataclass(slots=True)
class Stats:
    """What happened between the kernel and the outboxes. Written by the readers.

    At every moment of events: received = malformed + filtered + accepted; and of records: what an outbox has
    taken and its sink's filter left out since the start = new + update + destroy + flows + heartbeats +
    snapshot.
    """

    events_received_total: int = _counter("Events read from the kernel, malformed ones included")
    events_lost_total: int = _counter("Events the kernel had no room for in the socket's buffer")
    events_malformed_total: int = _counter("Messages that are not an event, or a truncated one")
    events_forged_total: int = _counter("Messages sent by a process instead of the kernel")
    events_filtered_total: int = _counter("Events dropped by a rule, a protocol or an event type")
    events_suppressed_total: int = _counter(
        "Events, flows of the table included, that SUPPRESSED records say a global limit held back"
    )
    events_accepted_total: int = _counter(
        "Events that the global filter keeps: each sink gets them, but for what its own leaves out"
    )
    events_new_total: int = _counter("NEW events handed to the sinks")
    events_update_total: int = _counter("UPDATE events handed to the sinks")
    events_destroy_total: int = _counter("DESTROY events handed to the sinks")
    flows_total: int = _counter("Flows handed to the sinks as FLOW records (conntrack.records)")
    flows_forgotten_total: int = _counter(
        "Flows whose beginning was forgotten for want of room (conntrack.flows_max)"
    )
    heartbeats_total: int = _counter("Flows handed to the sinks as ALIVE records (conntrack.heartbeat)")
    heartbeats_without_room_total: int = _counter(
        "ALIVE records without deltas for want of room (conntrack.flows_max)"
    )
    events_snapshot_total: int = _counter(
        "Flows of the connection table handed to the sinks as SNAPSHOT, beside the events"
    )
    events_retried_total: int = _counter("Times that the kernel kept an event for later (conntrack.reliable)")
    table_readings_total: int = _counter("Times that the whole connection table was read")
    table_errors_total: int = _counter("Times that the connection table could not be read")
    batches_received_total: int = _counter("Calls of recvmmsg that returned events")
    buffer_bytes: int = _counter("Size of the socket's receive buffer")
    buffer_used_bytes: int = _counter("Bytes queued in the receive buffer when it was last measured")
    buffer_peak_bytes: int = _counter("Highest number of bytes queued in the receive buffer")
    geoip_lookups_total: int = _counter("Addresses looked up in the GeoIP databases")
    geoip_errors_total: int = _counter("GeoIP databases that could not be used, the old one kept")
    reloads_total: int = _counter("Reloads and filter changes that were applied")
    reloads_failed_total: int = _counter("Reloads and filter changes refused, the old state kept")


@dataclass(slots=True)
class SinkStats:
    """What became of the events of one sink.

    At every moment: restored + taken = delivered + queued + spooled + all the dropped ones; and what the
    global filter has kept since there is this sink, flows of the table included, = taken + filtered.
    """

    sink_events_taken_total: int = _counter("Events handed to this sink")
    sink_events_filtered_total: int = _counter(
        "Events that the global filter keeps, and this sink's own does not"
    )
    sink_events_restored_total: int = _counter("Events found in this sink's spool at the start", spool=True)
    sink_events_delivered_total: int = _counter("Events that the sink has accepted")
    sink_events_dropped_queue_total: int = _counter("Events dropped because the queue was full")
    sink_events_dropped_refused_total: int = _counter("Events that the receiver refused for good")
    sink_events_dropped_spool_total: int = _counter(
        "Oldest events dropped because the spool was full", spool=True
    )
    sink_events_dropped_shutdown_total: int = _counter("Events left when the shutdown timeout expired")
    sink_events_dropped_disabled_total: int = _counter("Events dropped while the sink was disabled")
    sink_events_dropped_failed_total: int = _counter("Events dropped after the sink failed for good")
    sink_events_dropped_damaged_total: int = _counter(
        "Events on disk that could not be read back", spool=True
    )
    sink_events_queued: int = _counter("Events waiting in the queue")
    sink_events_spooled: int = _counter("Events waiting on disk", spool=True)
    # Since 1970, as in Flow.
    sink_oldest_event_ns: int = _counter("Time of the oldest event that waits, 0 for none")
    sink_batches_delivered_total: int = _counter("Batches that the sink has accepted")
    sink_retries_total: int = _counter("Failed attempts that were retried")
    sink_spool_errors_total: int = _counter("Batches that could not be written to the spool", spool=True)
    sink_spool_damaged_total: int = _counter("Damaged spools that were set aside", spool=True)
    sink_bytes_total: int = _counter("Bytes written")

    def count_dropped(self, reason: str, events: int) -> None:
        """For one of the reasons that have a counter."""
        name = DROPPED[reason]
        setattr(self, name, getattr(self, name) + events)

    def sum_dropped(self) -> int:
        """Events that were dropped, for whatever reason."""
        return sum(getattr(self, name) for name in DROPPED.values())

    def count_settled(self) -> int:
        """Events that left the queue or the spool, whatever became of them."""
        return (
            self.sink_events_delivered_total
            + self.sink_events_dropped_refused_total
            + self.sink_events_dropped_spool_total
            + self.sink_events_dropped_damaged_total
        )


_PREFIX, _SUFFIX = "sink_events_dropped_", "_total"
DROPPED: Final = {
    counter.name.removeprefix(_PREFIX).removesuffix(_SUFFIX): counter.name
    for counter in fields(SinkStats)
    if counter.name.startswith(_PREFIX)
}
"""Reason -> the counter of events that were dropped for it."""


def list_counters(stats: Stats | SinkStats, *, has_spool: bool = True) -> dict[str, int]:
    """All counters by name, in their order, read once. `has_spool`: those of a spool too."""
    return {
        counter.name: getattr(stats, counter.name)
        for counter in fields(stats)
        if has_spool or not counter.metadata["spool"]
    }


def measure_process() -> dict[str, int]:
    """What the process takes of the machine: memory in use and its peak, CPU time."""
    used = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "process_memory_bytes": used,
        # The kernel notes the peak now and then: it may be below what is in use.
        "process_memory_peak_bytes": max(used, usage.ru_maxrss << 10),
        "process_cpu_us_total": round((usage.ru_utime + usage.ru_stime) * 1e6),
    }
