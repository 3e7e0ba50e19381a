"""What single parts of the event path cost, each alone, on messages that the kernel has sent."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench.capture import Capture
from conntrackd.config import read_config
from conntrackd.filter.grammar import RuleText, parse_rules
from conntrackd.filter.pycode import Selector, compile_selector
from conntrackd.filtering import compile_filter
from conntrackd.flow import Batch, Flow
from conntrackd.netlink.decode import Decoder, walk
from conntrackd.sinks.encode import JsonEncoder
from conntrackd.sinks.encode_loki import LokiEncoder
from conntrackd.stats import Stats

BATCH: Final = 128  # as many as one recvmmsg brings
ROUNDS: Final = 9
NOWHERE: Final = Path("/nonexistent")  # in place of this machine's configuration


@dataclass(frozen=True, slots=True)
class Part:
    """One measured part: microseconds of CPU time for each `unit`."""

    name: str
    us: float
    unit: str = "event"


def measure_parts(events: Capture) -> list[Part]:
    """All parts on the same events."""
    count = len(events.positions)
    batches = decode_all(events, Decoder(Stats()))
    return [
        Part("decode: attribute by attribute", time_part(lambda: walk_all(events), count)),
        Part("decode: by learned layouts", time_decode(events)),
        Part("encode: JSON lines", time_encode(batches, JsonEncoder())),
        Part("encode: Loki, compressed", time_encode(batches, LokiEncoder({}))),
        Part("filter: one address rule", time_selector(batches, compile_addresses(1))),
        Part("filter: 1,000 address rules", time_selector(batches, compile_addresses(1000))),
        Part("filter: load 1,000 address rules", time_load(list_addresses(1000)), "list"),
        Part("filter: load 1,000 rules of five conditions", time_load(list_mixed(1000)), "list"),
    ]


def time_decode(events: Capture) -> float:
    """The decoder, its layouts learned."""
    decoder = Decoder(Stats())
    return time_part(lambda: skim(events, decoder), len(events.positions))


def time_encode(batches: list[list[Flow]], encoder: JsonEncoder | LokiEncoder) -> float:
    """A sink's encoder, its addresses cached."""
    mixed: list[Batch] = [[*batch] for batch in batches]

    def encode() -> None:
        for batch in mixed:
            encoder.encode(batch)

    return time_part(encode, sum(len(batch) for batch in batches))


def time_selector(batches: list[list[Flow]], selector: Selector) -> float:
    """A selector over all batches."""

    def select() -> None:
        for batch in batches:
            selector(batch)

    return time_part(select, sum(len(batch) for batch in batches))


def time_load(lines: list[str]) -> float:
    """From text to all that a daemon needs: selector, program for the kernel, warnings."""
    config = read_config({}, {}, None, NOWHERE)
    texts = [RuleText(line) for line in lines]
    return time_part(lambda: compile_filter(texts, "", config), 1)


def compile_addresses(count: int) -> Selector:
    """A selector of so many rules, one for each of the first of the generator's clients."""
    rules = parse_rules([RuleText(line) for line in list_addresses(count)])
    return compile_selector(rules, protocols=frozenset((6, 17)))


def list_addresses(count: int) -> list[str]:
    """Rules that can be merged."""
    return [f"drop source address 10.1.{n >> 8}.{n & 255}" for n in range(1, count + 1)]


def list_mixed(count: int) -> list[str]:
    """Rules of which each stands alone."""
    return [
        f"{'log' if n % 2 else 'drop'} protocol TCP and source address 10.1.{n >> 8}.{n & 255}"
        f" and (destination port {n} or type DESTROY) and not destination network LOCAL"
        for n in range(1, count + 1)
    ]


def decode_all(events: Capture, decoder: Decoder) -> list[list[Flow]]:
    """The events in batches."""
    return [
        decoder.decode(
            events.buffer, events.positions[start : start + BATCH], events.lengths[start : start + BATCH], 0
        )
        for start in range(0, len(events.positions), BATCH)
    ]


def skim(events: Capture, decoder: Decoder) -> None:
    """Decode all and let go of each batch before the next: memory is used again, as in the daemon."""
    for start in range(0, len(events.positions), BATCH):
        end = start + BATCH
        decoder.decode(events.buffer, events.positions[start:end], events.lengths[start:end], 0)


def walk_all(events: Capture) -> None:
    """The reference decoder."""
    for position, length in zip(events.positions, events.lengths, strict=True):
        walk(bytes(events.buffer[position : position + length]), 0)


def time_part(run: Callable[[], object], count: int) -> float:
    """The middle of several rounds, after one that fills caches: microseconds for each of `count`."""
    run()
    return median(_time_once(run) for _ in range(ROUNDS)) / count


def _time_once(run: Callable[[], object]) -> float:
    start = time.process_time_ns()
    run()
    return (time.process_time_ns() - start) / 1000
