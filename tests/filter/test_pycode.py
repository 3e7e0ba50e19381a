"""Compiled rules decide as the reference does; a compiler broken on purpose is found out."""

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from conntrackd.filter import merge, pycode
from conntrackd.filter.ast import Rule, conjoin
from conntrackd.filter.grammar import RuleText, parse_rules
from conntrackd.filter.pycode import Selector, compile_selector
from conntrackd.filter.pyexpr import Expressions
from conntrackd.flow import Flow, Location
from conntrackd.options import CONNTRACK_EVENTS
from tests.filter import reference, strategies

batches = st.lists(strategies.flows(), min_size=1, max_size=12)


def judge(
    rules: list[Rule], protocols: frozenset[int] | None, events: int, flow: Flow
) -> tuple[bool, int | None]:
    """What is to be expected; None for an event that no rule was asked about."""
    if (protocols is not None and flow.protocol not in protocols) or not flow.type & events:
        return False, None
    return reference.judge(rules, flow)


def check(
    rules: list[Rule], batch: list[Flow], protocols: frozenset[int] | None = None, events: int = 15
) -> None:
    selector = compile_selector(rules, protocols=protocols, events=events)

    expected = [judge(rules, protocols, events, flow) for flow in batch]
    counts = [sum(number == rule for _, number in expected) for rule in range(len(rules) + 1)]

    assert [selector.judge(flow) for flow in batch] == [(kept, number or 0) for kept, number in expected]
    assert selector(batch) == [flow for flow, (kept, _) in zip(batch, expected, strict=True) if kept]
    assert selector.counts == counts


@st.composite
def long_lists(draw: st.DrawFn) -> list[Rule]:
    """Rules of which many stand side by side and differ in one list only."""
    found: list[Rule] = []
    for _ in range(draw(st.integers(1, 3))):
        leaves = draw(st.sampled_from(strategies.set_leaves))
        rest = draw(st.lists(strategies.kernel_leaves, max_size=1))
        for leaf in draw(st.lists(leaves, min_size=1, max_size=8)):
            found.append(Rule(draw(st.booleans()), conjoin([*rest, leaf])))
    return found


@settings(max_examples=200, deadline=None)
@given(strategies.rules, batches)
def test_the_compiled_rules_decide_as_the_reference_does(rules: list[Rule], batch: list[Flow]) -> None:
    check(rules, batch)


@settings(max_examples=200, deadline=None)
@given(long_lists(), batches)
def test_rules_that_share_a_look_up_decide_as_if_they_stood_alone(
    rules: list[Rule], batch: list[Flow]
) -> None:
    check(rules, batch)


@settings(max_examples=100, deadline=None)
@given(
    strategies.rules,
    batches,
    st.none() | st.frozensets(st.sampled_from(strategies.PROTOCOLS)),
    st.integers(0, 15),
)
def test_other_protocols_and_types_are_left_out_before_any_rule(
    rules: list[Rule], batch: list[Flow], protocols: frozenset[int] | None, events: int
) -> None:
    check(rules, batch, protocols, events)


def compile_texts(*texts: str) -> Selector:
    return compile_selector(parse_rules([RuleText(text) for text in texts]))


FLOW = Flow(
    1, 1, 2, 6, 1, b"\x0a\0\0\1", b"\x0a\0\0\2", 1024, 80, b"\x0a\0\0\2", b"\x0a\0\0\1", 80, 1024, state=3
)
ICMP = replace(FLOW, protocol=1, sport=-1, dport=-1, reply_sport=-1, reply_dport=-1, state=-1)


@pytest.mark.parametrize(
    ("text", "flow", "matches"),
    [
        ("port 80", ICMP, False),
        ("not port 80", ICMP, False),
        ("not (port 80 and type UPDATE)", ICMP, True),
        ("not (port 80 or type UPDATE)", ICMP, False),
        ("not source port 80 or protocol ICMP", ICMP, True),
        ("state ESTABLISHED", ICMP, False),
        ("not state ESTABLISHED", ICMP, False),
        ("bytes < 10", FLOW, False),
        ("not bytes < 10", FLOW, False),
        ("not destination country DE", FLOW, False),
        ("not destination country DE", replace(FLOW, dst_location=Location()), False),
        ("not destination country DE", replace(FLOW, dst_location=Location(country="FR")), True),
        ("not country DE", replace(FLOW, dst_location=Location(country="FR")), False),
        ("country DE", replace(FLOW, dst_location=Location(country="DE")), True),
        ('source city "NUREMBERG"', replace(FLOW, src_location=Location(city="Nuremberg")), True),
        ("not source address ::/0", FLOW, True),
        ("not mark 1", FLOW, True),
        ("mark 0", FLOW, True),
        ("zone 0", FLOW, True),
        ("status UNREPLIED", FLOW, True),
        ("duration >= 0", FLOW, False),
        ("duration >= 0", replace(FLOW, start=5), False),
        ("duration = 1s", replace(FLOW, start=5, stop=10**9 + 5), True),
        ("bytes = 10K", replace(FLOW, orig_bytes=10240), True),
        ("reply bytes = 10K", replace(FLOW, orig_bytes=10240), False),
        ("nat ANY", FLOW, False),
        ("nat SNAT", replace(FLOW, reply_dport=1025), True),
        ("nat DNAT", replace(FLOW, reply_dport=1025), False),
        ("nat BOTH", replace(FLOW, reply_dport=1025), False),
        ("nat BOTH", replace(FLOW, reply_dport=1025, reply_src=b"\x0a\0\0\3"), True),
        ("address 10.0.0.2 on port 80", FLOW, True),
        ("address 10.0.0.1 on port 80", FLOW, False),
        ("reply source port 80", FLOW, True),
        ("any", FLOW, True),
        ("not any", FLOW, False),
    ],
)
def test_a_rule_matches_only_what_an_event_carries(text: str, flow: Flow, matches: bool) -> None:
    assert compile_texts(f"drop {text}").judge(flow) == ((False, 1) if matches else (True, 0))


def test_where_every_type_is_wanted_none_is_asked_for() -> None:
    """Every event would be asked, and each answer is known: the kernel has no other types."""
    source = compile_selector([], events=int(CONNTRACK_EVENTS.default)).source

    assert ".type" not in source
    assert ".type & 3" in compile_selector([], events=3).source


def test_the_first_rule_that_matches_decides_and_is_counted() -> None:
    selector = compile_texts("log port 22", "drop port 80", "log port 80", "drop any", "log any")

    assert selector([FLOW, replace(FLOW, dport=22), replace(FLOW, dport=443)]) == [replace(FLOW, dport=22)]
    assert selector.counts == [0, 1, 1, 0, 1, 0]


def test_an_event_that_no_rule_matches_is_logged() -> None:
    selector = compile_texts("drop port 22")

    assert selector([FLOW, FLOW]) == [FLOW, FLOW]
    assert selector.counts == [2, 0]


def test_asking_for_a_decision_counts_nothing() -> None:
    selector = compile_texts("drop port 80")

    assert selector.decide(FLOW) == 1
    assert selector.counts == [0, 0]


def test_what_a_user_typed_never_reaches_the_source() -> None:
    selector = compile_texts('drop source city "__import__", "x\\" or exec(\\"1"', "drop country XX")

    assert {type(node).__name__ for node in ast.walk(ast.parse(selector.source))}.isdisjoint({"JoinedStr"})
    strings = [node.value for node in ast.walk(ast.parse(selector.source)) if isinstance(node, ast.Constant)]
    assert not [value for value in strings if isinstance(value, str)]
    assert "__import__" not in selector.source
    assert "exec" not in selector.source


@pytest.mark.parametrize(
    "texts",
    [
        [f"drop destination address 10.{number // 256}.{number % 256}.0/24" for number in range(1000)],
        [f"drop source address 2001:db8::{number:x} on port 443" for number in range(1000)],
        [f"drop port {number}" for number in range(1000)],
    ],
)
def test_the_source_does_not_grow_with_rules_that_stand_side_by_side(texts: list[str]) -> None:
    assert len(compile_texts(*texts).source.splitlines()) == len(
        compile_texts(*texts[:40]).source.splitlines()
    )


def test_1000_rules_of_all_shapes_and_64_levels_compile() -> None:
    deep = "log " + "".join(f"(port {level} and not " for level in range(64)) + "any" + ")" * 64

    selector = compile_texts(
        *[f"drop port {number} and type {'NEW,UPDATE'[: 3 + number % 2 * 7]}" for number in range(999)], deep
    )

    assert selector.judge(FLOW) == (False, 81)


# -- a compiler broken on purpose


Break = Callable[[pytest.MonkeyPatch], None]


def break_write(change: Callable[[str], str], name: str) -> Break:
    """Changes what one method of Expressions writes."""
    whole: Any = getattr(Expressions, name)

    def broken(self: Expressions, *arguments: Any) -> str:
        return change(whole(self, *arguments))

    return lambda patch: patch.setattr(Expressions, name, broken)


def ignore_order(patch: pytest.MonkeyPatch) -> None:
    whole = merge.flatten
    patch.setattr(
        pycode, "flatten", lambda found: whole([each._replace(number=-each.number) for each in found])
    )


BREAKS: dict[str, Break] = {
    "a not is removed": break_write(lambda text: text.removeprefix("not "), "_write_false"),
    "what is absent counts as false": break_write(
        lambda text: text.replace("!= -1", "!= -2"), "_write_false"
    ),
    "and becomes or": break_write(lambda text: text.replace(" and ", " or "), "write"),
    "or becomes and": break_write(lambda text: text.replace(" or ", " and "), "write"),
    "a range loses its first number": break_write(
        lambda text: text.replace(" <= ", " < ", 1), "_write_ranges"
    ),
    "a family is not looked at": break_write(
        lambda text: text.replace("f.family == 2", "True"), "_write_address"
    ),
    "an end of a translation is mixed up": break_write(
        lambda text: text.replace("f.reply_src", "f.reply_dst"), "_write_nat"
    ),
    "a mask is forgotten": break_write(lambda text: text.replace(" & 240", ""), "_write_mark"),
    "an absent counter is a number": break_write(
        lambda text: text.replace("!= -1", "!= -2"), "_write_comparison"
    ),
    "a start that is not known is 0": break_write(
        lambda text: text.replace("f.start and ", ""), "_write_comparison"
    ),
    "names are compared letter by letter": break_write(
        lambda text: text.replace(".casefold()", ""), "_write_location"
    ),
    "the last rule wins": ignore_order,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_compiler_broken_on_purpose_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKS[name](monkeypatch)

    # Until the first is found. After how many changes with the code: hypothesis tries its constants too.
    @settings(
        max_examples=20_000,
        report_multiple_bugs=False,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(strategies.rules | long_lists(), batches)
    def find_out(rules: list[Rule], batch: list[Flow]) -> None:
        check(rules, batch)

    with pytest.raises((AssertionError, TypeError, AttributeError)):
        find_out()
