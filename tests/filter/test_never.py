"""What no event of the kernel's can match is named with what was meant, and nothing else is."""

import pytest
from hypothesis import given, settings

from conntrackd.filter.ast import Rule
from conntrackd.filter.evaluate import evaluate_expression
from conntrackd.filter.never import EventScope, Search, list_unknown_countries, list_warnings
from conntrackd.netlink.message import walk
from tests.engine.feed import MESSAGES
from tests.filter import strategies
from tests.filter.rows import parse

SETTINGS = EventScope(events=5, protocols=frozenset({6, 17}), has_locations=False, has_table=False)


FLOWS = [walk(message, 0) for message in MESSAGES]


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("log source address ::ffff:10.0.0.1", "did you mean 10.0.0.1?"),
        ("log port 1 or not destination address ::ffff:a00:0/104", "did you mean 10.0.0.0/8?"),
        ("log address ::ffff:0:0/96", "did you mean 0.0.0.0/0?"),
        ("log address 10.0.0.1,::ffff:10.0.0.2", "did you mean 10.0.0.2?"),
        ("drop source country UK", "did you mean GB?"),
        ("drop not country DE,XX", "two letters of ISO 3166, such as DE"),
        ("log protocol TCP and protocol UDP", "remove it"),
        ("log protocol UDP and state ESTABLISHED", "remove it"),
        ("log protocol UDP and not state ESTABLISHED", "remove it"),
        ("log protocol ICMP and destination port 80", "remove it"),
        ("log icmp id 5 and protocol TCP", "remove it"),
        ("log protocol UDP and not reply icmp id 5", "remove it"),
        ("log icmp id 5 and port 80", "remove it"),
        ("log icmp id 5 and state ESTABLISHED", "remove it"),
        ("log icmp id 5 and icmp id 6-9", "remove it"),
        ("log type NEW and bytes > 10M", "remove it"),
        ("log type NEW,UPDATE and (duration > 5s or reply packets = 0)", "remove it"),
        ("log type NEW and not type NEW", "remove it"),
        ("log family IPV4 and source address 2001:db8::/32", "remove it"),
        (
            "log source address 10.0.0.0/8 and source network PRIVATE and source address 192.168.0.0/16",
            "remove it",
        ),
        ("log destination port 80 and destination port 443", "remove it"),
        ("log bytes > 10 and bytes < 5", "remove it"),
        ("log bytes < 0", "remove it"),
        ("log state ESTABLISHED and state CLOSE", "remove it"),
    ],
)
def test_what_never_matches_is_a_warning_with_the_likely_meaning(rule: str, hint: str) -> None:
    (warning,) = list_warnings(parse(rule), EventScope(has_table=False))

    assert ("never match" in warning.message, warning.hint) == (True, hint)


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("log protocol ICMP", "add icmp to conntrack.protocols"),
        ("log protocol ICMP,ICMPV6 or protocol 47", "add icmp, icmpv6 to conntrack.protocols"),
        ("log icmp id 5", "add icmp, icmpv6 to conntrack.protocols"),
        ("log type UPDATE", "add update to conntrack.events"),
        ("log source country DE", "set geoip.database"),
        ("log port 22 and not city Paris", "set geoip.database"),
    ],
)
def test_what_the_settings_do_not_let_in_is_a_warning_that_names_the_setting(rule: str, hint: str) -> None:
    (warning,) = list_warnings(parse(rule), SETTINGS)

    assert warning.hint == hint
    assert list_warnings(parse(rule)) == []


@pytest.mark.parametrize(
    "rule",
    [
        "log any",
        "log address ::/0",
        "log address ::fffe:0:0/95",
        "log address 64:ff9b::10.0.0.1",
        "log country DE,XK",
        "log port 80 and port 443",
        "log icmp id 5 and reply icmp id 6",
        "log icmp id 5 and protocol ICMPV6",
        "log icmp id 5 or protocol TCP",
        "log protocol TCP or state ESTABLISHED",
        "log not protocol UDP and state ESTABLISHED",
        "log bytes > 5 and bytes < 10",
        "log type NEW or bytes > 10",
        "log not (type NEW and bytes > 10)",
        "log source address 10.0.0.0/8 and not source address 10.0.0.0/9",
        "log protocol 47 and port 80",
        "log source address 10.0.0.0/8,2001:db8::/32 and family IPV6",
    ],
)
def test_what_may_match_is_no_warning(rule: str) -> None:
    assert list_warnings(parse(rule), EventScope(has_table=False)) == []


def test_counters_are_known_of_the_flows_of_the_table_too() -> None:
    assert list_warnings(parse("log type NEW and bytes > 10"), EventScope(has_table=True)) == []


@settings(max_examples=500)
@given(strategies.rules)
def test_no_recorded_event_matches_a_rule_that_is_said_never_to(rules: list[Rule]) -> None:
    assert FLOWS
    for rule in rules:
        if Search(EventScope(has_table=False)).find(rule.expression) is not None:
            assert not any(evaluate_expression(rule.expression, flow) for flow in FLOWS)


def test_a_warning_shows_the_words_it_is_about() -> None:
    (warning,) = list_warnings(parse("log port 22 or source country UK"))

    assert str(warning).splitlines() == [
        "rule 1: UK is not a country code and never matches",
        "  log port 22 or source country UK",
        "                 ^^^^^^^^^^^^^^^^^",
        "hint: did you mean GB?",
    ]


def test_a_list_that_has_nothing_in_common_with_another_is_found() -> None:
    odd, even = (",".join(str(port) for port in range(first, 200, 2)) for first in (1, 2))

    assert list_warnings(parse(f"log source port {odd} and source port {even}"))
    assert not list_warnings(parse(f"log source port {odd},10 and source port {even}"))


def test_what_rules_may_cost_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conntrackd.filter.never.MAX_STEPS", 100)
    never = "log type NEW and type UPDATE"

    assert len(list_warnings(parse(*[f"log port {number}" for number in range(90)], never))) == 1
    assert not list_warnings(parse(*[f"log port {number}" for number in range(120)], never))


@pytest.mark.parametrize(
    ("rule", "known", "warnings"),
    [
        ('log source country "Gremany",DE', ["Germany"], ["no database has a country 'gremany'"]),
        ('drop not country "Gremany"', ["Germany"], ["no database has a country 'gremany'"]),
        ('log country "GERMANY",XX', ["Germany"], []),
        ('log city "Gremany"', ["Germany"], []),  # cities are not listed
        ("log country Gremany", [], []),  # no database says
    ],
)
def test_the_name_of_a_country_that_no_database_has_is_a_warning(
    rule: str, known: list[str], warnings: list[str]
) -> None:
    found = list_unknown_countries(parse("log any", rule), known)

    assert [warning.message for warning in found] == warnings
    assert all(warning.hint == "did you mean Germany?" for warning in found)
