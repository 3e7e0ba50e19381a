"""OPTIONS -> the flags of a parser, and what was given of them."""

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from conntrackd.cli.common import explain_rule
from conntrackd.config.named import SECTION, SETTINGS, explain_setting, find_setting
from conntrackd.config.option import Option
from conntrackd.config.options import FILTER, FILTER_FILE, OPTIONS, SETS
from conntrackd.config.read import SUFFIXES
from conntrackd.config.values import FLAG
from conntrackd.errors import ConfigError, ConntrackdError, UsageError
from conntrackd.text import quote, suggest

OF_THE_FILTER: Final = frozenset({FILTER.key, FILTER_FILE.key, SETS.key})
# The name may be a wrong one: reading says so.
NAMED_FLAG: Final = re.compile(rf"--{SECTION}\.([^.=]+)\.[^=]+(?:=.*)?", re.DOTALL)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each option, in a group for each section. Values stay text until read_config."""
    for section, members in groupby(OPTIONS, get_section):
        group = parser.add_argument_group(section or "daemon")
        for option in members:
            _add_flag(group, option)


def get_section(option: Option[object]) -> str:
    """`sink.loki` for all that is below it, else the first word; empty for the daemon's own."""
    words = option.key.split(".")
    if len(words) == 1:
        return "filter" if words[0] in OF_THE_FILTER else ""
    return ".".join(words[:2]) if words[0] == "sink" else words[0]


def _add_flag(group: argparse._ActionsContainer, option: Option[object]) -> None:
    text = option.help
    if option.default_text and text is not argparse.SUPPRESS:
        text += f" (default: {option.default_text})"
    group.add_argument(
        option.flag,
        dest=option.key,
        action="append",
        default=argparse.SUPPRESS,  # so that what was not given is not there
        help=text.replace("%", "%%"),
        metavar=option.kind.metavar,
        # a boolean may stand alone
        nargs="?" if option.kind is FLAG else None,
        const="true" if option.kind is FLAG else None,
    )


def add_named_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Flags for the named sinks on this command line, and all that these might have: `--sinks.audit.kind`.

    A configuration may have more, so that there is nothing to show in --help.
    """
    names = dict.fromkeys(match[1] for word in words if (match := NAMED_FLAG.fullmatch(word)))
    given = dict.fromkeys(word.partition("=")[0] for word in words if NAMED_FLAG.fullmatch(word))
    for flag in given:
        option = find_setting(flag.split(".", 2)[2])
        if option is not None:
            _add_flag(parser, replace(option, key=flag.removeprefix("--"), help=argparse.SUPPRESS))
    ends = dict.fromkeys(["kind", *(end for own in SETTINGS.values() for end in own)])
    return [f"--{SECTION}.{name}.{end}" for name in names for end in ends]


def collect_flags(namespace: argparse.Namespace) -> dict[str, list[str]]:
    """The texts that were given, by key, for read_config."""
    given = vars(namespace)
    own = [key for key in given if key.startswith(f"{SECTION}.")]
    return {key: list(given[key]) for key in (*(option.key for option in OPTIONS), *own) if key in given}


def explain_unknown(arguments: Sequence[str], known: Collection[str]) -> ConntrackdError:
    """The error for arguments that no parser took, without a value that may have come with them."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    word = (flags or list(arguments))[0]
    fault = explain_setting(word.removeprefix("--"))
    if flags and fault is not None:
        return ConfigError(fault[0], hint=fault[1], origin=word)
    quotes = "" if flags else "; a value with spaces needs quotes"
    section = f"{word}.enable"
    hint = f"did you mean {section}?" if section in known else explain_rule(word)
    if "--config" in known and (word == "-c" or word.endswith(SUFFIXES)):
        hint = "a configuration file stands behind --config"
    hint = hint or suggest(word, known)
    hint = hint or f"--help lists what is available{quotes}"
    kind = ConfigError if flags else UsageError  # a setting that is none, wherever it stands
    return kind(f"unknown {'option' if flags else 'argument'} {quote(word)}", hint=hint)
