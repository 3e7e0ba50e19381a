"""The texts of rules as the configuration has them, each with where it stands."""

from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Final

from conntrackd.config import options
from conntrackd.config.document import read_text
from conntrackd.config.option import Option
from conntrackd.config.read import Config
from conntrackd.config.values import MAX_ITEMS
from conntrackd.errors import ConfigError
from conntrackd.files import KindError
from conntrackd.filter.diagnostics import RuleText

MAX_RULE_FILE: Final = 8 << 20  # bytes; 1,000 rules of 4,096 characters and their comments


def read_rules(config: Config) -> list[RuleText]:
    """The rules as they were written: those of `filter_file` first, then those of `filter`.

    Empty lines and lines of comment are left out; a comment behind a rule is the grammar's.
    """
    path = config[options.FILTER_FILE]
    try:
        return list_rules(config, _list_lines(path) if path is not None else ())
    except ConfigError as error:
        if isinstance(
            error.__cause__, OSError | KindError
        ):  # nothing is wrong in the file: it is the wrong one
            error.origin = f"{config.locate(options.FILTER_FILE)}: {error.origin}"
        raise


def list_rules(
    config: Config,
    lines: Iterable[tuple[str, str]] = (),
    option: Option[tuple[str, ...]] = options.FILTER,
) -> list[RuleText]:
    """The rules of an option behind these lines and their origins. ConfigError for too many."""
    rules: list[RuleText] = []
    for text, origin in chain(lines, zip(config[option], config.origins(option), strict=True)):
        if not all(line.startswith("#") for line in map(str.strip, text.splitlines()) if line):
            rules.append(RuleText(text.strip(), origin))
        if len(rules) > MAX_ITEMS:
            raise ConfigError(f"more than {MAX_ITEMS:,} rules", origin=origin)
    return rules


def _list_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that hold something, with their origins, one at a time: a file of empty ones took a gigabyte."""
    for number, line in enumerate(StringIO(read_text(path, MAX_RULE_FILE)), 1):
        if line != "\n" and not line.startswith("#") and (text := line.strip()):
            yield text, f"{path}:{number}"
