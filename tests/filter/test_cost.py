"""cost.py: the dearest rules that pass take less than a second and 64 MiB, and dearer ones are not begun."""

import subprocess
import sys
from typing import Final

import pytest
from hypothesis import given

from conntrackd.errors import ManyErrors
from conntrackd.filter import cost, grammar
from conntrackd.filter.ast import And, Expression, Not, Or, list_leaves, push_not_inward
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rule, parse_rules
from tests.filter import dearest
from tests.filter.strategies import expressions, kernel_leaves, other_leaves

THOUSANDTHS: Final = 1000
KIBIBYTES: Final = 64 << 10
# CPU time, which other processes stretch all the same: the best of so many.
ATTEMPTS: Final = 4


def measure(kind: str) -> tuple[int, int]:
    command = [sys.executable, "-m", "tests.filter.dearest", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    thousandths, kibibytes = map(int, done.stdout.split())
    return thousandths, kibibytes


@pytest.mark.parametrize("kind", dearest.KINDS)
def test_the_dearest_rules_that_pass_take_less_than_a_second_and_64_mib(kind: str) -> None:
    for _ in range(ATTEMPTS):
        thousandths, kibibytes = measure(kind)
        if thousandths < THOUSANDTHS:
            break

    assert (thousandths < THOUSANDTHS, kibibytes < KIBIBYTES) == (True, True), (thousandths, kibibytes)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["log " + " or ".join(["not network public"] * 180)] * 300, "the rules have 1,"),
        (["log address " + ",".join(["10.0.0.1"] * 300)] * 100, "the rules have 271,100 characters"),
        (["log " + "!" * 4000 + "any"] * 20, "the rules have 80,040 words"),
        (["log " + " or ".join(["not network public"] * 180)] * 10, "the rules need 28,800 comparisons"),
        (["log " + " and ".join(["zone 1"] * 300)] * 20, "the rules need "),
    ],
    ids=["the first of them", "characters", "words", "comparisons", "pairs of lists"],
)
def test_what_would_take_more_is_refused_with_what_to_do(rules: list[str], message: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rules([RuleText(rule) for rule in rules])

    assert str(caught.value).startswith(message)
    assert "hint: use fewer rules, or lists instead of conditions" in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "limit"), [(["log any " * 600] * 80, "MAX_CHARACTERS"), (["(" * 4000] * 20, "MAX_WORDS")]
)
def test_too_much_text_is_refused_before_any_of_it_is_parsed(
    rules: list[str], limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "parse_rule", None)

    with pytest.raises(ManyErrors, match=f"at most {getattr(cost, limit):,} are allowed"):
        parse_rules([RuleText(rule) for rule in rules])


@pytest.mark.parametrize(
    ("text", "comparisons"),
    [
        ("log any", 1),
        ("log port 1", 2),
        ("log source port 1,2,3", 3),
        ("log source port " + ",".join(map(str, range(0, 200, 2))), 8),
        ("log network local", 8),
        ("log source network public", 8),
        ("log not network public", 16),
        ("log not port 1", 4),
        ("log nat any", 4),
        ("log bytes > 1", 3),
        ("log mark 1,2,3", 3),
        ("log type new and (protocol tcp or protocol udp)", 3),
    ],
)
def test_a_condition_counts_as_what_is_written_out_for_it(text: str, comparisons: int) -> None:
    assert cost.count_comparisons(parse_rule(RuleText(text)).expression) == comparisons


@given(expressions(kernel_leaves | other_leaves))
def test_the_count_is_that_of_the_normal_form_without_its_being_made(expression: Expression) -> None:
    plain = push_not_inward(expression)

    assert cost.count_comparisons(expression) == cost.count_comparisons(plain)
    assert cost.count_comparisons(expression) >= sum(1 for _ in list_leaves(plain))


@given(expressions(kernel_leaves | other_leaves))
def test_the_parts_of_a_conjunction_are_counted_as_they_will_stand_side_by_side(
    expression: Expression,
) -> None:
    plain = push_not_inward(expression)
    size = cost._measure(expression, negated=False)

    if isinstance(plain, And):
        assert size.parts == len(plain.items)
    elif isinstance(plain, Or | Not):
        assert size.parts == 1
