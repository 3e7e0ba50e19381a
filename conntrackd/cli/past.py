"""What the verbs that look back have in common: which events, of which time, out of which source."""

import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conntrackd.cli import report
from conntrackd.cli.common import add_rule
from conntrackd.errors import DataError

if TYPE_CHECKING:  # what runs imports it late: --help and completion need none of it
    from conntrackd.filter.ast import Rule
    from conntrackd.history.selection import HistorySelection
    from conntrackd.history.source import Source

PROGRAM: Final = "conntrackctl"


def add_selection(parser: ArgumentParser) -> None:
    """Rules, times and the source."""
    add_rule(parser, "rules", nargs="*", help="rules, as for --filter")
    add_rule(parser, "--filter", action="append", default=[], help="filter rule; can be repeated")
    parser.add_argument("--since", metavar="TIME", help="from when on, such as -1h or 'yesterday 14:00'")
    parser.add_argument("--until", metavar="TIME", help="until when")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="journal, journal:DIRECTORY, file:PATH or loki (default: that of a sink which is on)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file of conntrackd")
    parser.add_argument(  # its default is that of -o
        "--json", dest="form", action="store_const", const="json", default=SUPPRESS, help="same as -o json"
    )


@contextmanager
def open_selected(arguments: Namespace) -> Iterator["tuple[Source, HistorySelection]"]:
    """The source, of which nothing is read yet; at the end what could not be read is reported on stderr."""
    from conntrackd.history.selection import HistorySelection  # noqa: PLC0415
    from conntrackd.history.source import open_source  # noqa: PLC0415
    from conntrackd.history.times import parse_span  # noqa: PLC0415
    from conntrackd.netlink.labels import read_label_names  # noqa: PLC0415

    span = parse_span(arguments.since, arguments.until, time.time_ns())
    labels = {name: bit for bit, name in read_label_names().items()}
    rules = read_rules(arguments.filter + arguments.rules, arguments.config)
    selection = HistorySelection(span, rules, labels)
    is_followed = getattr(arguments, "follow", False)
    source = open_source(arguments.source, selection, arguments.config, is_followed=is_followed)
    try:
        yield source, selection
    finally:
        source.close()
        for warning in selection.damage.list_warnings():
            report.warn(PROGRAM, warning)


def read_rules(texts: list[str], path: Path | None) -> "list[Rule]":
    """Those of the command line; a warning where they leave nothing out, which nobody asks for.

    Sets are those of the configuration, which is read for nothing else.
    """
    from conntrackd.cli.filter import warn_of_status  # noqa: PLC0415
    from conntrackd.config.rules import read_sets  # noqa: PLC0415
    from conntrackd.filter.diagnostics import RuleText  # noqa: PLC0415
    from conntrackd.filter.grammar import parse_rules  # noqa: PLC0415
    from conntrackd.filter.limit import refuse_limits  # noqa: PLC0415
    from conntrackd.filter.sets import NO_SETS  # noqa: PLC0415
    from conntrackd.history.source import read_configuration  # noqa: PLC0415

    sets = read_sets(read_configuration(path)) if any("@" in text for text in texts) else NO_SETS
    rules = parse_rules([RuleText(text) for text in texts], sets)
    refuse_limits(rules, "what was logged has passed its limits: nothing is limited here")
    warn_of_status(rules)
    warn_of_no_drop(rules)
    return rules


def warn_of_no_drop(rules: "Sequence[Rule]") -> None:
    """Say on stderr that the rules leave nothing out, where that is so and may not be meant."""
    from conntrackd.filter.never import DROP_ANY_HINT, drops_nothing  # noqa: PLC0415

    if drops_nothing(rules):
        message = "no rule drops anything, so all events are shown"
        report.warn(PROGRAM, DataError(message, hint=DROP_ANY_HINT))
