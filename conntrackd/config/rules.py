"""What rules the configuration has, as texts with where each stands, and the sets that they name, read."""

from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from conntrackd.config import options
from conntrackd.config.document import read_text
from conntrackd.config.option import Option
from conntrackd.config.read import Config
from conntrackd.config.values import MAX_ITEMS
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors
from conntrackd.files import KindError
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.sets import MAX_ENTRIES, AddressSet, Sets, read_set

MAX_RULE_FILE: Final = 8 << 20  # bytes; 1,000 rules of 4,096 characters and their comments
# On the command line and in the environment the origin is the setting already.
NAMES_SETTING: Final = (options.SETS.flag, options.SETS.variable)


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
    config: Config, lines: Iterable[tuple[str, str]] = (), option: Option[tuple[str, ...]] = options.FILTER
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


# ---- sets -------------------------------------------------------------------------------------------------


class SetFile(NamedTuple):
    """A set, and where the configuration names it."""

    name: str
    path: Path
    origin: str

    def read(self, room: int) -> AddressSet:
        """Raises ConfigError, of the setting's origin where the file cannot be read, and ManyErrors."""
        try:
            return read_set(self.name, self.path, room)
        except ConfigError as error:
            if not error.origin:
                error.origin = self.origin
                named = "" if self.origin in NAMES_SETTING else f"{options.SETS.key}: "
                error.message = f"{named}{self.name}: {error.message}"
            raise


def list_set_files(config: Config) -> Iterator[SetFile]:
    """In the order of the setting."""
    for (name, path), origin in zip(config[options.SETS], config.origins(options.SETS), strict=True):
        yield SetFile(name, path, origin)


def try_sets(files: Iterable[SetFile], room: int) -> Iterator[tuple[SetFile, AddressSet | ConntrackdError]]:
    """Each of them, or what is wrong with it; all that can be read share the room for entries."""
    for file in files:
        try:
            found = file.read(room)
        except (ConfigError, ManyErrors) as error:
            yield file, error
        else:
            room -= found.entries
            yield file, found


def read_sets(config: Config) -> Sets:
    """All of them, or ManyErrors for what is wrong with any of them. Takes a second for a million lines."""
    return MappingProxyType(read_files(list_set_files(config), MAX_ENTRIES))


def read_files(files: Iterable[SetFile], room: int) -> dict[str, AddressSet]:
    """Likewise, of these."""
    found: dict[str, AddressSet] = {}
    errors: list[ConntrackdError] = []
    for file, result in try_sets(files, room):
        if isinstance(result, AddressSet):
            found[file.name] = result
        else:
            errors += result.errors if isinstance(result, ManyErrors) else [result]
    if errors:
        raise ManyErrors(errors)
    return found
