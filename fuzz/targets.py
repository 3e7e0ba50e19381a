"""What must hold for whatever bytes come, one function for each reader of what others wrote.

A target returns, or an exception tells the finding. atheris drives them in `make fuzz`, hypothesis and the
kept corpus in `make test` (tests/fuzz/).
"""

import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from conntrackd.bus import limits, wire
from conntrackd.cli.jsonline import decode_json_line
from conntrackd.config import read_config, read_rules
from conntrackd.errors import ConfigError, ConntrackdError, DataError, ManyErrors, RuleError
from conntrackd.filter import grammar
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.pycode import compile_selector
from conntrackd.filter.reach import find_unreachable
from conntrackd.filter.render import render
from conntrackd.filter.text import RuleText
from conntrackd.flow import ABSENT, Flow
from conntrackd.netlink.decode import KEY, Decoder, MalformedError, split, walk
from conntrackd.netlink.recording import read_batches
from conntrackd.options import OPTIONS
from conntrackd.sinks.encode_json import JsonEncoder
from conntrackd.stats import Stats

RECEIVED: Final = 1_763_807_683_181_432_081
PREFIX: Final = struct.Struct("<H")
# In memory where there is such a place: a file is written for each input.
SCRATCH: Final = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
SUFFIXES: Final = (".yaml", ".json", ".toml")
# More than any message may have: the name of a value is cut short, and at most 100 mistakes are told.
MAX_REPORT: Final = 64 << 10


def join_datagrams(*datagrams: bytes) -> bytes:
    """An input of the decoder's target."""
    return b"".join(PREFIX.pack(len(each)) + each for each in datagrams)


def cut_datagrams(data: bytes) -> list[bytes]:
    """Datagrams with their lengths before them; the last may be shorter than it says."""
    found, position = [], 0
    while len(data) - position >= PREFIX.size:
        start = position + PREFIX.size
        position = start + PREFIX.unpack_from(data, position)[0]
        found.append(data[start:position])
    return found


def decode_plainly(datagrams: list[bytes]) -> tuple[list[Flow], int]:
    """What the reference makes of datagrams, and how many messages in them are malformed."""
    flows, malformed = [], 0
    for datagram in datagrams:
        for message in split(datagram):
            try:
                flows.append(walk(message, RECEIVED))
            except MalformedError:
                malformed += 1
    return flows, malformed


def check_decoder(data: bytes) -> None:
    """The decoder gives what the walk gives and counts the rest, before and after it has learned layouts."""
    datagrams = cut_datagrams(data)
    buffer, positions = bytearray(), []
    for each in datagrams:
        positions.append(len(buffer))
        buffer += each
    buffer += bytes(KEY.size)  # as in a slot, where something always follows
    lengths = [len(each) for each in datagrams]
    expected, malformed = decode_plainly(datagrams)
    stats = Stats()
    decoder = Decoder(stats)
    for turn in (1, 2):
        found = decoder.decode(memoryview(buffer), positions, lengths, RECEIVED)
        assert found == expected, f"turn {turn}: {found} is not {expected}"
        assert stats.events_malformed_total == malformed * turn


def check_rules(data: bytes) -> None:
    """Rules, or mistakes that can be shown; what is a rule is its canonical text too, and compiles."""
    texts = data.decode(errors="replace").splitlines()
    try:
        rules = grammar.parse_rules([RuleText(text) for text in texts])
    except ManyErrors as error:
        check_report(error, RuleError)
        return
    for rule in rules:
        canonical = render(rule)
        if len(canonical) <= grammar.MAX_LENGTH:  # it has longer words than the user may have written
            again = grammar.parse_rule(RuleText(canonical))
            assert again == rule, f"{canonical!r} is not {rule.text!r}"
            assert render(again) == canonical
    compile_selector(rules, protocols=None)
    compile_kernel(rules, protocols=None, events=7)
    for each in find_unreachable(rules):
        check_report(each.to_warning(), RuleError)


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


def check_wire(data: bytes) -> None:
    """A message within the limits, WireError or LimitError; written, what was read is read again as it is."""
    try:
        head, body = wire.measure(data) if len(data) >= wire.FIXED else (len(data) + 1, 0)
        if head + body > len(data):
            return
        header = wire.parse_header(data)
        values = wire.parse_body(data, header)
    except wire.WireError:
        return
    try:
        limits.check_arguments(values)
    except limits.LimitError as error:
        check_report(error, limits.LimitError)
    if "v" not in header.signature:  # a variant's type is not kept
        again = wire.encode_call(header, values)
        parsed = wire.parse_header(again)
        assert parsed == header, f"{parsed} is not {header}"
        assert repr(wire.parse_body(again, parsed)) == repr(values)  # by text: NaN is not itself


def check_recording(data: bytes) -> None:
    """A replay: a recording or DataError; the line of each event is read again as that event."""
    path = SCRATCH / f"conntrackd-fuzz-{os.getpid()}.nl"
    path.write_bytes(data)
    decoder, encoder = Decoder(Stats()), JsonEncoder()
    try:
        for batch in read_batches(path, RECEIVED):
            flows = decoder.decode(batch.buffer, batch.positions, batch.lengths, batch.received_ns)
            lines = encoder.encode([*flows]).splitlines()
            assert len(lines) == len(flows)
            for flow, line in zip(flows, lines, strict=True):
                again = decode_json_line(line)
                assert again is not None
                assert find_key(again) == find_key(flow), f"{again} is not {flow}"
    except DataError as error:
        check_report(error, DataError)
    finally:
        path.unlink()


def find_key(flow: Flow) -> tuple[int | bytes, ...]:
    """What stands in the line; of ports both or none, as the kernel sends them."""
    ports = (flow.sport, flow.dport) if ABSENT not in (flow.sport, flow.dport) else (ABSENT, ABSENT)
    return (flow.type, flow.protocol, flow.id, flow.src, flow.dst, *ports, flow.mark, flow.zone)


def check_events(data: bytes) -> None:
    """Lines of `filter test`: an event that rules can judge, or DataError."""
    for line in data.splitlines():
        try:
            flow = decode_json_line(line)
        except DataError as error:
            check_report(error, DataError)
            continue
        if flow is not None:
            EVERYTHING.judge(flow)


def check_report(error: ConntrackdError, kind: type[ConntrackdError]) -> None:
    """A report of one kind is text that a terminal does not obey, of a size that people read."""
    errors = error.errors if isinstance(error, ManyErrors) else (error,)
    assert all(isinstance(each, kind) and each.message for each in errors)
    text = str(error)
    assert text.replace("\n", "").isprintable(), ascii(text)
    assert len(text) < MAX_REPORT


# One rule for each thing that an event can carry.
EVERYTHING: Final = compile_selector(
    grammar.parse_rules(
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
)

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "decoder": check_decoder,
    "rules": check_rules,
    "config": check_config,
    "wire": check_wire,
    "recording": check_recording,
    "events": check_events,
}
