"""A push to Loki: its body, and what the reply means for what was in it. Pure functions.

Stored, later, otherwise (in halves, a push for each stream, late events in streams of their own), or never.
"""

import contextlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from conntrackd.delivery.sink import SinkRefused, SinkRevised, SinkTrouble, SinkUnavailable
from conntrackd.render.loki import LOST, SUPPRESSED, name_stream
from conntrackd.render.rendered import HELD, Rendered, Stream
from conntrackd.sinks.http_reply import MAX_REPLY, Reply

REPLAY: Final = {"replay": "1"}
LABEL: Final = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
Kind = tuple[int, int, bool]
"""What distinguishes a stream from the others of this host: type, protocol, whether it is a replay."""
LOSS: Final[Kind] = (0, 0, False)
REPORTS: Final = {LOSS[0]: LOST, HELD: SUPPRESSED}
"""By the type of the stream: what is not of events."""

# limits_config.block_ingestion_status_code (3.3 and later): nothing is stored. It is not an error, so that an
# agent that knows no better throws its batch away in silence.
BLOCKED: Final = 260
# What Loki says to a push that it has stored (pkg/distributor/http.go). A 200 with a page, a 202 of a proxy
# that means to send it later, or the answer of a hotel's login page store nothing.
STORED: Final = 204
# About the events themselves: to send them again as they are would be in vain. Every other refusal is about
# who asks, where, or when: a token, an address or a proxy can be set right while events wait.
FINAL: Final = frozenset({BLOCKED, 400, 422})
# "Not now", and nothing about who asks or what.
LATER: Final = frozenset({408, 421, 425, 429})
# What Loki says of a stream that it does not open (validation.StreamLimitErrorMsg): "maximum active stream
# limit exceeded when trying to create stream {...}". A stream that is only too fast has a rate limit.
STREAM_LIMIT: Final = re.compile(
    r"stream limit|limit of (?:active )?streams|too many (?:active )?streams", re.I
)
NAMED_STREAM: Final = re.compile(r"stream '?(?P<labels>\{(?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*\})")
# What Loki calls entries that are older than the newest of their stream, or than it takes at all.
TOO_OLD: Final = re.compile(r"too old|too far behind|out of order", re.IGNORECASE)
# Behind the distributor a message has gRPC's limit of 4 MiB; that is reported as an internal error.
TOO_LARGE: Final = re.compile(r"message larger than max", re.IGNORECASE)

# The distributor checks each entry by itself, stores the good ones and names what is wrong with the others
# (pkg/distributor/validator.go), the same words once with their number (pkg/util/errors.go, GroupedErrors).
STREAM: Final = r"'(?:\{(?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*\})'"
REFUSAL: Final = re.compile(
    r"(?:(?P<count>[0-9]{1,9}) errors like: )?(?:"
    rf"entry for stream (?P<dated>{STREAM}) has timestamp too "
    r"(?:old: \S+, oldest acceptable timestamp is: (?P<oldest>[^\s;]+)|new: [^\s;]+)"
    rf"|max entry size '\d+' bytes exceeded for stream (?P<long>{STREAM}) while [^;]*"
    rf"|stream (?P<rich>{STREAM}) (?:has structured|has too many structured|includes structured) [^;]*"
    r")(?:; |\s*$)"
)
REPORT: Final = re.compile(r'type="(?:LOST|SUPPRESSED)"')
OLDEST: Final = "oldest acceptable timestamp is: "
# That of an ingester holds for its first refusals, in the last stream of a push: what is newer by no more may
# have been refused after them, or in another stream.
BEHIND_SECONDS: Final = 600


# ---- the body, and what else can be done to its entries ---------------------------------------------


def gather_streams(parts: Sequence[Rendered]) -> dict[Kind, list[memoryview]]:
    """The entries of each stream, the largest one last."""
    streams: dict[Kind, list[memoryview]] = {}
    counts: dict[Kind, int] = {}
    for part in parts:
        for stream, entries in part.list_streams() if part.events else _list_loss(part):
            kind = get_kind(stream)
            streams.setdefault(kind, []).append(entries)
            counts[kind] = counts.get(kind, 0) + stream.events
    # An ingester answers for the last stream of a push alone (3.7.6, pkg/ingester/instance.go): of late
    # events the largest one shows best whether they were too late.
    return {kind: streams[kind] for kind in sorted(streams, key=counts.__getitem__)}


def write_streams(
    streams: Mapping[Kind, Sequence[memoryview]], labels: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The body in pieces. `labels` stand on every stream, beside its own."""
    before = b'{"streams":['
    for kind, entries in streams.items():
        yield before + _open_stream(labels, kind)
        # One piece a stream: a compressor lets other threads run at each, and waits until they have. And not
        # all streams at once, which would be a copy of the whole push. The last entry has a comma behind it.
        yield memoryview(entries[0] if len(entries) == 1 else b"".join(entries))[:-1]
        before = b"]},"
    yield b"]}]}"


def _list_loss(part: Rendered) -> Iterator[tuple[Stream, memoryview]]:
    yield (part.streams[0] if part.streams else Stream(*LOSS[:2], 1)), memoryview(part.text)


def get_kind(stream: Stream) -> Kind:
    """Entries of one kind go to one stream."""
    return stream.type, stream.protocol, stream.is_replay


def _make_labels(kind: Kind) -> dict[str, str]:
    event, protocol, is_replay = kind
    if event in REPORTS:
        return {"type": REPORTS[event]}
    return {**name_stream(event, protocol), **(REPLAY if is_replay else {})}


def _open_stream(labels: Mapping[str, str], kind: Kind) -> bytes:
    shown = {**labels, **_make_labels(kind)}
    return f'{{"stream":{json.dumps(shown, ensure_ascii=False, separators=(",", ":"))},"values":['.encode()


def halve(events: Rendered) -> tuple[Rendered, ...]:
    """The same entries in two, each stream's in their order; one when there is one entry."""
    return events.split((events.events + 1) // 2) if events.events > 1 else (events,)


def list_kinds(events: Rendered) -> tuple[Kind, ...]:
    """Of the streams in a push."""
    return tuple(dict.fromkeys(map(get_kind, events.streams))) or (LOSS,)


def split_streams(events: Rendered, last: str = "") -> tuple[Rendered, ...]:
    """The entries of each stream by themselves; those that Loki calls `last` behind the others."""
    kinds = sorted(list_kinds(events), key=lambda kind: is_named(kind, last))
    if len(kinds) == 1:
        return (events,)
    found = [get_kind(stream) for stream in events.streams for _ in range(stream.events)]
    return tuple(events.select([other == kind for other in found]) for kind in kinds)


def is_named(kind: Kind, labels: str) -> bool:
    """Whether labels as Loki writes them, `{host="gw", prot="TCP", type="NEW"}`, are those of this stream."""
    # Only these distinguish streams of this host, and no label of the user's may have their names.
    found = {name: value for name, value in LABEL.findall(labels) if name in ("type", "prot", *REPLAY)}
    return found == _make_labels(kind)


def mark_replay(events: Rendered, before: int | None = None, count: int | None = None) -> Rendered | None:
    """The `count` oldest entries from before that time (all for None) in streams of their own: `replay="1"`.

    Loki takes late entries only into a stream that has no newer ones. None when they were there already, and
    for a loss: it is reported again with a new time, as soon as something else is accepted.
    """
    if not events.events or any(stream.is_replay for stream in events.streams):
        return None
    moments = array("Q", events.moments)
    if before is not None and count is not None and count < len(moments):
        before = min(before, sorted(moments)[count])
    chosen = events.select([before is None or moment < before for moment in moments])
    streams = tuple(stream._replace(is_replay=True) for stream in chosen.streams)
    return chosen._replace(streams=streams) if chosen.events else None


# ---- what the reply means ---------------------------------------------------------------------------


class Refusals(NamedTuple):
    """How many entries of a push were refused: for their age (LOST records too), and for anything else."""

    old: int = 0
    old_events: int = 0
    other_events: int = 0
    losses: int = 0


def interpret(reply: Reply, payload: Rendered, now: float) -> None:
    """Return when the reply says that the payload is stored, else raise what the outbox has to do.

    `now` in seconds since the epoch, for a Retry-After that is a date.
    """
    status, said = reply.status, reply.body.decode(errors="replace")
    if status == STORED:
        return
    if status == 413 or (status >= 500 and TOO_LARGE.search(said)):
        parts = halve(payload)
        if len(parts) < 2:
            raise SinkRefused(f"{reply.reason} to a single event")
        raise SinkRevised(reply.reason, parts)
    if is_stream_refused(reply) and len(parts := _split_named(payload, said)) > 1:
        raise SinkRevised(reply.reason, parts)
    if status == 400:
        raise _interpret_entries(reply, said, payload)
    if status in FINAL:
        raise SinkRefused(reply.reason)
    raise SinkUnavailable(_explain(reply), parse_retry_after(reply.headers.get("retry-after"), now))


def is_stream_refused(reply: Reply) -> bool:
    """Whether it is one stream that Loki does not take, whatever becomes of the others."""
    return reply.status >= 400 and STREAM_LIMIT.search(reply.body.decode(errors="replace")) is not None


def _split_named(payload: Rendered, said: str) -> tuple[Rendered, ...]:
    """Each stream alone, so that all others are delivered; the one that is named comes last."""
    named = NAMED_STREAM.search(said)
    return split_streams(payload, last=named["labels"] if named else "")


def _explain(reply: Reply) -> str:
    """Why it is tried again, and what a person could do."""
    status = reply.status
    if 300 <= status < 400:
        return f"Loki redirects ({status}), which is not followed: check the address"
    if status < 300:
        return f"{reply.reason}, where Loki replies {STORED}: check that the address is Loki's"
    if status in (401, 403, 407):
        return f"{reply.reason}; the secret is read again before each attempt"
    if status in (404, 405, 410, 501):
        return f"{reply.reason}; check the address"
    return reply.reason


def _interpret_entries(reply: Reply, said: str, payload: Rendered) -> SinkTrouble:
    """What was refused of the push; what is too old goes to streams of its own, if it was in none before."""
    refused = count_refusals(said) if len(reply.body) < MAX_REPLY else None
    if TOO_OLD.search(said):
        before = _find_oldest_accepted(said)
        replay = mark_replay(payload, before, None if refused is None else refused.old)
        if replay is not None:
            others = 0 if refused is None else refused.other_events
            stored = 0 if before is None else payload.events - replay.events - others
            return SinkRevised(reply.reason, [replay], written=max(0, stored))
    if refused is None and NAMED_STREAM.search(said) and len(parts := _split_named(payload, said)) > 1:
        # A stream as a whole (its labels, say). Loki stores the others of the push, and twice is once there.
        return SinkRevised(reply.reason, parts)
    events = None if refused is None else refused.old_events + refused.other_events
    return SinkRefused(reply.reason, events)


def count_refusals(said: str) -> Refusals | None:
    """Of a reply to a push that was refused in part. None when it says anything else too, or only that."""
    at, old, old_events, other_events, losses = 0, 0, 0, 0, 0
    while at < len(said):
        match = REFUSAL.match(said, at)
        if match is None:
            return None
        count = int(match["count"] or 1)
        # A LOST or SUPPRESSED record is not an event: what it reports is counted where it happened.
        events = 0 if REPORT.search(match["dated"] or match["long"] or match["rich"]) else count
        losses += count - events
        if match["oldest"]:
            old, old_events = old + count, old_events + events
        else:
            other_events += events
        at = match.end()
    return Refusals(old, old_events, other_events, losses) if said else None


def _find_oldest_accepted(said: str) -> int | None:
    """Nanoseconds from which on nothing was refused for its age, where the reply says so; rounded up."""
    from datetime import datetime  # noqa: PLC0415  # as below: few Lokis refuse anything

    before, _, after = said.rpartition(OLDEST)
    more = 1 if "has timestamp too old" in before else BEHIND_SECONDS
    with contextlib.suppress(ValueError, IndexError):
        oldest = datetime.fromisoformat(after.split(maxsplit=1)[0].rstrip(",;'\""))
        return (int(oldest.timestamp()) + more) * 1_000_000_000
    return None


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds, from seconds or from a date (RFC 9110, section 10.2.3). None where it says nothing usable."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    from datetime import UTC  # noqa: PLC0415  # memory; dates are what few proxies send
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
