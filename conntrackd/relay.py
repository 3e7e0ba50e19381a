"""Batches that need nothing of Python: the core receives, decides, locates, renders and writes one by one.

What a loop in Python costs is the same for a batch of one event and of 256, and where events are few it is
most of what they cost. So Python comes in five times a second, and when there is something for it to do.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from conntrackd.delivery.loan import NOTHING_PASSED, Loan, Way
from conntrackd.delivery.outbox import Outbox
from conntrackd.engine import MOST_OUTLETS, SLOTS, EventBatch, Link, Opaque, Outlet, Relayed, Stages

if TYPE_CHECKING:
    from conntrackd.pipeline import Pipeline, Tables

# So often Python is asked what it has to do, and counters are up to date.
RELAY_SECONDS: Final = 0.2
# A sink that lets events wait so long for others gets what was relayed in one piece, its writer in several.
# More in one would save little and take memory: 350 bytes for each event, three times.
LONG_WAIT: Final = 0.1  # seconds
MOST_KEPT: Final = 2048  # events of each sink
KEEP: Final = Loan(Way.KEEP)


def can_relay(pipeline: "Pipeline", tables: "Tables", outboxes: Sequence[Outbox]) -> bool:
    """Whether events ask a reader for nothing but Stages, and a template of each sink."""
    if not 1 <= len(outboxes) <= MOST_OUTLETS:
        return False
    asks = (
        *(pipeline.guard, pipeline.heartbeat, pipeline.resync),
        *(pipeline.tails.wanting, pipeline.flow_metrics, tables.sinks),
        tables.records.of_flows and tables.records.of_events,
        *(outbox.template.anonymizer for outbox in outboxes),
    )
    return not any(asks)


def relay(
    pipeline: "Pipeline",
    outboxes: Sequence[Outbox],
    templates: Sequence[Opaque],
    batch: EventBatch,
    stages: Stages,
    link: Link,
) -> Relayed | None:
    """Relay for a while, and count it; None where that cannot be now, or the engine has no such thing."""
    outlets: list[Outlet] = []
    seconds, relayed, readers = RELAY_SECONDS, None, len(pipeline.readers)
    try:
        for outbox, template in zip(outboxes, templates, strict=True):
            # A descriptor is lent to one at a time, and nobody else may put anything meanwhile.
            loan, room, writer = outbox.lend() if readers == 1 else None, 0, None
            if loan is None:
                room = min(outbox.get_room() // readers, MOST_KEPT)
                if outbox.batch_wait < LONG_WAIT or room < SLOTS:
                    return None
                # Left for it, being written, and with each reader.
                writer = outbox.lend_writer((2 + readers) * MOST_KEPT)
                seconds = min(seconds, outbox.batch_wait)
            outlets.append(Outlet(template, loan or KEEP, room, writer))
        relayed = pipeline.engine.relay(batch, stages, link, outlets, seconds)
    finally:
        if relayed is None:
            for outbox in outboxes:
                outbox.end_loan(NOTHING_PASSED)
    if relayed is not None:
        _count(pipeline, outboxes, relayed, seconds)
    return relayed


def _count(pipeline: "Pipeline", outboxes: Sequence[Outbox], relayed: Relayed, seconds: float) -> None:
    stats = pipeline.stats
    with pipeline.lock:
        pipeline.count_received(
            relayed.batches, relayed.datagrams, relayed.forged, relayed.malformed, relayed.filtered
        )
        stats.flows_forgotten_total += relayed.forgotten
        stats.buffer_peak_bytes = max(stats.buffer_peak_bytes, relayed.peak)
        pipeline.count(relayed.tally)
        for outbox, passed in zip(outboxes, relayed.passed, strict=True):
            outbox.end_loan(passed, seconds)
