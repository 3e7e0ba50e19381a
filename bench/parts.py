"""What single parts of the event path cost, each alone, on messages that the kernel has sent."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

from conntrackd.filter.pycode import Selector, compile_selector
from conntrackd.netlink.decode import Decoder, walk
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode_json import LINE, JsonEncoder
from conntrackd.sinks.encode_loki import ENTRY, LokiEncoder
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from bench.capture import Capture
from conntrackd.config import read_config
from conntrackd.filter.grammar import RuleText, parse_rules
from conntrackd.filtering import compile_filter
from conntrackd.flow import NANO, Batch, Flow
from conntrackd.geoip import GeoIP
from conntrackd.render.journal import FORM as JOURNAL
from conntrackd.render.syslog import SyslogEncoder
from conntrackd.stats import Stats

BATCH: Final = 128  # as many as one recvmmsg brings
ROUNDS: Final = 9
PLACES: Final = 10_000
FIRST_BYTE: Final = 81
LANGUAGES: Final = ("de", "en", "es", "fr", "ja", "pt-BR", "ru", "zh-CN")
NOWHERE: Final = Path("/nonexistent")  # in place of this machine's configuration


@dataclass(frozen=True, slots=True)
class Part:
    """One measured part: microseconds of CPU time for each `unit`."""

    name: str
    us: float
    unit: str = "event"


def measure_parts(events: Capture, scratch: Path) -> list[Part]:
    """All parts on the same events; files go into `scratch`."""
    database = write_places(scratch / "places.mmdb")
    total = len(events.positions)
    batches = decode_all(events, Decoder(Stats()))
    return [
        Part("decode: attribute by attribute", time_part(lambda: walk_all(events), total)),
        Part("decode: by learned layouts", time_decode(events)),
        Part("encode: JSON lines", time_encode(batches, JsonEncoder())),
        Part("encode: Loki, compressed", time_encode(batches, LokiEncoder({}))),
        Part("compose: the texts of four sinks", time_compose(batches)),
        Part("compose: the same with NAT, counters and times", time_compose(translate(batches))),
        # A cache of one address has none of an event's two, nor of the event's before.
        Part("geoip: an address seen for the first time", time_geoip(batches, database, 1), "address"),
        Part("geoip: a cached address", time_geoip(batches, database, 1 << 18), "address"),
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


def time_compose(batches: list[list[Flow]]) -> float:
    """All sinks in one pass, as in the daemon."""
    forms = (LINE, JOURNAL, SyslogEncoder("rfc5424", "daemon").form, ENTRY)
    composer = Composer()

    def compose() -> None:
        for batch in batches:
            composer.compose(forms, batch)

    return time_part(compose, sum(len(batch) for batch in batches))


def translate(batches: list[list[Flow]]) -> list[list[Flow]]:
    """As a gateway with nf_conntrack_acct and nf_conntrack_timestamp ends its flows."""

    def add(flow: Flow) -> Flow:
        counted = replace(flow, orig_packets=12, orig_bytes=3456, reply_packets=10, reply_bytes=34567)
        return replace(counted, reply_dst=flow.dst, reply_dport=7, start=NANO, stop=2 * NANO)

    return [[add(flow) for flow in batch] for batch in batches]


def write_places(path: Path) -> Path:
    """A City database of PLACES networks, each a place of its own with names in many languages."""
    writer = MMDBWriter(6, "GeoLite2-City", languages=list(LANGUAGES), ipv4_compatible=True, float_type="f64")
    for number in range(PLACES):
        place = {
            "city": {"names": {language: f"City {number} in {language}" for language in LANGUAGES}},
            "country": {
                "iso_code": "DE",
                "names": {language: f"Germany in {language}" for language in LANGUAGES},
            },
            "location": {"latitude": number / 100, "longitude": number / 50, "time_zone": "Europe/Berlin"},
        }
        writer.insert_network(IPSet([f"{FIRST_BYTE}.{number >> 8}.{number & 255}.0/24"]), place)
    writer.to_db_file(str(path))
    return path


def time_geoip(batches: list[list[Flow]], database: Path, cache: int) -> float:
    """Both addresses of each event, which are all different until there are no more places."""
    geoip = GeoIP([database], "en", cache, Stats())
    numbers = count()
    located = [
        [replace(flow, src=_pick_address(next(numbers)), dst=_pick_address(next(numbers))) for flow in batch]
        for batch in batches
    ]

    def locate() -> None:
        for batch in located:
            geoip.locate(batch)

    return time_part(locate, 2 * sum(map(len, located)))


def _pick_address(number: int) -> bytes:
    """One in each of the networks in turn, far from the last, then the next one in each."""
    place = number * 617 % PLACES  # has no factor in common with the number of places
    return bytes((FIRST_BYTE, place >> 8, place & 255, number // PLACES))


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
