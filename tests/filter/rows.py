"""Rules that people write, with events that they are or are not true of: for whatever evaluates rules."""

from dataclasses import replace
from typing import Final

import pytest

from conntrackd.errors import ManyErrors
from conntrackd.filter.ast import Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rule, parse_rules
from conntrackd.filter.render import render
from conntrackd.filter.sets import NO_SETS, Sets
from conntrackd.flow import Flow, Location

FLOW: Final = Flow(
    1, 1, 2, 6, 1, b"\x0a\0\0\1", b"\x0a\0\0\2", 1024, 80, b"\x0a\0\0\2", b"\x0a\0\0\1", 80, 1024, state=3
)
ICMP: Final = replace(FLOW, protocol=1, sport=-1, dport=-1, reply_sport=-1, reply_dport=-1, state=-1)
PING: Final = replace(ICMP, icmp_type=8, icmp_code=0, icmp_id=17, reply_icmp_id=17)
MASKED: Final = replace(PING, reply_dst=b"\xc0\0\x02\1", reply_icmp_id=4711)
PING_6: Final = replace(
    PING, family=10, protocol=58, src=bytes(16), dst=bytes(16), reply_src=bytes(16), reply_dst=bytes(16)
)
IPV6: Final = replace(
    FLOW,
    family=10,
    src=bytes.fromhex("20010db8000000000000000000000001"),
    dst=bytes.fromhex("20010db8000000010000000000000000"),
    reply_src=bytes.fromhex("20010db8000000010000000000000000"),
    reply_dst=bytes.fromhex("20010db8000000000000000000000001"),
)
SECOND: Final = 10**9
LAST: Final = (1 << 64) - 1

# The condition, the event, whether it is true.
ROWS: Final = [
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
    (
        "not destination country DE",
        replace(FLOW, dst_location=Location("", "France", country_code="FR")),
        True,
    ),
    ("not country DE", replace(FLOW, dst_location=Location("", "France", country_code="FR")), False),
    ("country DE", replace(FLOW, dst_location=Location("", "Germany", country_code="DE")), True),
    ('country "GERMANY"', replace(FLOW, dst_location=Location("", "Germany", country_code="DE")), True),
    ('not destination country "France"', replace(FLOW, dst_location=Location("", "Germany")), True),
    ("destination country FR,Germany", replace(FLOW, dst_location=Location("", "Germany")), True),
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
    ("icmp id 17", PING, True),
    ("icmp id 1-16,18", PING, False),
    ("not icmp id 18", PING, True),
    ("icmp id 17", PING_6, True),
    ("icmp id 17", MASKED, True),
    ("icmp id 4711", MASKED, False),
    ("reply icmp id 4711", MASKED, True),
    ("reply icmp id 17", MASKED, False),
    ("reply icmp id 17", PING, True),  # there without a translation, too
    ("reply icmp id 17", PING_6, True),
    ("nat ANY and reply icmp id 17", PING, False),  # the field nat_icmp_id
    ("nat ANY and reply icmp id 4711", MASKED, True),
    ("nat SNAT", replace(PING, reply_icmp_id=18), True),  # the identifier alone is translated
    ("nat DNAT", replace(PING, reply_icmp_id=18), False),
    ("nat ANY", PING_6, False),
    ("icmp id 0", replace(PING, icmp_id=0), True),
    ("icmp id 0-65535", FLOW, False),
    ("not icmp id 17", FLOW, False),
    ("not reply icmp id 17", ICMP, False),
    ("protocol TCP, icmp id 17", PING, True),
    ("any", FLOW, True),
    ("not any", FLOW, False),
    ("duration < 1ms", replace(FLOW, start=5, stop=4), True),  # the clock was set back by as little as can be
    ("duration >= 0", replace(FLOW, start=5, stop=4), False),
    ("not duration >= 0", replace(FLOW, start=5, stop=4), True),
    ("duration >= 0", replace(FLOW, start=5, stop=5), True),
    ("duration != 0", replace(FLOW, start=5, stop=5), False),
    ("not duration > 1s", replace(FLOW, start=5, stop=SECOND + 5), True),
    ("duration > 1s", replace(FLOW, start=5, stop=SECOND + 6), True),
    ("duration >= 5124095h", replace(FLOW, start=1, stop=LAST), True),  # 584 years
    (f"bytes = {LAST}", replace(FLOW, orig_bytes=LAST), True),
    (f"bytes > {LAST}", replace(FLOW, orig_bytes=LAST), False),
    (f"not bytes > {LAST}", replace(FLOW, orig_bytes=LAST), True),
    (f"bytes <= {LAST}", replace(FLOW, orig_bytes=LAST), True),
    ("packets < 0", replace(FLOW, orig_packets=0), False),
    ("not packets < 0", replace(FLOW, orig_packets=0), True),
    ("packets != 7", replace(FLOW, orig_packets=8), True),
    ("packets != 7", replace(FLOW, orig_packets=7), False),
    ("reply packets >= 0", FLOW, False),
    ("mark 0x10/0xf0", replace(FLOW, mark=0x1F), True),
    ("mark 0x10/0xf0", replace(FLOW, mark=0x20), False),
    ("mark 0/0", replace(FLOW, mark=0xFFFFFFFF), True),
    ("mark 0xffffffff,3", replace(FLOW, mark=0xFFFFFFFF), True),
    ("source address 2001:db8::/64", IPV6, True),
    ("destination address 2001:db8::/64", IPV6, False),
    ("source address 0.0.0.0/0", IPV6, False),
    ("not source address 0.0.0.0/0", IPV6, True),
    ("destination address 2001:db8:0:1::", IPV6, True),
    ("network PUBLIC", IPV6, True),
    ("source network PRIVATE", FLOW, True),
    ("not network PRIVATE", FLOW, False),
    ("family IPV6", IPV6, True),
    ("not family IPV6", IPV6, False),
    ("status SEEN_REPLY", replace(FLOW, status=2), True),
    ("not status SEEN_REPLY", replace(FLOW, status=2), False),
    ("status OFFLOADED", replace(FLOW, status=1 << 15), True),
]


def parse(*texts: str) -> list[Rule]:
    """Rules of these texts."""
    return parse_rules([RuleText(text) for text in texts])


def canonical(text: str, sets: Sets = NO_SETS) -> str:
    """The canonical text of one rule."""
    return render(parse_rule(RuleText(text), 1, sets))


def read_mistake(text: str) -> tuple[str, str]:
    """What is said of the one mistake in a rule, and the words above its carets: " " behind the end."""
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText(text))
    (mistake,) = caught.value.errors
    rule, carets = mistake.excerpt.splitlines()
    return mistake.message, f"{rule} "[carets.index("^") : len(carets)]
