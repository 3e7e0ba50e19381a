"""conntrackctl: a table of verbs, one function a verb."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from conntrackd import VERSION
from conntrackd.cli import control, doctor, events, report, sets, stats, summary, tail, top
from conntrackd.cli import filter as filter_verbs
from conntrackd.cli.common import explain_rule, explain_silence, print_json
from conntrackd.cli.verb import Parser, Verb, add_command
from conntrackd.errors import UnavailableError, UsageError

PROGRAM: Final = "conntrackctl"
VERSION_HELP: Final = "print the version"
VERBS: Final[tuple[Verb, ...]] = (
    *control.VERBS,
    *sets.VERBS,
    *stats.VERBS,
    *tail.VERBS,
    *top.VERBS,
    *events.VERBS,
    *summary.VERBS,
    *doctor.VERBS,
    *filter_verbs.VERBS,
)
GROUPS: Final = {
    "filter": "show, change and test filter rules",
    "set": "list, show and change named sets of addresses",
    "sink": "list, enable, disable and flush sinks",
}
"""Verbs with subcommands, and their help."""


def build_parser() -> Parser:
    """All verbs with their arguments; the chosen one's function is `run` of what is parsed."""
    parser = Parser(prog=PROGRAM, description="Control conntrackd and test filter rules.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}", help=VERSION_HELP)
    groups: dict[tuple[str, ...], argparse._SubParsersAction[Parser]] = {(): parser.add_commands()}
    for verb in VERBS:
        *path, name = verb.words
        for depth, word in enumerate(path, 1):
            above, here = tuple(path[: depth - 1]), tuple(path[:depth])
            if here not in groups:
                groups[here] = add_command(groups[above], word, GROUPS[word]).add_commands()
        subparser = add_command(groups[tuple(path)], name, verb.help)
        verb.add_arguments(subparser)
        subparser.set_defaults(run=verb.run, known=subparser.list_flags(), prog=subparser.prog)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says, and return the exit status."""
    parser = build_parser()
    parser.refuse_early(arguments)
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise _explain_unknown(unknown, chosen.known, chosen.prog)
    try:
        status: int = chosen.run(chosen)
    except UnavailableError as error:
        explained = explain_silence(error, chosen)
        if chosen.run is control.show_status and chosen.json:
            print_json(control.render_silence(explained))
        raise explained from error
    return status


def _explain_unknown(arguments: Sequence[str], known: Sequence[str], prog: str) -> UsageError:
    """Without a value that may have come with them."""
    from conntrackd.text import quote, suggest  # noqa: PLC0415  # for a mistake alone

    flags = [text.partition("=")[0] for text in arguments if text.startswith("-")]
    word = (flags or arguments)[0]
    rule = explain_rule(word) if "--filter" in known else ""
    hint = rule or suggest(word, known) or f"'{prog} --help' lists what is available"
    return UsageError(f"unknown {'option' if flags else 'argument'} {quote(word)}", hint=hint)


def main() -> NoReturn:
    """The command itself."""
    report.run(PROGRAM, lambda: run(sys.argv[1:]))
