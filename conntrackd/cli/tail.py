"""conntrackctl tail: live events, filtered by the daemon, on a terminal or in a pipe."""

import json
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Final

from conntrackd.cli.common import add_bus, add_rule, connect, parse_count
from conntrackd.cli.lines import FORMS, Style, should_colour
from conntrackd.cli.verb import Verb
from conntrackd.errors import UnavailableError

CHUNK: Final = 1 << 20
REPORTS: Final = (b'"type":"LOST"', b'"type":"SUPPRESSED"')  # which no limit counts


def add_rules(parser: ArgumentParser) -> None:
    """Which events: for the verbs that read a tail."""
    add_bus(parser)
    add_rule(parser, "rules", nargs="*", default=[], help="rules, as for --filter")
    add_rule(parser, "--filter", action="append", default=[], help="filter rule; can be repeated")


def add_arguments(parser: ArgumentParser) -> None:
    add_rules(parser)
    parser.add_argument("-n", dest="count", type=parse_count, metavar="N", help="exit after N events")
    parser.add_argument(
        "-o",
        dest="form",
        choices=("short", "json", "full"),
        default="short",
        help="output format (default: short)",
    )
    parser.add_argument("--json", dest="form", action="store_const", const="json", help="same as -o json")


def open_tail(arguments: Namespace, count: int = 0) -> int:
    """A pipe with what the rules keep; a warning where they leave nothing out."""
    rules = arguments.filter + arguments.rules
    with connect(arguments) as client:
        pipe = client.open_tail(rules, count)
    if rules:
        from conntrackd.cli.past import warn_of_no_drop  # noqa: PLC0415
        from conntrackd.filter.diagnostics import RuleText  # noqa: PLC0415
        from conntrackd.filter.grammar import parse_rules  # noqa: PLC0415

        # The sets are the daemon's, which has found them: here an address stands for each.
        warn_of_no_drop(parse_rules([RuleText(re.sub(r"@[\w-]+", "::", rule)) for rule in rules]))
    return pipe


def show_tail(arguments: Namespace) -> int:
    """Until ^C, until there were so many, or until the daemon ends it."""
    pipe = open_tail(arguments, arguments.count or 0)
    is_terminal = sys.stdout.isatty()
    style = Style(colour=should_colour())
    seen = 0
    try:
        for chunk in read_chunks(pipe):
            seen += chunk.count(b"\n") - sum(map(chunk.count, REPORTS))
            print_chunk(chunk, arguments.form, is_terminal=is_terminal, style=style)
    except KeyboardInterrupt:
        return 0
    finally:
        os.close(pipe)
    if arguments.count is None or seen < arguments.count:
        raise UnavailableError(
            "the daemon has closed the tail", hint="the daemon was stopped, or this terminal read too slowly"
        )
    return 0


def read_chunks(pipe: int) -> Iterator[bytes]:
    """Whole lines, as many as are there."""
    rest = b""
    while data := os.read(pipe, CHUNK):
        lines, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield lines + newline


def print_chunk(chunk: bytes, form: str, *, is_terminal: bool, style: Style) -> None:
    """To stdout at once. Into a pipe JSON goes as it came."""
    if form == "json" and not is_terminal:
        sys.stdout.buffer.write(chunk)
    else:
        for line in chunk.splitlines():
            print(FORMS[form](json.loads(line), style))
    sys.stdout.flush()


VERBS: Final = (Verb(("tail",), "follow events as they happen", add_arguments, show_tail),)
