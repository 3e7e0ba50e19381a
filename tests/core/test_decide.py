"""core/decide.c under sanitizers: what it decides, and which programs it refuses."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from conntrackd.core import _core as core
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.grammar import parse_rules
from conntrackd.filter.table import FORMAT, NUMBERS, assemble, compile_table
from conntrackd.flow import Flow
from tests.core.build import build_driver, run_driver
from tests.core.deciding import load
from tests.filter.rows import FLOW, ICMP, IPV6, ROWS, parse
from tests.filter.strategies import SETS
from tests.messages import build_message

MUTATIONS: Final = 50_000
RULES: Final = {
    "no rules": [],
    "every kind": [
        "log type NEW and not country DE,FR",
        "drop mark 0x10/0xf0,3 or zone 3 or not state ESTABLISHED",
        'drop not address 10.0.0.0/8,2001:db8::/64 and (bytes > 10M or not source city "Ulm")',
        "log nat ANY and duration < 1m and status UNREPLIED",
        "drop network LOCAL,PUBLIC and not port 22,80-90",
    ],
    "a look-up": [
        f"drop source address 10.{number}.0.0/24,2001:db8:{number}::/48 on port 80" for number in range(20)
    ],
    "sets": [
        "log address @four",
        "drop not source address @empty,@four and port 1-9",
        "log port 80 sample 1/3",
    ],
    "two fields": [f"{'log' if number % 2 else 'drop'} address 10.0.0.{number}" for number in range(30)],
}
EVENTS: Final = [FLOW, ICMP, IPV6, *(flow for _, flow, _ in ROWS if flow.src_location is flow.dst_location)]


def run_table(
    folder: Path, mode: str, program: bytes, flows: Sequence[Flow], *words: str, status: int = 0
) -> str:
    """What the driver prints of a program and these flows."""
    path = folder / "program"
    messages = b"".join(build_message(flow) for flow in flows)
    path.write_bytes(struct.pack("=II", len(program), len(flows)) + program + messages)
    return run_driver(build_driver("table_driver"), mode, path, *words, status=status)


def test_under_sanitizers_it_decides_as_the_reference_does(tmp_path: Path) -> None:
    rules = parse(*(f"drop {text}" for text, _, _ in ROWS if "country" not in text and "city" not in text))[
        :-1
    ]
    rules = [rule for rule in rules if not evaluate([rule], FLOW).rule_number] + parse(*RULES["two fields"])
    printed = run_table(tmp_path, "decide", assemble(compile_table(rules)), EVENTS)

    expected = [evaluate(rules, flow) for flow in EVENTS]
    assert printed.splitlines() == [f"{decision.rule_number} {decision.keep:d}" for decision in expected]
    assert len({decision.rule_number for decision in expected}) > 5


@pytest.mark.parametrize("name", RULES)
def test_a_program_that_was_changed_is_refused_or_harmless(name: str, tmp_path: Path) -> None:
    rules = parse_rules([RuleText(text) for text in RULES[name]], SETS)
    program = assemble(compile_table(rules, frozenset({1, 6, 17})))
    opened = int(run_table(tmp_path, "mutate", program, EVENTS, str(MUTATIONS)))

    assert 0 < opened < MUTATIONS // 2  # a bound that moves a little is a program too


@pytest.mark.parametrize("step", [1, 2, 3, 1 << 8, 1 << 20])
def test_a_long_list_is_searched_as_a_short_one(step: int, tmp_path: Path) -> None:
    numbers = [7, *(1000 + number * step for number in range(300)), (1 << 31) + 5, (1 << 32) - 1]
    ends = [number + near for number in numbers for near in (-1, 0, 1)][:-1]
    for count in (15, 16, 17, 300, len(numbers)):
        chosen = [*numbers[: count - 2], *numbers[-2:]]
        texts = [f"drop source address {ip_address(number)}" for number in chosen]
        texts += [
            f"drop source address 2001:db8::{number >> 16:x}:{number & 65535:x}:0:0" for number in chosen
        ]
        rules = parse(*texts)
        flows = [replace(FLOW, src=number.to_bytes(4, "big")) for number in ends]
        flows += [replace(IPV6, src=IPV6.src[:4] + number.to_bytes(8, "big") + bytes(4)) for number in ends]
        printed = run_table(tmp_path, "decide", assemble(compile_table(rules)), flows).splitlines()

        by_source = {bytes(rule.expression.prefixes[0].network): n for n, rule in enumerate(rules, 1)}  # type: ignore[union-attr]
        numbers_found = [by_source.get(flow.src, 0) for flow in flows]
        assert printed == [f"{number} {not number:d}" for number in numbers_found]


def test_intervals_that_are_not_there_are_not_read(tmp_path: Path) -> None:
    test = struct.pack("=QIIIIHHI", (1 << 64) - 1, 1, 1, 0, 1, 0, 0, 0)
    program = struct.pack("=8I", FORMAT, 1, 0, 0, 0, 0, 0, 0) + test + bytes(4) + b"\1"

    assert run_table(tmp_path, "decide", program, EVENTS, status=2) == ""


def test_every_part_of_a_program_is_refused() -> None:
    program = assemble(compile_table(parse(*RULES["every kind"])))
    core.Table(program)

    for part in [*(program[:end] for end in range(len(program))), program + b"\0", b""]:
        with pytest.raises(ValueError, match="not a program"):
            core.Table(part)


def change(program: bytes, place: int, form: str, value: int) -> bytes:
    """The program with another number at a place."""
    return program[:place] + struct.pack(f"={form}", value) + program[place + struct.calcsize(form) :]


HEADER: Final = 32
# One test: source port 22 or 80-90, then rule 1; 2 intervals of numbers.
SMALL: Final = assemble(compile_table(parse("drop source port 22,80-90")))
LOWS: Final = HEADER + 32
HIGHS: Final = LOWS + 16
FOUND: Final = HIGHS + 16  # and behind it the rates of two rules


@pytest.mark.parametrize(
    ("name", "place", "form", "value"),
    [
        ("another format", 0, "I", FORMAT + 1),
        ("a test more", 4, "I", 2),
        ("a test less", 4, "I", 0),
        ("more rules than there is room for", 8, "I", 0xFFFFFFFF),
        ("an interval more", 12, "I", 3),
        ("intervals whose bytes overflow 32 bits", 12, "I", 0x20000002),
        ("a start behind the last end", 20, "I", 5),
        ("more words than a test can name", 24, "I", 0x10000),
        ("a set that it is not given", 28, "I", 1),
        ("a jump to itself", HEADER + 8, "I", 0),
        ("a jump behind the last end", HEADER + 8, "I", 5),
        ("a jump far away", HEADER + 12, "I", 0xFFFFFFFF),
        ("intervals that begin later", HEADER + 16, "I", 1),
        ("more intervals than there are", HEADER + 20, "I", 3),
        ("intervals that nothing uses", HEADER + 20, "I", 1),
        ("no intervals", HEADER + 20, "I", 0),
        ("an unknown field", HEADER + 24, "H", len(NUMBERS)),
        ("a field of another size", HEADER + 24, "H", NUMBERS["src.ipv6"]),
        ("a word of what has none", HEADER + 26, "H", 1),
        ("a place without places' bits", HEADER + 24, "H", NUMBERS["src_location"]),
        ("something reserved in a test", HEADER + 28, "I", 1),
        ("an interval that ends before it begins", LOWS, "Q", 23),
        ("intervals out of order", HIGHS, "Q", 80),
        ("a rule that there is not", FOUND, "I", 2),
        ("what is neither kept nor dropped", FOUND + 16, "B", 2),
    ],
)
def test_a_program_with_one_thing_wrong_is_refused(name: str, place: int, form: str, value: int) -> None:
    core.Table(SMALL)

    with pytest.raises(ValueError, match="not a program of rules that this core can run"):
        core.Table(change(SMALL, place, form, value))


def test_what_is_no_table_decides_nothing() -> None:
    batch = load([FLOW])
    wrongs: list[Any] = [None, SMALL, core]
    for wrong in wrongs:
        with pytest.raises(TypeError, match=r"must be conntrackd\.core\._core\.Table"):
            batch.decide(wrong, None)
    make: Any = core.Table
    for words in ([], ["text"]):
        with pytest.raises(TypeError):
            make(*words)


def test_a_table_is_given_back_with_its_type() -> None:
    made = [core.Table(SMALL) for _ in range(100)]

    assert made[0].counts == [0, 0]
    with pytest.raises(AttributeError):
        made[0].counts = [1]
