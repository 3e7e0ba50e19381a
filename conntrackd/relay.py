"""Batches that need nothing of Python: the core receives, decides, renders and writes one after the other.

What a loop in Python costs is the same for a batch of one event and of 256, and where events are few it is
most of what they cost. So Python comes in five times a second, and when there is something for it to do.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from conntrackd.delivery.loan import Loan, Way
from conntrackd.delivery.outbox import Outbox
from conntrackd.engine import SLOTS, EventBatch, Link, Opaque, Relayed
from conntrackd.render.rendered import Rendered

if TYPE_CHECKING:
    from conntrackd.pipeline import Pipeline, Tables

# A sink that lets events wait so long for others gets what was relayed in one piece. More in one would save
# little and take memory: 350 bytes for each event, three times.
LONG_WAIT: Final = 0.2  # seconds
MOST_KEPT: Final = 4096
KEEP: Final = Loan(Way.KEEP)
NOTHING: Final = Rendered(b"", b"", 0, 0)


def find_outbox(pipeline: "Pipeline", tables: "Tables", outboxes: Sequence[Outbox]) -> Outbox | None:
    """The only one, if events ask the only reader for nothing but the global filter and its template."""
    if len(pipeline.readers) > 1 or len(outboxes) != 1:
        return None
    template = outboxes[0].template
    asks = (
        *(pipeline.geoip, pipeline.guard, pipeline.heartbeat, pipeline.resync),
        *(pipeline.tails.wanting, pipeline.flow_metrics, tables.sinks, tables.records.of_flows),
        *(template.by_stream, template.anonymizer),
    )
    if any(asks):
        return None
    return outboxes[0]


def relay(
    pipeline: "Pipeline", outbox: Outbox, batch: EventBatch, table: Opaque, template: Opaque, link: Link
) -> Relayed | None:
    """Relay for a while, and count it; None where that cannot be now, or the engine has no such thing."""
    loan, room, relayed = outbox.lend(), 0, None
    if loan is None:
        room = min(outbox.get_room(), MOST_KEPT) if outbox.batch_wait >= LONG_WAIT else 0
        if room < SLOTS:
            return None
    try:
        relayed = pipeline.engine.relay(batch, table, template, link, loan or KEEP, room)
    finally:
        if relayed is None and loan is not None:
            outbox.end_loan((), NOTHING, 0)
    if relayed is not None:
        _count(pipeline, outbox, relayed)
    return relayed


def _count(pipeline: "Pipeline", outbox: Outbox, relayed: Relayed) -> None:
    stats = pipeline.stats
    with pipeline.lock:
        pipeline.count_received(
            relayed.batches, relayed.datagrams, relayed.forged, relayed.malformed, relayed.filtered
        )
        stats.buffer_peak_bytes = max(stats.buffer_peak_bytes, relayed.peak)
        pipeline.count(relayed.tally)
        outbox.end_loan(relayed.written, relayed.rest, relayed.torn, is_timed=relayed.is_timed)
