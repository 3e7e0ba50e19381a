"""The reference means what the language says: Kleene's three values, the first rule that matches."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings

from conntrackd.filter.ast import AddressIn, NetworkIn, Rule, expand_network, negate, push_not_inward
from conntrackd.filter.evaluate import (
    Decision,
    Truth,
    all_of,
    any_of,
    evaluate,
    evaluate_expression,
)
from conntrackd.filter.fields import NETWORKS, SRC, Prefix, name_network
from conntrackd.flow import ABSENT, Flow, Location, Protocol
from tests.filter import strategies
from tests.filter.rows import FLOW, ICMP, ROWS, parse


@pytest.mark.parametrize(("text", "flow", "matches"), ROWS)
def test_a_rule_matches_only_what_an_event_carries(text: str, flow: Flow, matches: bool) -> None:
    assert evaluate(parse(f"drop {text}"), flow) == ((False, 1) if matches else (True, 0))


def test_the_first_rule_that_matches_decides() -> None:
    rules = parse("log port 22", "drop port 80", "log port 80", "drop any", "log any")

    decided = [evaluate(rules, flow) for flow in (FLOW, replace(FLOW, dport=22), replace(FLOW, dport=443))]

    assert decided == [(False, 2), (True, 1), (False, 4)]


def test_an_event_that_no_rule_matches_is_logged() -> None:
    assert evaluate(parse("drop port 22"), FLOW) == Decision(True, 0)
    assert evaluate([], FLOW) == Decision(True, 0)


def test_other_protocols_and_types_are_left_out_before_any_rule() -> None:
    rules = parse("log any")
    tcp = frozenset({int(Protocol.TCP)})

    assert evaluate(rules, FLOW, tcp) == (True, 1)
    assert evaluate(rules, ICMP, tcp) == (False, 0)
    assert evaluate(rules, FLOW, tcp, events=6) == (False, 0)
    assert evaluate(rules, FLOW, frozenset()) == (False, 0)


@pytest.mark.parametrize(
    ("truths", "both", "either"),
    [
        ([True, True], True, True),
        ([True, None], None, True),
        ([True, False], False, True),
        ([None, None], None, None),
        ([None, False], False, None),
        ([False, False], False, False),
    ],
)
def test_unknown_is_the_third_value(truths: list[Truth], both: Truth, either: Truth) -> None:
    for order in (truths, truths[::-1]):
        assert (all_of(order), any_of(order)) == (both, either)


def test_unknown_stays_unknown_under_a_not() -> None:
    expression = parse("drop port 80")[0].expression

    assert evaluate_expression(expression, ICMP) is None
    assert evaluate_expression(negate(expression), ICMP) is None


ADDRESSES = [address for version in strategies.ADDRESSES.values() for address in version]


@pytest.mark.parametrize("prefix", strategies.PREFIXES, ids=str)
def test_an_address_is_in_a_prefix_as_ipaddress_says(prefix: Prefix) -> None:
    network = ip_network((prefix.network, prefix.length))
    leaf = AddressIn((SRC,), (prefix,))

    found = [address for address in ADDRESSES if evaluate_expression(leaf, replace(FLOW, src=address))]

    assert found == [address for address in ADDRESSES if ip_address(address) in network]


def test_each_address_is_in_one_network_by_name() -> None:
    names = {str(ip_address(address)): name_network(address) for address in ADDRESSES}

    assert {name: [text for text, found in names.items() if found == name] for name in NETWORKS} == {
        "LOCAL": ["127.0.0.1", "169.254.3.4", "::1", "fe80::1"],
        "PRIVATE": [
            *("10.0.0.1", "10.0.0.2", "10.1.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1"),
        ],
        "MULTICAST": ["224.0.0.1", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        "PUBLIC": [
            *("0.0.0.0", "172.32.0.0", "192.0.2.7", "223.255.255.255", "255.255.255.255"),
            *("::", "::a00:1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2a01:4f8:160:5372::2"),
        ],
    }


@given(strategies.rules, strategies.flows())
@settings(max_examples=200)
def test_nots_pushed_inward_are_true_of_the_same_events(rules: list[Rule], flow: Flow) -> None:
    plain = [replace(rule, expression=push_not_inward(rule.expression)) for rule in rules]

    assert evaluate(plain, flow) == evaluate(rules, flow)


@given(strategies.lists_of(sorted(NETWORKS)), strategies.flows())
def test_a_network_is_its_prefixes(names: tuple[str, ...], flow: Flow) -> None:
    leaf = NetworkIn((SRC,), names)

    assert evaluate_expression(leaf, flow) == evaluate_expression(expand_network(leaf), flow)


def test_a_location_without_a_text_is_unknown() -> None:
    rules = parse('drop not source city "Nuremberg"', "drop not source country DE")

    assert evaluate(rules, replace(FLOW, src_location=Location(country="France", country_code="FR"))) == (
        False,
        2,
    )
    assert evaluate(rules, replace(FLOW, src_location=Location(city="Paris"))) == (False, 1)
    assert evaluate(rules, replace(FLOW, src_location=Location())) == (True, 0)


HERE, THERE = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


@pytest.mark.parametrize(
    ("address", "port", "matches"),
    [
        (HERE, 80, False),
        (HERE, 81, True),
        (THERE, 80, True),
        (THERE, 81, True),
        (HERE, ABSENT, False),  # of an ICMP echo from there nobody can say that its port is another one
        (THERE, ABSENT, True),
    ],
)
def test_not_an_address_on_a_port_is_not_both(address: bytes, port: int, matches: bool) -> None:
    protocol = Protocol.ICMP if port == ABSENT else Protocol.UDP
    flow = replace(FLOW, protocol=protocol, src=address, sport=port)

    for text in (
        "not source address 10.0.0.1 on port 80",
        "not (source address 10.0.0.1 and source port 80)",
        "not source address 10.0.0.1 or not source port 80",
    ):
        assert evaluate(parse(f"log {text}", "drop any"), flow) == (matches, 1 if matches else 2)
