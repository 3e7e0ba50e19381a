"""conntrackctl: a table of verbs, one function a verb."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from conntrackd import VERSION
from conntrackd.cli import control, doctor, events, report, stats, summary, tail, top
from conntrackd.cli import filter as filter_verbs
from conntrackd.cli.daemonlink import explain_silence
from conntrackd.cli.verb import HelpFormatter, Verb
from conntrackd.errors import UnavailableError, UsageError

PROGRAM: Final = "conntrackctl"
VERSION_HELP: Final = "print the version"
VERBS: Final[tuple[Verb, ...]] = (
    *control.VERBS,
    *stats.VERBS,
    *tail.VERBS,
    *top.VERBS,
    *events.VERBS,
    *summary.VERBS,
    *doctor.VERBS,
    *filter_verbs.VERBS,
)
GROUPS: Final = {
    "filter": "look at filter rules, change them, try them out",
    "sink": "look at sinks, switch them",
}
"""Words that further words follow."""


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process: that is report.run()'s alone."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  # as argparse takes them
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **settings})
        self._negative_number_matcher = re.compile(r"-\d")  # `--since -1h` has a value, and no flag

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401
        if action.choices is None or value in action.choices:
            return
        from conntrackd.text import quote, suggest  # noqa: PLC0415  # for a mistake alone

        words = [str(each) for each in action.choices]
        name = str(action.metavar or "/".join(action.option_strings)).lower()
        hint = suggest(str(value), words) or f"one of: {', '.join(words)}"
        raise UsageError(f"there is no {name} {quote(str(value))}", hint=hint)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"'{self.prog} --help' shows what there is")


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their arguments; the chosen one's function is `run` of what is parsed."""
    parser = Parser(prog=PROGRAM, description="Control conntrackd, and try out its filter rules.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}", help=VERSION_HELP)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    groups: dict[tuple[str, ...], argparse._SubParsersAction[Parser]] = {(): verbs}
    for verb in VERBS:
        *path, name = verb.words
        for depth, word in enumerate(path, 1):
            above, here = tuple(path[: depth - 1]), tuple(path[:depth])
            if here not in groups:
                group = groups[above].add_parser(
                    word, help=GROUPS[word], description=f"{GROUPS[word][0].upper()}{GROUPS[word][1:]}."
                )
                groups[here] = group.add_subparsers(
                    title="commands", metavar="COMMAND", required=True, parser_class=Parser
                )
        each = groups[tuple(path)].add_parser(
            name, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}."
        )
        verb.add_arguments(each)
        each.set_defaults(run=verb.run)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says, and return the exit status."""
    chosen = build_parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
    except UnavailableError as error:
        raise explain_silence(error, chosen) from error
    return status


def main() -> NoReturn:
    """The command itself."""
    report.run(PROGRAM, lambda: run(sys.argv[1:]))
