"""Writes the seeds of the corpus: what the tests, the manual and the sample configuration hold.

python -m fuzz.seeds
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from conntrackd.config.options import OPTIONS
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import KEYWORDS, parse_rules
from conntrackd.filter.table import assemble, compile_table
from conntrackd.netlink.constants import NLMSG_NOOP
from conntrackd.netlink.message import HEADER
from fuzz.targets import join_datagrams

ROOT: Final = Path(__file__).parent.parent
CORPUS: Final = ROOT / "fuzz" / "corpus"

JSON_SETTINGS: Final = '{"sink": {"loki": {"labels": ["a=b"], "timeout": "5s"}}, "filter": ["drop port 53"]}'
TOML_SETTINGS: Final = 'log.level = "debug"\n[conntrack]\nbuffer = 1048576\nprotocols = ["TCP", 89]\n'
YAML_SETTINGS: Final = (
    "sink: &s {stream: {enable: yes}, journal.enable: off}\nfilter: |\n  log any # x\n  drop port 1\n",
    "a: &a [*a, !!str 1, 0x10, .nan, ~]\n? b\n: 'c'\n",
    "conntrack: {buffer: 1e99, netns: null, events: [NEW, UPDATE]}\nshutdown_timeout: -1\n",
)
EVENTS: Final = (
    '{"time":"2025-11-22T11:34:43.181432081+01:00","type":"DESTROY","flow":7,"prot":"TCP","src":"10.0.0.1",'
    '"dst":"192.0.2.7","sport":1,"dport":2,"state":"CLOSE","nat":"SNAT","nat_src":"1.2.3.4","nat_sport":9,'
    '"packets":3,"bytes":180,"reply_packets":1,"reply_bytes":60,"start":"2025-11-22T11:34:43Z",'
    '"stop":"2025-11-22T11:34:44.5Z","duration":1.5,"mark":16,"zone":3,"city":"X","country":"DE"}',
    '{"type":"NEW","prot":"47","src":"::1","dst":"::1","duration":0.001,"status":8,"src_city":"Y"}',
    '{"type":"LOST"}',
    '{"type":"NEW","prot":17,"src":"::1","dst":"::1","sport":null}',
)
TABLE: Final = (
    "drop source address 10.0.0.0/24,2001:db8::/48",
    "log source address 10.0.1.0/24,2001:db8:1::/48",
    "drop not country DE,FR",
    'log city "Ulm" or mark 1/3',
    "drop bytes > 10M and duration < 1m",
)


def read_datagrams() -> Iterator[list[bytes]]:
    """Of each recording the messages that differ in length, type or flags."""
    for path in sorted((ROOT / "tests/netlink/corpus").glob("*.nl")):
        content, offset, kinds = path.read_bytes(), 0, dict[bytes, bytes]()
        while offset < len(content):
            length, kind, *_ = HEADER.unpack_from(content, offset)
            message = content[offset : offset + length]
            if kind != NLMSG_NOOP:  # the time
                kinds.setdefault(message[:8], message)
            offset += length + 3 & ~3
        yield list(kinds.values())


def read_manual() -> Iterator[str]:
    """The manual's examples."""
    text = (ROOT / "man/conntrackd-filter.7").read_text()
    for part in text.split(".Bd -literal\n")[1:]:
        yield from (line for line in part.partition(".Ed\n")[0].splitlines() if line)


def list_seeds() -> Iterator[tuple[str, bytes]]:
    """Target and input."""
    for messages in read_datagrams():
        yield "decoder", join_datagrams(*messages[:4])
        yield "decoder", join_datagrams(b"".join(messages[:2]), messages[0][:40])
        yield "render", b"".join(messages[:2])
    for path in sorted((ROOT / "tests/netlink/corpus").glob("*.nl")):
        yield "recording", path.read_bytes()[:1500]
    yield from (("events", line.encode()) for line in EVENTS)
    yield "events", "\n".join(EVENTS).encode()
    rules = list(read_manual())
    for rule in rules:
        if rule.startswith(("log ", "drop ")):  # and is not a comment
            yield "table", assemble(compile_table(parse_rules([RuleText(rule)])))
    yield (
        "table",
        assemble(compile_table(parse_rules([RuleText(text) for text in TABLE]), frozenset((6, 17)), 5)),
    )
    yield from (("rules", rule.encode()) for rule in rules)
    yield "rules", "\n".join(rules).encode()
    yield "rules", b'drop ((any) or not source city "a\\"b", port 1-2,3) and nat SNAT,ANY'
    yield "config", b"\0" + (ROOT / "contrib/conntrackd.yaml").read_bytes()
    yield "config", b"\1" + JSON_SETTINGS.encode()
    yield "config", b"\2" + TOML_SETTINGS.encode()
    yield from (("config", b"\0" + text.encode()) for text in YAML_SETTINGS)


def list_words(target: str) -> list[str]:
    """What libFuzzer may put in as a whole."""
    match target:
        case "rules":
            return [
                *KEYWORDS,
                "10.0.0.0/8",
                "2001:db8::/32",
                "PUBLIC",
                "TCP",
                ">=",
                "10M",
                "0x10/0xf0",
                "60s",
            ]
        case "config":
            parts = dict.fromkeys(part for option in OPTIONS for part in option.key.split("."))
            return [*parts, "true", "null", "1e99", "&a", "*a", "!!str", "---", '"""', "\\u0000"]
    return []


def write_seeds(seeds: Iterable[tuple[str, bytes]]) -> None:
    """Adds what is missing to the corpus; nothing is taken away. A seed is a target, and an input for it."""
    for target, data in seeds:
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)


if __name__ == "__main__":
    write_seeds(list_seeds())
