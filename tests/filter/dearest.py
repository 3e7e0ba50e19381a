"""The dearest rules of each kind that the limits allow: `python -m tests.filter.dearest KIND` compiles them.

It prints its CPU time, in thousandths of that of a yardstick, and the memory in KiB, in a process of its own.
"""

import argparse
import resource
import time
from collections.abc import Callable
from random import Random
from typing import Final

from conntrackd.active_filter import Filter, compile_filter
from conntrackd.config.read import read_config
from conntrackd.engine import load_engine
from conntrackd.errors import ConntrackdError
from conntrackd.filter import cost
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import MAX_LENGTH, MAX_RULES, parse_rule

RANDOM: Final = Random(17)
ROOM: Final = MAX_LENGTH - 40
STEPS: Final = 8_000_000
"""Of the whole yardstick: about a second where the limits were set. A slow machine is slow at both."""


def fill(head: str, term: Callable[[], str], separator: str, room: int = ROOM) -> str:
    """As many terms as there is room for."""
    text = head + term()
    while len(text) + len(separator) + 40 < room:
        text += separator + term()
    return text


def draw_ipv4() -> str:
    return f"10.{RANDOM.randrange(256)}.{RANDOM.randrange(256)}.{RANDOM.randrange(256)}"


def draw_port() -> str:
    return str(RANDOM.randrange(65536))


KINDS: Final[dict[str, Callable[[int], str]]] = {
    "addresses": lambda n: fill("log address ", draw_ipv4, ","),
    "IPv6 networks": lambda n: fill("log address ", lambda: f"{RANDOM.randrange(65536):x}::/16", ","),
    "address lists beside a port": lambda n: f"{fill('log address ', draw_ipv4, ',')} and port {n}",
    "many short address lists": lambda n: f"{fill('log address ', draw_ipv4, ',', 300)} and port {n}",
    "ports": lambda n: f"{fill('log port ', draw_port, ',')} and mark {n}",
    "public": lambda n: f"{fill('log ', lambda: 'network public', ' or ')} and port {n}",
    "not public": lambda n: f"{fill('log ', lambda: 'not network public', ' or ')} and port {n}",
    "not any of many": lambda n: f"{fill('log not (', lambda: f'port {draw_port()}', ' or ')})",
    "all of many": lambda n: fill("log ", lambda: f"zone {draw_port()}", " and "),
    "everything": lambda n: fill("log ", lambda: "any", " or "),
    "nat": lambda n: fill("log ", lambda: "not nat any", " or "),
    "counters": lambda n: fill("log ", lambda: "bytes>1", " or "),
    "marks": lambda n: fill("log mark ", lambda: f"{RANDOM.randrange(8)}/7", ","),
    "cities": lambda n: fill("log city ", lambda: f'"c{draw_port()}"', ","),
    "countries": lambda n: fill("log ", lambda: "not country de", " and "),
    "parentheses": lambda n: fill("log ", lambda: "(" * 60 + "any" + ")" * 60, " or "),
    "negations": lambda n: f"log {'!' * ROOM}any",
    "pairs": lambda n: f"log port {n} and mark {n}",
    "wide lists above narrow ones": lambda n: (
        fill("log address ", draw_ipv4, ",")
        if n < 40
        else fill("log ", lambda: "address 0.0.0.0/0", " and ") + " and nat any"
    ),
    "long rules below short ones": lambda n: (
        f"log port {n} and mark {n}" if n < 900 else fill("log ", lambda: f"bytes>{draw_port()}", " or ")
    ),
}


def collect(kind: str) -> list[RuleText]:
    """Rules of a kind, as many as pass."""
    rules: list[RuleText] = []
    characters = words = comparisons = 0
    while len(rules) < MAX_RULES:
        rule = RuleText(KINDS[kind](len(rules)))
        characters += len(rule.text)
        words += len(cost.WORD.findall(rule.text))
        comparisons += cost.count_comparisons(parse_rule(rule).expression)
        if characters > cost.MAX_CHARACTERS or words > cost.MAX_WORDS or comparisons > cost.MAX_COMPARISONS:
            break
        rules.append(rule)
    return rules


def compile_all(rules: list[RuleText]) -> Filter:
    """All that a filter becomes."""
    return compile_filter(rules, "", read_config({}, {}), load_engine())


def run_yardstick(steps: int) -> float:
    """Seconds of CPU time for small objects, calls and comparisons, as a compiler has them."""
    began = time.process_time()
    assert sum(int(text) % 7 == 0 for text in map(str, range(steps))) > steps // 8
    return time.process_time() - began


def measure(kind: str) -> tuple[int, int]:
    """Thousandths of the yardstick, an eighth of which runs before and after, and KiB."""
    compile_all([RuleText("log port 1")])
    rules = collect(kind)
    yardstick = run_yardstick(STEPS // 8)
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        compile_all(rules)
    except ConntrackdError as error:
        raise AssertionError(f"{kind}: {len(rules)} rules are refused") from error
    took = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    yardstick += run_yardstick(STEPS // 8)
    return round(took / (4 * yardstick) * 1000), memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.filter.dearest")
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    print(*measure(parser.parse_args().kind))
