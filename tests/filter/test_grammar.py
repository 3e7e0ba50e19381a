"""filter/grammar.py: every production, every mistake, and every example of the manual."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from pytest_mock import MockerFixture

from conntrackd.errors import ManyErrors, RuleError
from conntrackd.filter import fields, grammar
from conntrackd.filter.ast import Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rule, parse_rules
from conntrackd.filter.render import render
from tests.filter import strategies
from tests.filter.rows import canonical, read_mistake

MANUAL = Path(__file__).parents[2] / "man" / "conntrackd-filter.7"


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("LOG any", "log any"),
        ("allow ANY", "log any"),
        ("deny any # a comment", "drop any"),
        ("drop type new,DESTROY", "drop type NEW,DESTROY"),
        ("drop protocol tcp,47,udplite", "drop protocol TCP,GRE,UDPLITE"),
        ("drop src address 10.0.0.1", "drop source address 10.0.0.1"),
        ("drop dest address 10.0.0.0/8,::1", "drop destination address 10.0.0.0/8,::1"),
        ("drop dst network local", "drop destination network LOCAL"),
        ("drop port 80", "drop port 80"),
        ("drop on port 80", "drop port 80"),
        ("drop source port 22,80-90", "drop source port 22,80-90"),
        (
            "drop destination address 10.0.0.1 on port 80",
            "drop destination address 10.0.0.1 and destination port 80",
        ),
        ("drop icmp id 17", "drop icmp id 17"),
        ("drop ICMP  ID 0x10,80-90", "drop icmp id 16,80-90"),
        ("drop reply icmp\n id 17", "drop reply icmp id 17"),
        ("drop protocol ICMP, icmp id 17", "drop protocol ICMP or icmp id 17"),
        ("drop icmp id 17, 18, port 80", "drop icmp id 17,18 or port 80"),
        ("drop country ID and protocol icmp", "drop country ID and protocol ICMP"),
        ("drop protocol icmp or icmp id 1", "drop protocol ICMP or icmp id 1"),
        ("drop not port 80", "drop not port 80"),
        ("drop ! port 80", "drop not port 80"),
        ("drop not not port 80", "drop port 80"),
        ("drop type NEW and port 80 or any", "drop type NEW and port 80 or any"),
        ("drop type NEW, port 80", "drop type NEW or port 80"),
        ("drop type NEW and (port 80 or port 81)", "drop type NEW and (port 80 or port 81)"),
        ("drop nat any", "drop nat ANY"),
        ("drop mark 16/0xF0", "drop mark 0x10/0xf0"),
        ("drop zone 3", "drop zone 3"),
        ("drop family ipv6", "drop family IPV6"),
        ("drop bytes > 10M", "drop bytes > 10M"),
        ("drop reply packets >= 100", "drop reply packets >= 100"),
        ("drop duration > 60s", "drop duration > 1m"),
        ("drop state time_wait", "drop state TIME_WAIT"),
        ("drop status assured", "drop status ASSURED"),
        ("drop destination country de,FR", "drop destination country DE,FR"),
        ("log type NEW,UPDATE,DESTROY", "log type NEW,UPDATE,DESTROY"),
        (
            "log protocol UDPLITE,SCTP,DCCP,ICMP,ICMPV6,GRE,200",
            "log protocol ICMP,DCCP,GRE,ICMPV6,SCTP,UDPLITE,200",
        ),
        ("drop address 10.0.0.1", "drop address 10.0.0.1"),
        (
            "drop address 10.0.0.1 on port 80",
            "drop source address 10.0.0.1 and source port 80"
            " or destination address 10.0.0.1 and destination port 80",
        ),
        (
            "drop src address 10.0.0.1,::1 on port 22,80-90,443",
            "drop source address 10.0.0.1,::1 and source port 22,80-90,443",
        ),
        ("drop port 22 , 80 - 90 ,443", "drop port 22,80-90,443"),
        ("drop source on port 0-65535", "drop source port 0-65535"),
        ("drop network PUBLIC", "drop network PUBLIC"),
        ("drop source network local,private,multicast", "drop source network LOCAL,MULTICAST,PRIVATE"),
        ("drop reply address 10.0.0.1", "drop reply address 10.0.0.1"),
        (
            "drop reply dst address fc00::/7 on port 1",
            "drop reply destination address fc00::/7 and reply destination port 1",
        ),
        ("drop reply on port 80", "drop reply port 80"),
        ("drop reply source port 80", "drop reply source port 80"),
        ("drop reply network PRIVATE", "drop reply network PRIVATE"),
        ("drop status UNREPLIED", "drop status UNREPLIED"),
        ("drop status unreplied,offloaded", "drop status OFFLOADED or status UNREPLIED"),
        ("drop nat SNAT", "drop nat SNAT"),
        ("drop nat DNAT,SNAT", "drop nat ANY"),
        ("drop nat both", "drop nat SNAT and nat DNAT"),
        ("drop mark 5", "drop mark 0x5"),
        ("drop mark 0x10,3/0xF", "drop mark 0x3/0xf,0x10"),
        ("drop zone 3,0x4", "drop zone 3,4"),
        ("drop family IPV4,IPV6", "drop family IPV4,IPV6"),
        ("drop bytes < 1K", "drop bytes < 1K"),
        ("drop bytes <= 1025", "drop bytes <= 1025"),
        ("drop bytes = 3g", "drop bytes = 3G"),
        ("drop bytes == 1024K", "drop bytes = 1M"),
        ("drop bytes != 7", "drop bytes != 7"),
        ("drop reply bytes > 2M", "drop reply bytes > 2M"),
        ("drop packets>=5", "drop packets >= 5"),
        ("drop duration > 1500ms", "drop duration > 1500ms"),
        ("drop duration < 120s", "drop duration < 2m"),
        ("drop duration >= 60m", "drop duration >= 1h"),
        ("drop duration = 10", "drop duration = 10s"),
        ("drop country de", "drop country DE"),
        ("drop country fr,Germany", 'drop country FR,"germany"'),
        ('drop country "Côte d\'Ivoire"', 'drop country "côte d\'ivoire"'),
        ('drop city "Nuremberg", "A\\"b"', 'drop city "a\\"b","nuremberg"'),
        ("drop source city Nuremberg", 'drop source city "nuremberg"'),
        ('drop city "# no comment" # a comment', 'drop city "# no comment"'),
        ("drop any or any and any", "drop any or any and any"),
        ("drop (any or any) and any", "drop (any or any) and any"),
        ("drop any, any", "drop any or any"),
        ("drop port 80, ! type NEW", "drop port 80 or not type NEW"),
        ("drop ((type NEW))", "drop type NEW"),
        ("drop not type NEW and not any", "drop not type NEW and not any"),
        ("drop not (type NEW and any)", "drop not (type NEW and any)"),
        ("DROP NOT ! Not Port 1", "drop not port 1"),
        ("\tdrop\tany\t", "drop any"),
    ],
)
def test_a_rule_and_its_canonical_text(text: str, rendered: str) -> None:
    assert canonical(text) == rendered
    assert canonical(rendered) == rendered


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("type", fields.TYPES),
        ("protocol", fields.PROTOCOLS),
        ("state", fields.STATES),
        ("status", [*fields.STATUSES, fields.UNREPLIED]),
        ("family", fields.FAMILIES),
        ("network", fields.NETWORKS),
    ],
)
def test_each_word_of_the_vocabulary_is_known_in_both_cases(keyword: str, words: list[str]) -> None:
    assert [canonical(f"log {keyword} {word.lower()}") for word in words] == [
        f"log {keyword} {word}" for word in words
    ]


@pytest.mark.parametrize(
    ("text", "words", "marked"),
    [
        ("log protocol TPC", "unknown protocol 'TPC', did you mean TCP?", "TPC"),
        ("log type NWE", "unknown type 'NWE', did you mean NEW?", "NWE"),
        ("log source address 10.0.0.1/8", "10.0.0.0/8", "10.0.0.1/8"),
        ("log port 70000", "'70000' is not a valid port", "70000"),
        ("log icmp id 70000", "'70000' is not a valid ICMP identifier", "70000"),
        ("log icmp id 1-x", "a number from 0 to 65535, or a range such as 1-99", "x"),
        ("log port=53", "a value is missing values stand without it: port 53, not port 53", "="),
        ("log country !DE", "values stand without it", "!"),
        ("log port 1:99", "a number from 0 to 65535, or a range such as 1-99", "1:99"),
        ("log network ::/8", "addresses and sets stand behind 'address'", "::/8"),
        ("log network @bad", "addresses and sets stand behind 'address'", "@bad"),
        ("log icmp id 9-8", "did you mean 8-9?", "9-8"),
        ("log icmp 5", "did you mean protocol icmp or icmp id?", "icmp"),
        ("log icmpid 5", "did you mean icmp id?", "icmpid"),
        ("log source icmp id 5", "'address', 'network', 'port'", "icmp id"),
        ("log port 90-80", "ends before it begins", "90-80"),
        ("log mark 0x1f/0xf0", "can never match", "0x1f/0xf0"),
        ("log state GONE", "unknown state", "GONE"),
        ("look any", "look", "look"),
    ],
)
def test_a_mistake_is_reported_with_a_caret_under_the_word(text: str, words: str, marked: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        canonical(text)
    (mistake,) = caught.value.errors
    said = f"{mistake.message} {mistake.hint}"
    rule, carets = mistake.excerpt.splitlines()

    assert words in said
    assert rule == text
    start = carets.index("^")
    assert text[start : start + carets.count("^")] == marked


ENDS = "the rule ends where"
CONDITION = "a condition (such as 'protocol', 'source address', 'port', 'any') is missing"
JOINT = "'and' or 'or' is missing"
SIDE = "'address', 'network', 'port', 'country' or 'city' is missing"


@pytest.mark.parametrize(
    ("text", "marked", "message"),
    [
        ("log network PRIVAT", "PRIVAT", "unknown network 'PRIVAT', did you mean PRIVATE?"),
        ("log status ASSURE", "ASSURE", "unknown status 'ASSURE', did you mean ASSURED?"),
        ("log state ESTABLISHD", "ESTABLISHD", "unknown state 'ESTABLISHD', did you mean ESTABLISHED?"),
        ("log nat SNATT", "SNATT", "unknown nat 'SNATT', did you mean SNAT?"),
        ("log family IPV5", "IPV5", "unknown family 'IPV5', did you mean IPV6?"),
        ("log protocol UDPLIT", "UDPLIT", "unknown protocol 'UDPLIT', did you mean UDPLITE?"),
        ("log protocol 256", "256", "'256' is not a valid protocol"),
        ("log zone 65536", "65536", "'65536' is not a valid zone"),
        ("log mark 0x100000000", "0x100000000", "'0x100000000' is not a valid mark"),
        ("log mark 1/x", "1/x", "'x' is not a valid mask of a mark"),
        ("log country DEU", "DEU", "'DEU' is not a valid country"),
        ("log country D1", "D1", "'D1' is not a valid country"),
        ('log city " "', '" "', "the name of a city is empty"),
        ("log bytes > 10X", "10X", "'10X' is not a valid size"),
        (
            "log bytes > 18446744073709551616",
            "18446744073709551616",
            "'18446744073709551616' is not a valid size",
        ),
        ("log packets > 1K", "1K", "'1K' is not a valid number of packets"),
        ("log duration > 5y", "5y", "'5y' is not a valid duration"),
        ("log address 10.0.0.256", "10.0.0.256", "'10.0.0.256' is not a valid address"),
        ("log address 10.0.0.0/33", "10.0.0.0/33", "'10.0.0.0/33' is not a valid address"),
        (
            "log address 10.0.0.0/255.0.0.0",
            "10.0.0.0/255.0.0.0",
            "'10.0.0.0/255.0.0.0' is not a valid address",
        ),
        ("log address fe80::1%eth0", "fe80::1%eth0", "'fe80::1%eth0' is not a valid address"),
        ("log address ::1/64", "::1/64", "'::1/64' has host bits set under its prefix length"),
        ("log port 80-", " ", f"{ENDS} a value is missing"),
        ("log port 80-90-100", "-", "unexpected '-': 'and' or 'or' is missing"),
        ("log port -1", "-", "unexpected '-': a value is missing"),
        ("log reply country DE", "reply country DE", "a country has no reply side"),
        ("log reply duration > 1s", "reply duration > 1s", "a duration has no reply side"),
        ("log source type NEW", "type", f"unexpected 'type': {SIDE}"),
        ("log source", " ", f"{ENDS} {SIDE}"),
        ("log bytes 10", "10", "unexpected '10': a comparison (< <= = != >= >) is missing"),
        ("log bytes >", " ", f"{ENDS} a value is missing"),
        ("log any any", "any", "unexpected 'any': 'and' or 'or' is missing"),
        ("log protocol TCP port 22", "port", "unexpected 'port': 'and' or 'or' is missing"),
        ("log source port 22 destination port 80", "destination", f"unexpected 'destination': {JOINT}"),
        ("log (mark 1 type NEW)", "type", "unexpected 'type': ')', 'and' or 'or' is missing"),
        ("log port type NEW", "type", "unexpected 'type': a value is missing"),
        ("log any or or any", "or", f"unexpected 'or': {CONDITION}"),
        ("log not", " ", f"{ENDS} {CONDITION}"),
        ("log ()", ")", f"unexpected ')': {CONDITION}"),
        ("log (any", " ", f"{ENDS} ')', 'and' or 'or' is missing"),
        ("log any)", ")", "unexpected ')': 'and' or 'or' is missing"),
        ('log city "any', '"', "a quoted text that does not end"),
        ("log type ,NEW", ",", "unexpected ',': a value is missing"),
        ("log tyep NEW", "tyep", "unexpected 'tyep', did you mean type?"),
        ("log sorce address ::1", "sorce", "unexpected 'sorce', did you mean source?"),
        ("log source adress ::1", "adress", "unexpected 'adress', did you mean address?"),
        ("log port 22 adn any", "adn", "unexpected 'adn', did you mean and?"),
        ("lgo any", "lgo", "unexpected 'lgo', did you mean log?"),
        ("drop tcp", "tcp", "unexpected 'tcp', did you mean protocol tcp?"),
        ("drop icmp", "icmp", "unexpected 'icmp', did you mean protocol icmp or icmp id?"),
        ("log new", "new", "unexpected 'new', did you mean type new?"),
        ("log established", "established", "unexpected 'established', did you mean state established?"),
        ("log assured", "assured", "unexpected 'assured', did you mean status assured?"),
        ("log ipv6", "ipv6", "unexpected 'ipv6', did you mean family ipv6?"),
        ("log net ::/8", "net", "unexpected 'net', did you mean address?"),
        ("accept any", "accept", "unexpected 'accept', did you mean log?"),
        ("drop prot TCP", "prot", "unexpected 'prot', did you mean protocol?"),
        ("log dport 22", "dport", "unexpected 'dport', did you mean destination port?"),
        ("log source ip ::1", "ip", "unexpected 'ip', did you mean address?"),
        ("log source tcp", "tcp", f"unexpected 'tcp': {SIDE}"),
        ("log src_port 22", "src_port", "unexpected 'src_port', did you mean source port?"),
        ("log saddr ::1", "saddr", "unexpected 'saddr', did you mean source address?"),
        ("log proto tcp", "proto", "unexpected 'proto', did you mean protocol?"),
        ("log source dport 22", "dport", "unexpected 'dport', did you mean port?"),
        ("port 80", "port", "unexpected 'port': an action ('log' or 'drop') is missing"),
        ("log any \x1b[2J", "\N{REPLACEMENT CHARACTER}", "a control character (U+001B)"),
        ("log any \N{RIGHT-TO-LEFT OVERRIDE}", "\N{REPLACEMENT CHARACTER}", "a control character (U+202E)"),
    ],
)
def test_each_mistake_is_named_under_its_words(text: str, marked: str, message: str) -> None:
    assert read_mistake(text) == (message, marked)


def test_all_mistakes_of_one_rule_are_reported() -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText("log type NWE and protocol TPC or port 99999 and reply city X"))

    assert [error.message for error in caught.value.errors] == [
        "unknown type 'NWE', did you mean NEW?",
        "unknown protocol 'TPC', did you mean TCP?",
        "'99999' is not a valid port",
        "a city has no reply side",
    ]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("flow", "type DESTROY"),
        ("SNAPSHOT", "type NEW"),
        ("LOST", "passes every filter"),
        ("SUPPRESSED", "passes every filter"),
        ("X", "one of: NEW, UPDATE, DESTROY, ALIVE"),
    ],
)
def test_the_type_of_a_record_that_is_none_of_an_event_says_how_it_is_matched(word: str, hint: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        canonical(f"log type {word}")

    assert [(error.message, error.hint.endswith(hint)) for error in caught.value.errors] == [
        (f"unknown type '{word}'", True)
    ]


@pytest.mark.parametrize(
    "text", ["", "log", "log type", "log port 80 and", "log icmp id", "log (any", "log any)", "any"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        canonical(text)

    assert all(isinstance(error, RuleError) for error in caught.value.errors)


def test_all_mistakes_of_a_list_are_reported_with_their_places() -> None:
    rules = [RuleText("log any", "f:1"), RuleText("log type X", "f:2"), RuleText("log port x", "f:3")]
    with pytest.raises(ManyErrors) as caught:
        parse_rules(rules)

    assert [error.origin for error in caught.value.errors] == ["f:2", "f:3"]


@pytest.mark.parametrize(
    ("texts", "limit"),
    [
        (["log any"] * 1001, "1000"),
        ([f"log type {'NEW,' * 2000}NEW"], "4096"),
        ([f"log {'(' * 65}any{')' * 65}"], "64"),
    ],
)
def test_limits_are_named(texts: list[str], limit: str) -> None:
    rules = [RuleText(text) for text in texts]
    with pytest.raises(ManyErrors) as caught:
        parse_rules(rules)

    assert limit in str(caught.value).replace(",", "")


def test_a_list_with_many_mistakes_is_read_no_further_than_they_are_shown(mocker: MockerFixture) -> None:
    cut = mocker.spy(grammar, "_cut")
    with pytest.raises(ManyErrors) as caught:
        parse_rules([RuleText(f"log protocol {'x,' * 20}x")] * 900)

    assert cut.call_count == 5
    assert len(caught.value.errors) == grammar.MAX_MISTAKES + 1
    assert caught.value.errors[-1].message == "more mistakes are not shown"


@pytest.mark.parametrize("texts", [["log any"] * 1_000_000, ["x" * 10_000_000], [f"log {'(' * 10_000}"]])
def test_what_is_too_much_is_refused_before_it_is_read(texts: list[str], mocker: MockerFixture) -> None:
    cut = mocker.patch.object(grammar, "_cut")

    with pytest.raises(ManyErrors):
        parse_rules([RuleText(text) for text in texts])

    assert cut.call_count == 0


@pytest.mark.parametrize(
    "text", [f"log {'(' * 4000}", f"log {'!' * 4000}any", f"log {'not (' * 65}any{')' * 65}"]
)
def test_no_depth_of_nesting_is_recursed_into(text: str) -> None:
    try:
        found = canonical(text)
    except ManyErrors as error:
        found = error.errors[0].message

    assert found in {"parentheses in more than 64 levels", "log any"}


@settings(max_examples=150)
@given(strategies.rules)
def test_the_canonical_text_of_any_rules_is_these_rules(rules: list[Rule]) -> None:
    assert parse_rules([RuleText(render(rule)) for rule in rules], strategies.SETS) == rules


def test_every_example_of_the_manual_is_a_rule() -> None:
    _, _, rest = MANUAL.read_text().partition(".Bd -literal\n")
    lines = rest.partition(".Ed\n")[0].splitlines()
    rules = [RuleText(line) for line in lines if not line.startswith("#")]

    assert len(parse_rules(rules)) == len(rules) > 10


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ('drop destination.address == "8.8.8.8"', "drop destination address 8.8.8.8"),
        (
            'log protocol == "TCP" && is_network(destination.address, "PUBLIC")',
            "log protocol TCP and destination network PUBLIC",
        ),
        ('log event.type == "NEW" || event.type != \'UPDATE\'', "log type NEW or not type UPDATE"),
        ("drop !(source.port == 22 && in_range(destination.port, 8000, 8999))",
         "drop not (source port 22 and destination port 8000-8999)"),
        ('log !in_cidr(source.address, "2001:db8::/32")', "log not source address 2001:db8::/32"),
        ('log protocol in ["TCP", "UDP"]', "log protocol TCP,UDP"),
        ("log destination.port >= 1024 && source.port < 1024",
         "log destination port 1024-65535 and source port 0-1023"),
        ("log true", "log any"),
        ("drop true ", "drop any"),
        ('log event.type.startsWith("N")', "log protocol TCP and destination port 443"),
    ],
)  # fmt: skip
def test_a_rule_in_cel_gets_one_hint_with_ours(text: str, ours: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText(text))

    (error,) = caught.value.errors
    assert error.hint == f"in the words of this one: {ours}"
    assert parse_rule(RuleText(ours))


@pytest.mark.parametrize("text", ["log protocol TPC", 'log source city "a && b" foo', "log prot == TCP"])
def test_a_mistake_in_our_language_is_not_taken_for_cel(text: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText(text))

    assert "CEL" not in str(caught.value)


def test_a_mistake_in_a_rule_of_several_lines_is_shown_with_its_line() -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText("log port 22 # one\r\n  or protocol TPC\r\nor port 80"))

    (error,) = caught.value.errors
    assert error.excerpt == "  or protocol TPC\n              ^^^"
