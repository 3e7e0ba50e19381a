"""What must hold for whatever bytes come, one function for each reader of what others wrote.

A target returns, or an exception is the finding. atheris drives them in `make fuzz`, hypothesis and the
kept corpus in `make test` (tests/fuzz/).
"""

import os
import socket
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from conntrackd.config.options import OPTIONS
from conntrackd.config.read import read_config
from conntrackd.config.rules import read_rules
from conntrackd.core import _core as core
from conntrackd.engine import Engine, EventBatch, Received
from conntrackd.engine.native import NativeEngine, open_table
from conntrackd.engine.plain import PlainEngine
from conntrackd.errors import ConfigError, ConntrackdError, DataError, ManyErrors, RuleError
from conntrackd.filter import grammar
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.render import render
from conntrackd.filter.sets import make_empty_set, read_lines
from conntrackd.filter.shadowing import list_shadowed
from conntrackd.filter.table import compile_table
from conntrackd.flow import ABSENT, Flow, Location
from conntrackd.netlink.recording import read_batches
from conntrackd.render import journal, json, loki
from conntrackd.render.anonymize import SOURCE, Anonymizer
from conntrackd.render.parse import parse_line, parse_record
from conntrackd.render.rendered import Rendered
from conntrackd.render.syslog import make_template

ENGINES: Final[tuple[Engine, ...]] = (NativeEngine(True), PlainEngine(True))
NATIVE, PLAIN = ENGINES
TEMPLATES: Final = (
    json.TEMPLATE,
    journal.TEMPLATE,
    loki.TEMPLATE,
    *(make_template(form, "daemon", "gw1", 42) for form in ("rfc5424", "rfc3164", "cee")),
    json.TEMPLATE.anonymize(Anonymizer(sides=SOURCE)),
)
# More Locations than there are would be memory, and no finding.
MAX_WORDS: Final = 64
NAMES: Final = tuple(field.name for field in fields(Flow) if not field.name.endswith("_location"))
HEADER_WORDS: Final = struct.Struct("=8I")
RECEIVED: Final = 1_763_807_683_181_432_081
PREFIX: Final = struct.Struct("<H")
# In memory where there is such a place: a file is written for each input.
SCRATCH: Final = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
SUFFIXES: Final = (".yaml", ".json", ".toml")
# More than any message may have: the name of a value is cut short, and at most 100 mistakes are reported.
MAX_REPORT: Final = 64 << 10


def join_datagrams(*datagrams: bytes) -> bytes:
    """An input of the decoder's target."""
    return b"".join(PREFIX.pack(len(datagram)) + datagram for datagram in datagrams)


def cut_datagrams(data: bytes) -> list[bytes]:
    """Datagrams with their lengths before them; the last may be shorter than it says."""
    found, position = [], 0
    while len(data) - position >= PREFIX.size:
        start = position + PREFIX.size
        position = start + PREFIX.unpack_from(data, position)[0]
        found.append(data[start:position])
    return found


def describe(batch: EventBatch) -> list[dict[str, object]]:
    """All events in the words of Flow; a time that is the batch's own, of receipt, as 0."""
    found = []
    for index in range(len(batch)):
        known = batch.describe(index)
        # Where Flow has 0 for what is not there the core has None.
        event = {name: known[name] or 0 for name in NAMES}
        event["time"] = 0 if known["time"] == batch.received_ns else known["time"]
        found.append(event)
    return found


def check_decoder(data: bytes) -> None:
    """Both engines read the same events of each datagram, and count the same as malformed."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        for datagram in cut_datagrams(data):
            found = []
            for engine in ENGINES:
                batch = engine.open_batch()
                other.send(datagram)
                received = Received(*batch.receive(one.fileno(), 1000, 0))
                found.append((received[:3], describe(batch)))
            assert found[0] == found[1], f"{found[0]} is not {found[1]}"


class Places:
    """In the place of databases: the address says where it is."""

    generation = 0

    def look_up(self, address: bytes) -> Location | None:
        """None, an empty one, one with all that there is, or one with what has to be escaped."""
        locations = (
            None,
            Location(),
            Location("Köln", "DE", 50.9, -6.9, 3320, "DTAG"),
            Location('"]\n\x1b\u202e\\', "", 1.5, None, 0, "=" * 300),
        )
        return locations[address[-1] % len(locations)]


def render_all(engine: Engine, data: bytes) -> tuple[tuple[int, int, int], list[Rendered]]:
    """Messages, as far as they are some, in the form of each sink."""
    batch = engine.open_batch()
    loaded = batch.load(data, 0, RECEIVED)
    locations = engine.open_locations(Places(), 100)
    locations.locate(batch, None)
    kept = batch.of_types(None, -1)
    if not kept:
        return loaded, []
    return loaded, [
        engine.render(batch, engine.compile_template(template, 7), kept, locations) for template in TEMPLATES
    ]


def check_render(data: bytes) -> None:
    """Both engines write the same of any events, byte by byte, for each sink."""
    found, expected = render_all(NATIVE, data), render_all(PLAIN, data)
    assert found == expected, f"{found} is not {expected}"
    for rendered in found[1]:
        rendered.text.decode()


def check_table(data: bytes) -> None:
    """A program that is not one is refused; one that is decides about each event."""
    try:
        table = core.Table(data)
    except ValueError:
        return
    rules, words = HEADER_WORDS.unpack_from(data)[2], HEADER_WORDS.unpack_from(data)[6]
    if words > MAX_WORDS:
        return
    for number in (1, 2):
        table.set_location(number, bytes([170 * number & 255]) * 8 * words)
    batch = core.Batch(len(FEW), 2048, True)
    batch.load(b"".join(FEW), 0, RECEIVED)
    kept = batch.decide(table, None)
    assert len(kept) <= 2 * len(batch)
    assert len(table.counts) == rules + 1
    assert sum(table.counts) <= len(batch)


SETS: Final = {
    "bad": read_lines("bad", Path("bad"), BytesIO(b"10.0.0.0/8\n2001:db8::1\n")),
    "empty": make_empty_set("empty", Path("empty")),
}


def check_rules(data: bytes) -> None:
    """Rules, or mistakes that can be shown; what is a rule is its canonical text too, and compiles."""
    texts = data.decode(errors="replace").splitlines()
    try:
        rules = grammar.parse_rules([RuleText(text) for text in texts], SETS)
    except ManyErrors as error:
        check_report(error, RuleError)
        return
    for rule in rules:
        canonical = render(rule)
        if len(canonical) <= grammar.MAX_LENGTH:  # it has longer words than the user may have written
            again = grammar.parse_rule(RuleText(canonical), 1, SETS)
            assert again == rule, f"{canonical!r} is not {rule.text!r}"
            assert render(again) == canonical
    open_table(compile_table(rules))  # which refuses a program that is not right
    compile_kernel(rules, protocols=None, events=7)
    for shadowed in list_shadowed(rules):
        check_report(shadowed.to_warning(), RuleError)


def check_config(data: bytes) -> None:
    """A configuration with rules, or our mistakes. The first byte chooses the language."""
    if not data:
        return
    path = SCRATCH / f"conntrackd-fuzz-{os.getpid()}{SUFFIXES[data[0] % len(SUFFIXES)]}"
    path.write_bytes(data[1:])
    try:
        config = read_config({}, {}, path)
        for option in OPTIONS:
            assert config.origin(option)
        grammar.parse_rules(read_rules(config))
    except (ConfigError, ManyErrors) as error:
        check_report(error, ConfigError)
    finally:
        path.unlink()


def check_recording(data: bytes) -> None:
    """A replay: a recording or DataError; the line of each event is read again as that event."""
    path = SCRATCH / f"conntrackd-fuzz-{os.getpid()}.nl"
    path.write_bytes(data)
    batch, template = NATIVE.open_batch(), NATIVE.compile_template(json.TEMPLATE)
    try:
        for _ in read_batches(path, RECEIVED, batch):
            kept = batch.of_types(None, -1)
            lines = NATIVE.render(batch, template, kept, None).text.splitlines() if kept else []
            assert len(lines) == len(batch)
            for index, line in enumerate(lines):
                again, known = parse_record(parse_line(line)), batch.describe(index)
                assert again is not None
                assert make_key(again) == read_written(known), f"{again} is not {known}"
    except DataError as error:
        check_report(error, DataError)
    finally:
        path.unlink()


def make_key(flow: Flow) -> tuple[int | bytes, ...]:
    """What stands in the line."""
    return (
        flow.type,
        flow.protocol,
        flow.id,
        flow.src,
        flow.dst,
        flow.sport,
        flow.dport,
        flow.mark,
        flow.zone,
    )


def read_written(known: Mapping[str, Any]) -> tuple[int | bytes, ...]:
    """The same of an event of the core's."""
    names = ("type", "protocol", "id", "src", "dst", "sport", "dport")
    return (
        *(ABSENT if known[name] is None else known[name] for name in names),
        known["mark"] or 0,
        known["zone"] or 0,
    )


def check_events(data: bytes) -> None:
    """Lines of `filter test`: an event that rules can be evaluated for, or DataError."""
    for line in data.splitlines():
        try:
            flow = parse_record(parse_line(line))
        except DataError as error:
            check_report(error, DataError)
            continue
        if flow is not None:
            evaluate(EVERYTHING, flow)


def check_report(error: ConntrackdError, kind: type[ConntrackdError]) -> None:
    """A report of one kind is text that a terminal does not obey, of a size that people read."""
    errors = error.errors if isinstance(error, ManyErrors) else (error,)
    assert all(isinstance(error, kind) and error.message for error in errors)
    text = str(error)
    assert text.replace("\n", "").isprintable(), ascii(text)
    assert len(text) < MAX_REPORT


# One rule for each thing that an event can carry.
EVERYTHING: Final = grammar.parse_rules(
    [
        RuleText(f"drop {text}")
        for text in (
            "duration > 1s and reply bytes < 5 and packets = 3",
            "not city x and country DE",
            "reply source address ::/0 and nat DNAT and mark 1/3 and zone 4",
            "port 1-5 and state CLOSE and status DYING and network PUBLIC",
        )
    ]
)


def read_few() -> list[bytes]:
    """A message of each of the decoder's recordings."""
    folder = Path(__file__).parent.parent / "tests" / "netlink" / "corpus"
    batch, messages = NATIVE.open_batch(), []
    for path in sorted(folder.glob("*.nl")):
        next(read_batches(path, RECEIVED, batch))
        # The time stands before the first message.
        content = path.read_bytes()[24:]
        messages.append(content[: struct.unpack_from("=I", content)[0]])
    return messages


# What programs of rules decide about.
FEW: Final = read_few()

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "decoder": check_decoder,
    "render": check_render,
    "table": check_table,
    "rules": check_rules,
    "config": check_config,
    "recording": check_recording,
    "events": check_events,
}
