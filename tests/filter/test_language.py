"""The filter language, row by row: each production, word and unit, and what is said of each mistake."""

import pytest

from conntrackd.errors import ManyErrors
from conntrackd.filter import fields
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.grammar import parse_rule
from conntrackd.filter.render import render
from conntrackd.flow import ABSENT, Protocol
from tests.sinks.flows import make_flow


def parse(text: str) -> str:
    """The canonical text."""
    return render(parse_rule(RuleText(text)))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
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
def test_each_production_has_one_canonical_form(text: str, canonical: str) -> None:
    assert parse(text) == canonical
    assert parse(canonical) == canonical


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
    assert [parse(f"log {keyword} {word.lower()}") for word in words] == [
        f"log {keyword} {word}" for word in words
    ]


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
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText(text))
    (mistake,) = caught.value.errors
    rule, carets = mistake.excerpt.splitlines()

    assert mistake.message == message
    assert f"{rule} "[carets.index("^") : len(carets)] == marked


def test_all_mistakes_of_one_rule_are_reported() -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText("log type NWE and protocol TPC or port 99999 and reply city X"))

    assert [error.message for error in caught.value.errors] == [
        "unknown type 'NWE', did you mean NEW?",
        "unknown protocol 'TPC', did you mean TCP?",
        "'99999' is not a valid port",
        "a city has no reply side",
    ]


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
    flow = make_flow(1)
    flow.src, flow.sport = address, port
    flow.protocol = Protocol.ICMP if port == ABSENT else Protocol.UDP

    for text in (
        "not source address 10.0.0.1 on port 80",
        "not (source address 10.0.0.1 and source port 80)",
        "not source address 10.0.0.1 or not source port 80",
    ):
        rules = [parse_rule(RuleText(f"log {text}")), parse_rule(RuleText("drop any"))]
        assert evaluate(rules, flow) == (matches, 1 if matches else 2)
