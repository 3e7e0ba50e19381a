"""Defaults < file < environment < command line -> a frozen Config that knows where each value comes from.

All mistakes are found in one go, each with its place, and with any of them there is no Config.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar, cast

from conntrackd import options
from conntrackd.document import Entry, Items, Node, Scalar, Table, read_document, read_text
from conntrackd.errors import ConfigError, ManyErrors
from conntrackd.filter.text import RuleText
from conntrackd.flow import EventType
from conntrackd.options import OPTIONS, Option
from conntrackd.values import MAX_ITEMS, BadValueError, Kind, find_near, quote, suggest

T = TypeVar("T")

ETC: Final = Path("/etc/conntrackd")
SUFFIXES: Final = (".yaml", ".yml", ".json", ".toml")
PREFIX: Final = "CONNTRACKD_"
# Not a setting: it tells the package's installation to go on where conntrack-tools' daemon is running.
FOREIGN_VARIABLES: Final = frozenset({"CONNTRACKD_REPLACE"})
MAX_RULE_FILE: Final = 8 << 20  # bytes; 1,000 rules of 4,096 characters and their comments
MAX_MISTAKES: Final = 100  # that are shown; a file of another program has one on each line

BY_KEY: Final = {option.key: option for option in OPTIONS}
BY_VARIABLE: Final = {option.variable: option for option in OPTIONS}
SECTIONS: Final = frozenset(
    key[:index] for key in BY_KEY for index, character in enumerate(key) if character == "."
)
NOUNS: Final = {"text": "text", "number": "number", "flag": "boolean", "date": "date"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, where it was set, and for a list from a file where each item stands."""

    value: object
    origin: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `paths` are the files that were read, in their order."""

    settings: Mapping[str, Setting]
    paths: tuple[Path, ...] = ()

    def __getitem__(self, option: Option[T]) -> T:
        """The value of an option, in the option's type."""
        return cast(T, self.settings[option.key].value)

    def origin(self, option: Option[object]) -> str:
        """`file:line`, the variable, the flag, or `default`."""
        return self.settings[option.key].origin

    def places(self, option: Option[object]) -> tuple[str, ...]:
        """Where each item of a list stands."""
        return self.settings[option.key].places


def read_config(
    overrides: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    path: str | Path | None = None,
    etc: Path = ETC,
) -> Config:
    """The settings of flags (`overrides`, by key), environment and files. Raises ConfigError or ManyErrors.

    Without a path it is the first of conntrackd.yaml, .yml, .json and .toml in `etc`, and over it the
    conntrackd.d/*.yaml there in the order of their names; a path takes the place of all of them. A later file
    replaces the values of an earlier one key by key, lists as a whole.
    """
    draft = _Draft()
    paths = (Path(path),) if path is not None else tuple(_find_files(etc))
    draft.take_service_manager(environ)
    for each in paths:
        draft.take_file(each)
    draft.take_environment(environ)
    for key, texts in overrides.items():
        option = BY_KEY[key]
        # A list may be given in parts; of any other option the last word counts.
        items = [item for text in texts for item in option.kind.split(text)]
        draft.take(
            option, items if option.kind.separator else items[-1:], _Source(option.flag, names_key=True)
        )
    config = Config(MappingProxyType(draft.settings), paths)
    raise_mistakes(draft.mistakes)
    raise_mistakes(list(_check_together(config)))
    return config


def raise_mistakes(mistakes: Sequence[ConfigError]) -> None:
    """Nothing, the mistake, or all mistakes at once."""
    if len(mistakes) > MAX_MISTAKES:
        raise ManyErrors([*mistakes[:MAX_MISTAKES], ConfigError("more mistakes are not shown")])
    if len(mistakes) > 1:
        raise ManyErrors(mistakes)
    if mistakes:
        raise mistakes[0]


def _find_files(etc: Path) -> Iterator[Path]:
    # lexists: a link whose target is missing is a mistake to be told, and no reason to take the next file
    yield from [path for path in (etc / f"conntrackd{each}" for each in SUFFIXES) if os.path.lexists(path)][
        :1
    ]
    folder = etc / "conntrackd.d"
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".yaml") and name[0] != ".")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=str(folder)) from error
    yield from (folder / name for name in names)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a value stands. `names_key` where the place tells the option already; `folder` of a file."""

    place: str
    names_key: bool = False
    folder: Path | None = None
    places: tuple[str, ...] = ()


class _Draft:
    """Settings while they are gathered, and all that is wrong with them."""

    def __init__(self) -> None:
        self.settings = {option.key: Setting(option.default, "default") for option in OPTIONS}
        self.mistakes: list[ConfigError] = []

    def take_file(self, path: Path) -> None:
        try:
            self._take_table(read_document(path), "", path, {})
        except ConfigError as error:
            self.mistakes.append(error)

    def take_service_manager(self, environ: Mapping[str, str]) -> None:
        """The directory that systemd made for the service (systemd.exec(5), StateDirectory=)."""
        directory = environ.get("STATE_DIRECTORY", "").split(":")[0]
        if directory:
            self.take(options.STATE_DIRECTORY, [directory], _Source("STATE_DIRECTORY"))

    def take_environment(self, environ: Mapping[str, str]) -> None:
        for name in sorted(name for name in environ if name.startswith(PREFIX)):
            option = BY_VARIABLE.get(name)
            if option is not None:
                self.take(option, option.kind.split(environ[name]), _Source(name, names_key=True))
            elif name not in FOREIGN_VARIABLES:
                hint = suggest(name, BY_VARIABLE) or "'conntrackd run --help' shows all options"
                self.mistakes.append(
                    ConfigError(f"unknown variable {quote(name)}", hint=hint, place="environment")
                )

    def take(self, option: Option[object], items: Sequence[str], source: _Source) -> None:
        """Parse the value and set it over what was there."""
        try:
            if len(items) > MAX_ITEMS:
                raise BadValueError("", f"has {len(items)} items, {MAX_ITEMS} are possible")
            for item in items:
                _check_characters(item)
            if option.kind.is_path and source.folder is not None:
                items = [str(source.folder / item) if item else item for item in items]
            value = option.kind.parse(items)
        except BadValueError as error:
            self._refuse(option, error, source, items)
            return
        places = source.places or (source.place,) * len(items)
        self.settings[option.key] = Setting(value, source.place, places)

    def _refuse(
        self, option: Option[object], error: BadValueError, source: _Source, items: Sequence[str]
    ) -> None:
        place = source.place
        if source.places and error.text in items:
            place = source.places[list(items).index(error.text)]
        shown = "" if not error.text else "the value " if option.secret else f"{quote(error.text)} "
        self._fail(option.key, f"{shown}{error.message}", error.hint, place, source.names_key)

    def _fail(self, key: str, message: str, hint: str, place: str, names_key: bool = False) -> None:
        text = message if names_key else f"{key}: {message}"
        self.mistakes.append(ConfigError(text, hint=hint, place=place))

    def _take_table(self, table: Table, prefix: str, path: Path, seen: dict[str, str]) -> None:
        for entry in table.entries:
            if len(self.mistakes) > MAX_MISTAKES:
                return  # to look for near misses takes 70 us a key, and nobody reads on
            key = prefix + entry.key
            place = _place(path, entry.line)
            if key in seen:
                self._fail(key, "is given twice", f"first in {seen[key]}" if entry.line else "", place)
            elif key in BY_KEY:
                self._take_node(BY_KEY[key], entry.node, path, place)
            elif key in SECTIONS:
                self._take_section(key, entry, path, seen)
            else:
                hint = _suggest_key(key)
                self.mistakes.append(ConfigError(f"unknown key {quote(key)}", hint=hint, place=place))
            seen.setdefault(key, place)

    def _take_section(self, key: str, entry: Entry, path: Path, seen: dict[str, str]) -> None:
        match entry.node:
            case Table():
                self._take_table(entry.node, f"{key}.", path, seen)
            case Scalar(type="null"):
                pass  # every key in it is commented out
            case _:
                hint = f"its keys are: {_list_keys(key)}"
                self._fail(key, "is a section and has no value of its own", hint, _place(path, entry.line))

    def _take_node(self, option: Option[object], node: Node, path: Path, place: str) -> None:
        try:
            lines = list(_list_items(option, node))
        except BadValueError as error:
            self._refuse(option, error, _Source(place), ())
            return
        source = _Source(place, folder=path.parent, places=tuple(_place(path, line) for _, line in lines))
        self.take(option, [text for text, _ in lines], source)


def _place(path: Path, line: int) -> str:
    return f"{path}:{line}" if line else str(path)


def _list_items(option: Option[object], node: Node) -> Iterator[tuple[str, int]]:
    """Texts and their lines: the items of a list, those in one text, or the one value."""
    kind = option.kind
    match node:
        case Table():
            raise BadValueError("", f"takes {kind.takes}, not a section")
        case Items() if not kind.separator:
            raise BadValueError("", f"takes {kind.takes}, not a list")
        case Items():
            for item in node.items:
                if not isinstance(item, Scalar):
                    raise BadValueError("", f"takes {kind.takes}, not a list or section in a list")
                _check_type(kind, item)
                yield item.text, item.line
        case Scalar():
            _check_type(kind, node)
            lines = node.text.split("\n") if kind.separator == "\n" else [node.text]
            for number, text in enumerate(lines):
                yield from ((item, node.line and node.line + number) for item in kind.split(text))


def _check_type(kind: Kind[object], scalar: Scalar) -> None:
    if scalar.type == "null":
        raise BadValueError("", "has no value", f"give it {kind.takes}, or leave the key out")
    if scalar.type != "text" and scalar.type not in kind.scalars:
        hint = "put it into quotes" if not kind.scalars else ""
        raise BadValueError(scalar.text, f"is a {NOUNS[scalar.type]}, and it takes {kind.takes}", hint)


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of the command line or environment, or a lone \ud800 in JSON
        raise BadValueError(text, "is no UTF-8 text") from error


def _list_keys(section: str) -> str:
    depth = len(section) + 1 if section else 0
    inside = [key[depth:] for key in BY_KEY if key.startswith(f"{section}." if section else "")]
    return ", ".join(dict.fromkeys(key.split(".")[0] for key in inside))


def _suggest_key(key: str) -> str:
    """The nearest key of the section that it stands in; of no section, one whose last words it is."""
    parts = key.split(".")
    section = next(
        (name for n in range(len(parts) - 1, 0, -1) if (name := ".".join(parts[:n])) in SECTIONS), ""
    )
    prefix = f"{section}." if section else ""
    same_end = [known for known in BY_KEY if known.endswith(f".{key}")]
    if len(same_end) == 1:
        return f"did you mean {same_end[0]}?"
    inside = [known for known in (*BY_KEY, *sorted(SECTIONS)) if known.startswith(prefix)]
    by_rest = {known.removeprefix(prefix): known for known in inside}
    near = find_near(key.removeprefix(prefix), by_rest)
    return f"did you mean {by_rest[near]}?" if near else f"known here: {_list_keys(section)}"


def _check_together(config: Config) -> Iterator[ConfigError]:
    """What is right alone and wrong together."""
    # Not the other way round: the password may be a credential of systemd's.
    yield from _check_need(config, options.SINK_LOKI_PASSWORD_FILE, options.SINK_LOKI_USERNAME)
    yield from _check_pair(config, options.SINK_LOKI_TLS_CERT, options.SINK_LOKI_TLS_KEY)
    yield from _check_pair(config, options.SINK_SYSLOG_TLS_CERT, options.SINK_SYSLOG_TLS_KEY)
    if config[options.SINK_LOKI_TOKEN_FILE] and config[options.SINK_LOKI_USERNAME]:
        yield _refuse_use(
            config, options.SINK_LOKI_TOKEN_FILE, "and sink.loki.username exclude each other", ""
        )
    yield from _check_events(config)
    loki = config[options.SINK_LOKI_ADDRESS]
    syslog = config[options.SINK_SYSLOG_ADDRESS]
    tls = {
        options.SINK_LOKI_TLS_CA: (loki, "https"),
        options.SINK_LOKI_TLS_CERT: (loki, "https"),
        options.SINK_SYSLOG_TLS_CA: (syslog, "tls"),
        options.SINK_SYSLOG_TLS_CERT: (syslog, "tls"),
    }
    for option, (address, scheme) in tls.items():
        if config[option] and not address.startswith(f"{scheme}://"):
            yield _refuse_use(
                config, option, f"has no effect on {address}", f"an address with {scheme}:// is needed"
            )
    if config[options.SINK_SYSLOG_SPOOL] and not syslog.startswith(("tcp://", "tls://")):
        hint = "only TCP and TLS tell whether the server is there"
        yield _refuse_use(config, options.SINK_SYSLOG_SPOOL, f"has no effect on {syslog}", hint)


def _check_events(config: Config) -> Iterator[ConfigError]:
    """What is about events of one type takes these."""
    needs = {
        options.CONNTRACK_RELIABLE: (config[options.CONNTRACK_RELIABLE], EventType.DESTROY),
        options.CONNTRACK_RESYNC: (config[options.CONNTRACK_RESYNC] != "off", EventType.NEW),
        options.CONNTRACK_SNAPSHOT: (config[options.CONNTRACK_SNAPSHOT], EventType.NEW),
    }
    for option, (is_set, needed) in needs.items():
        if is_set and not config[options.CONNTRACK_EVENTS] & needed:
            name = str(needed.name).lower()
            hint = f"add {name} to conntrack.events"
            yield _refuse_use(config, option, f"has no effect without {name} events", hint)


def _check_pair(config: Config, first: Option[object], second: Option[object]) -> Iterator[ConfigError]:
    yield from _check_need(config, first, second)
    yield from _check_need(config, second, first)


def _check_need(config: Config, option: Option[object], needed: Option[object]) -> Iterator[ConfigError]:
    if config[option] and not config[needed]:
        yield _refuse_use(config, option, "is of no use alone", f"set {needed.key} too")


def _refuse_use(config: Config, option: Option[object], message: str, hint: str) -> ConfigError:
    return ConfigError(f"{option.key} {message}", hint=hint, place=config.origin(option))


def check_sinks(config: Config) -> None:
    """Raise where no sink is enabled: nobody starts a logger that logs nowhere."""
    switches = [each for each in OPTIONS if each.key.startswith("sink.") and each.key.endswith(".enable")]
    if not any(config[each] for each in switches):
        file = config.paths[-1] if config.paths else ETC / "conntrackd.yaml"
        flags = ", ".join(each.flag for each in switches)
        hint = f"one of {flags} on the command line, or 'sink.journal.enable: true' in {file}"
        raise ConfigError("no sink is enabled, so that events would go nowhere", hint=hint)


def read_rules(config: Config) -> list[RuleText]:
    """The rules as they were written: those of `filter_file` first, then those of `filter`.

    Empty lines and lines of comment are left out; a comment behind a rule is the grammar's.
    """
    rules: list[RuleText] = []
    path = config[options.FILTER_FILE]
    lines = _list_lines(path) if path is not None else ()
    for text, place in chain(lines, zip(config[options.FILTER], config.places(options.FILTER), strict=True)):
        if text and not text.startswith("#"):
            rules.append(RuleText(text, place))
        if len(rules) > MAX_ITEMS:
            raise ConfigError(f"more than {MAX_ITEMS:,} rules", place=place)
    return rules


def _list_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that hold something, with their places, one at a time: a file of empty ones took a gigabyte."""
    for number, line in enumerate(StringIO(read_text(path, MAX_RULE_FILE)), 1):
        if line != "\n" and not line.startswith("#") and (text := line.strip()):
            yield text, f"{path}:{number}"


def changed(old: Config, new: Config) -> list[Option[object]]:
    """The options that differ; `reload` of each says whether a reload can apply it."""
    return [option for option in OPTIONS if old[option] != new[option]]


def find_unapplied(changes: Iterable[Option[object]]) -> list[Option[object]]:
    """Those of the changed options that wait for a restart."""
    return [option for option in changes if not option.reload]
