"""What single parts of the event path cost, each alone, on messages that the kernel has sent."""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

from mmdb_writer import MMDBWriter
from netaddr import IPSet

from bench.capture import Capture
from bench.rows import KEEP_ALL
from conntrackd.active_filter import compile_filter
from conntrackd.config.read import read_config
from conntrackd.core._core import Batch
from conntrackd.delivery.batch import compress
from conntrackd.delivery.datagrams import Framing, frame
from conntrackd.engine import SLOTS, Engine
from conntrackd.engine.native import NativeEngine
from conntrackd.engine.plain import PlainEngine
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rules
from conntrackd.geoip.databases import GeoIP
from conntrackd.render import journal, json, loki, syslog
from conntrackd.render.template import Template
from conntrackd.sinks.loki_push import gather_streams, write_streams
from conntrackd.stats import Stats

CORE: Final = NativeEngine(True)
TEMPLATES: Final = {
    "JSON lines": json.TEMPLATE,
    "journal": journal.TEMPLATE,
    "syslog": syslog.make_template("rfc5424", "daemon", "gw1", 42),
    "Loki": loki.TEMPLATE,
}
# Where an event has its addresses: behind nlmsghdr, nfgenmsg, two nests' headers and the header of each.
SRC_AT, DST_AT, ADDRESS_BYTES = 32, 40, 4
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


def measure_parts(events: Capture, gateway: Capture, scratch: Path) -> list[Part]:
    """All parts on both captures; the `gateway` has NAT, counters and times. Files go into `scratch`."""
    database = write_places(scratch / "places.mmdb")
    batches, translated = load_all(events), load_all(gateway)
    return [
        Part("walk: the core", time_walk(CORE, events)),
        Part("walk: the core, a gateway's events", time_walk(CORE, gateway)),
        Part("walk: the reference", time_walk(PlainEngine(True), events)),
        Part("decide: one address rule", time_decide(batches, list_addresses(1))),
        Part("decide: 1,000 address rules", time_decide(batches, list_addresses(1000))),
        Part("decide: 1,000 rules of five conditions", time_decide(batches, list_mixed(1000))),
        Part("decide: the filter of a sink", time_decide(batches, KEEP_ALL.splitlines(), is_part=True)),
        # Memory for one address has none of an event's two, nor of the event's before.
        Part("locate: an address seen for the first time", time_locate(events, database, 1), "address"),
        Part("locate: a remembered address", time_locate(events, database, 1 << 18), "address"),
        *(Part(f"render: {name}", time_render(batches, form)) for name, form in TEMPLATES.items()),
        Part("render: JSON lines with Community IDs", time_render(batches, json.TEMPLATE, community_seed=0)),
        *(
            Part(f"render: {name}, a gateway's events", time_render(translated, form))
            for name, form in TEMPLATES.items()
        ),
        Part("frame: syslog, octets before each message", time_frame(batches)),
        Part("body: Loki, compressed", time_body(batches)),
        Part("filter: load 1,000 address rules", time_load(list_addresses(1000)), "list"),
        Part("filter: load 1,000 rules of five conditions", time_load(list_mixed(1000)), "list"),
    ]


def cut(events: Capture) -> Iterator[bytes]:
    """The messages of a batch at a time, one behind the other."""
    for first in range(0, len(events.positions), SLOTS):
        end = min(first + SLOTS, len(events.positions)) - 1
        yield bytes(events.buffer[events.positions[first] : events.positions[end] + events.lengths[end]])


def load_all(events: Capture) -> list[Batch]:
    """The events in batches, to be asked again and again."""
    batches = []
    for messages in cut(events):
        batch = CORE.open_batch()
        batch.load(messages, 0, 0)
        batches.append(batch)
    return batches


def time_walk(engine: Engine, events: Capture) -> float:
    """From messages to events; each batch takes the memory of the one before it, as in the daemon."""
    batch, pieces = engine.open_batch(), list(cut(events))

    def walk() -> None:
        for messages in pieces:
            batch.load(messages, 0, 0)

    return time_part(walk, len(events.positions))


def time_decide(batches: Sequence[Batch], lines: Sequence[str], *, is_part: bool = False) -> float:
    """A table of rules over all batches; `is_part`: as a sink's, after the table of all."""
    rules = parse_rules([RuleText(line) for line in lines])
    table = CORE.compile_table(rules, protocols=frozenset((6, 17)))
    return time_part(
        lambda: [CORE.decide(batch, table, None, None, is_part=is_part) for batch in batches],
        sum(map(len, batches)),
    )


def time_render(batches: Sequence[Batch], template: Template, *, community_seed: int | None = None) -> float:
    """The text of one sink."""
    compiled = CORE.compile_template(template, community_seed)
    wanted = [(batch, batch.of_types(None, -1)) for batch in batches]
    return time_part(
        lambda: [CORE.render(batch, compiled, kept, None) for batch, kept in wanted], sum(map(len, batches))
    )


def time_frame(batches: Sequence[Batch]) -> float:
    """What the syslog sink does with its text over TCP."""
    compiled = CORE.compile_template(TEMPLATES["syslog"])
    texts = [CORE.render(batch, compiled, batch.of_types(None, -1), None) for batch in batches]
    return time_part(
        lambda: [frame(text.text, text.ends, 1, Framing.OCTETS) for text in texts], sum(map(len, batches))
    )


def time_body(batches: Sequence[Batch]) -> float:
    """What the Loki sink does with its text."""
    compiled = CORE.compile_template(TEMPLATES["Loki"])
    texts = [CORE.render(batch, compiled, batch.of_types(None, -1), None) for batch in batches]
    return time_part(
        lambda: [compress(write_streams(gather_streams([text]), {})) for text in texts],
        sum(map(len, batches)),
    )


def time_locate(events: Capture, database: Path, cache: int) -> float:
    """Both addresses of each event, which are all different until there are no more places."""
    geoip = GeoIP([database], "en", cache, Stats())
    locations, numbers = CORE.open_locations(geoip, cache), count()
    batches = []
    for messages in cut(events):
        patched, batch = bytearray(messages), CORE.open_batch()
        for at in _list_offsets(messages):
            for place in (at + SRC_AT, at + DST_AT):
                patched[place : place + ADDRESS_BYTES] = _pick_address(next(numbers))
        batch.load(bytes(patched), 0, 0)
        batches.append(batch)

    def locate() -> None:
        for batch in batches:
            locations.locate(batch, None)

    return time_part(locate, 2 * sum(map(len, batches)))


def _list_offsets(messages: bytes) -> Iterator[int]:
    offset = 0
    while offset < len(messages):
        yield offset
        offset += array("I", messages[offset : offset + 4])[0]


def _pick_address(number: int) -> bytes:
    """One in each of the networks in turn, far from the last, then the next one in each."""
    place = number * 617 % PLACES  # has no factor in common with the number of places
    return bytes((FIRST_BYTE, place >> 8, place & 255, number // PLACES))


def write_places(path: Path, first_byte: int = FIRST_BYTE) -> Path:
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
        writer.insert_network(IPSet([f"{first_byte}.{number >> 8}.{number & 255}.0/24"]), place)
    writer.to_db_file(str(path))
    return path


def time_load(lines: list[str]) -> float:
    """From text to all that a daemon needs: table, program for the kernel, warnings."""
    config = read_config({}, {}, None, NOWHERE)
    texts = [RuleText(line) for line in lines]
    return time_part(lambda: compile_filter(texts, "", config, CORE), 1)


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


def time_part(run: Callable[[], object], count: int) -> float:
    """The middle of several rounds, after one that fills caches: microseconds for each of `count`."""
    run()
    return median(_time_once(run) for _ in range(ROUNDS)) / count


def _time_once(run: Callable[[], object]) -> float:
    start = time.process_time_ns()
    run()
    return (time.process_time_ns() - start) / 1000
