"""The sets that the configuration names, read."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors
from conntrackd.filter.sets import MAX_ENTRIES, AddressSet, Sets, read_set

# On the command line and in the environment the origin is the setting already.
NAMES_SETTING: Final = (options.SETS.flag, options.SETS.variable)


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
