"""filter/explain.py: the table as `conntrackctl filter explain --core` shows it."""

import pytest

from conntrackd.filter.explain import render_table
from conntrackd.filter.table import compile_table
from tests.filter.rows import parse


def show(*texts: str) -> list[str]:
    return render_table(compile_table(parse(*texts))).splitlines()


def test_a_table_of_every_kind_reads_like_this() -> None:
    rules = parse(
        "log type NEW and not country DE,FR",
        "drop mark 0x10/0xf0,3 or zone 3 or not state ESTABLISHED",
        'drop not address 10.0.0.0/8,2001:db8::/64 and (bytes > 10M or source city "Z\u00fcrich")',
        "log nat ANY and duration < 1m and status UNREPLIED",
        "drop not destination port 22,80-90",
        "drop icmp id 17 and not reply icmp id 1-99",
    )

    assert render_table(compile_table(rules, frozenset({6, 47, 99}), 5)).splitlines() == [
        "begin at 0",
        "   0  protocol TCP, GRE, 99: 1, else left out",
        "   1  type NEW,DESTROY: 2, else left out",
        "   2  type NEW: 3, else 5",
        "   3  destination country is not DE,FR: 4, else 5",
        "   4  source country is not DE,FR: rule 1 (log), else 5",
        "   5  mark 0x10/0xf0: rule 2 (drop), else 6",
        "   6  mark 0x3: rule 2 (drop), else 7",
        "   7  zone 3: rule 2 (drop), else 8",
        "   8  state not ESTABLISHED: rule 2 (drop), else 9",
        "   9  source address 10.0.0.0/8: 15, else 10",
        "  10  source address 2001:db8::/64: 15, else 11",
        "  11  destination address 10.0.0.0/8: 15, else 12",
        "  12  destination address 2001:db8::/64: 15, else 13",
        "  13  bytes above 10M: rule 3 (drop), else 14",
        "  14  source city is 'z\\xfcrich': rule 3 (drop), else 15",
        "  15  nat SNAT,DNAT: 16, else 18",
        "  16  duration below 1m: 17, else 18",
        "  17  status SEEN_REPLY: 18, else rule 4 (log)",
        "  18  destination port not 22, 80-90: rule 5 (drop), else 19",
        "  19  icmp id 17: 20, else no rule (log)",
        "  20  reply icmp id not 1-99: rule 6 (drop), else no rule (log)",
    ]


def test_a_look_up_names_the_rule_of_each_interval_and_ends_after_some() -> None:
    assert show(*(f"drop address 10.0.0.{number},2001:db8:{number}::/48" for number in range(2, 12))) == [
        "begin at 0",
        "   0  source address 10.0.0.2 (rule 1), 10.0.0.3 (rule 2), 10.0.0.4 (rule 3), 10.0.0.5 (rule 4), "
        "10.0.0.6 (rule 5), 10.0.0.7 (rule 6) and 4 more: 1, else 1",
        "   1  source address 2001:db8:2::/48 (rule 1), 2001:db8:3::/48 (rule 2), 2001:db8:4::/48 (rule 3), "
        "2001:db8:5::/48 (rule 4), 2001:db8:6::/48 (rule 5), 2001:db8:7::/48 (rule 6) and 4 more: 2, else 2",
        "   2  destination address 10.0.0.2 (rule 1), 10.0.0.3 (rule 2), 10.0.0.4 (rule 3), "
        "10.0.0.5 (rule 4), 10.0.0.6 (rule 5), 10.0.0.7 (rule 6) and 4 more: 3, else 3",
        "   3  destination address 2001:db8:2::/48 (rule 1), 2001:db8:3::/48 (rule 2), "
        "2001:db8:4::/48 (rule 3), 2001:db8:5::/48 (rule 4), 2001:db8:6::/48 (rule 5), "
        "2001:db8:7::/48 (rule 6) and 4 more: 4, else 4",
        "   4  a rule was found: the rule found, else no rule (log)",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("any", "begin at rule 1 (drop)"),
        ("not any", "begin at no rule (log)"),
        ("duration >= 0", "   0  duration from 0: rule 1 (drop), else no rule (log)"),
        ("duration = 1s", "   0  duration 1s: rule 1 (drop), else no rule (log)"),
        ("packets >= 0", "   0  packets any: rule 1 (drop), else no rule (log)"),
        ("packets = 0", "   0  packets 0: rule 1 (drop), else no rule (log)"),
        ("family IPV6", "   0  family IPV6: rule 1 (drop), else no rule (log)"),
        ("mark 0/0", "   0  mark 0x0/0x0: rule 1 (drop), else no rule (log)"),
        ("status OFFLOADED", "   0  status OFFLOADED: rule 1 (drop), else no rule (log)"),
        ("nat SNAT", "   0  nat SNAT: rule 1 (drop), else no rule (log)"),
        ("reply source port 7", "   0  reply source port 7: rule 1 (drop), else no rule (log)"),
        (
            "source address 10.0.0.0/24,10.0.1.0/25",
            "   0  source address 10.0.0.0-10.0.1.127: rule 1 (drop),",
        ),
    ],
)
def test_a_test_says_what_it_asks(text: str, shown: str) -> None:
    assert show(f"drop {text}")[-1].startswith(shown)


def test_what_people_typed_obeys_no_terminal() -> None:
    assert "\u00fc" not in show('drop source city "\u00fc"')[1]


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("drop state ESTABLISHED,FIN_WAIT", "state ESTABLISHED,FIN_WAIT"),
        ("drop bytes >= 10M", "bytes from 10M"),
        ("drop bytes < 2K", "bytes below 2K"),
        ("drop bytes <= 1500", "bytes up to 1500"),
        ("drop packets != 7", "packets not 7"),
        ("drop duration > 90s", "duration above 90s"),
        ("drop duration <= 1500ms", "duration up to 1500ms"),
        ("drop not duration = 2h", "duration not 2h"),
        ("drop mark 1/3,2/3", "mark 0x1-0x2/0x3"),
        ("log any sample 1/10", None),
    ],
)
def test_numbers_stand_there_as_in_rules(rule: str, shown: str | None) -> None:
    lines = show(rule)

    if shown is None:
        assert lines == ["begin at rule 1 (log sample 1/10)"]
    else:
        assert lines[1].strip() == f"0  {shown}: rule 1 (drop), else no rule (log)"
