"""Rules that can never match are found, and none that can is claimed to be one."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conntrackd.filter import shadowing
from conntrackd.filter.ast import Rule
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.shadowing import list_shadowed
from conntrackd.flow import Flow
from tests.filter import strategies
from tests.filter.rows import parse

batches = st.lists(strategies.flows(), min_size=10, max_size=40)


@pytest.mark.parametrize(
    ("before", "rule"),
    [
        ("drop any", "log port 22"),
        ("log port 22", "drop port 22"),
        ("log port 22,80-90", "drop port 80,85"),
        ("log port 22", "drop source port 22"),
        ("drop source port 1-10; log source port 11-20", "log source port 5-15"),
        ("drop source port 22; drop destination port 22", "log port 22"),
        ("drop source address 10.0.0.0/8", "log source address 10.1.0.0/16 and port 80"),
        ("drop address ::/0", "log destination address 2001:db8::1"),
        ("drop source address 10.0.0.0/9,10.128.0.0/9", "log source address 10.0.0.0/8"),
        ("drop source network PRIVATE", "log source address 192.168.0.0/16"),
        ("drop not source address 10.0.0.0/8", "log not source address 10.0.0.0/8,11.0.0.0/8"),
        ("drop type NEW,UPDATE", "log type NEW"),
        ("drop protocol TCP or protocol UDP", "log protocol UDP and port 53"),
        ("drop protocol TCP; drop type NEW", "log type NEW or protocol TCP"),
        ("drop port 80", "log (port 80 or type NEW) and port 80"),
        ("drop bytes > 10", "log bytes > 10K"),
        ("drop bytes >= 11", "log bytes > 10"),
        ("drop bytes != 5", "log bytes < 5"),
        ("drop country DE,FR", "log destination country DE"),
        ("drop mark 0x10/0xf0", "log mark 0x11"),
        ("drop nat ANY", "log nat SNAT"),
        ("drop status ASSURED,SEEN_REPLY", "log status SEEN_REPLY"),
        ("drop not (port 80 and type NEW)", "log not port 80"),
    ],
)
def test_a_rule_that_earlier_ones_leave_nothing_for_is_found(before: str, rule: str) -> None:
    rules = parse(*before.split(";"), rule)

    assert [rule.number for rule in list_shadowed(rules)] == [len(rules)]


@pytest.mark.parametrize(
    ("before", "rule"),
    [
        ("drop port 22", "log port 22,23"),
        ("drop source port 22", "log port 22"),
        ("drop port 80 and type NEW", "log port 80"),
        ("drop not port 80", "log not port 81"),
        ("drop not source port 80", "log not port 80 and type NEW or source port 80"),
        ("drop port 0-65535", "log any"),
        ("drop bytes >= 0", "log any"),
        ("drop source address 0.0.0.0/0", "log source address ::1"),
        ("drop bytes > 10", "log bytes >= 10"),
        ("drop bytes > 10", "log reply bytes > 10"),
        ("drop mark 0x11", "log mark 0x10/0xf0"),
        ("drop source country DE", "log country DE"),
    ],
)
def test_a_rule_that_something_is_left_for_is_not_claimed(before: str, rule: str) -> None:
    assert list_shadowed(parse(before, rule)) == []


@settings(max_examples=120)
@given(strategies.rules, batches)
@example(parse("drop port 80", "log not port 80"), [])
def test_no_event_is_decided_by_a_rule_that_is_said_never_to_match(
    rules: list[Rule], batch: list[Flow]
) -> None:
    silent = {rule.number for rule in list_shadowed(rules)}

    assert silent.isdisjoint({evaluate(rules, flow)[1] for flow in batch})


def test_the_warning_says_which_rules_take_everything() -> None:
    [one] = list_shadowed(parse("drop port 80", "log port 80 and type NEW"))
    [many] = list_shadowed(parse("drop source port 1", "drop source port 2", "log  source port 1-2"))

    assert str(one.to_warning()).splitlines() == [
        "rule 2: this rule can never match: rule 1 before it matches everything it could",
        "  log port 80 and type NEW",
        "hint: remove it, or move it up",
    ]
    assert many.by == (1, 2)
    assert "2 rules before it match everything" in many.to_warning().message


def test_what_is_not_compared_any_more_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "MAX_COMPARISONS", 3)

    found = list_shadowed(
        parse(*["drop type NEW and port 80", "drop type NEW"] * 2, "log type NEW and zone 3")
    )

    assert {rule.number for rule in found} <= {3, 4, 5}


def test_thousand_rules_of_addresses_are_compared_without_a_pair_for_each() -> None:
    rules = parse(
        *[f"drop destination address 10.{number // 256}.{number % 256}.0/24" for number in range(1000)]
    )

    assert list_shadowed([*rules[:999], *parse("log destination address 10.0.0.0/15")])[0].by == tuple(
        range(1, 513)
    )
