"""Defaults < file < environment < command line -> a frozen Config that knows where each value comes from.

All mistakes are found in one go, each with its origin, and with any of them there is no Config.
"""

import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar, cast

from conntrackd.config import named, options, together
from conntrackd.config.document import Entry, Node, Scalar, Section, read_document
from conntrackd.config.named import NamedSink
from conntrackd.config.nodes import list_items
from conntrackd.config.option import Keys, Option
from conntrackd.config.options import OPTIONS
from conntrackd.config.values import OFF_WORDS, BadValueError, check_characters, parse_flag
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors
from conntrackd.text import find_near, find_one_typo, quote

T = TypeVar("T")

ETC: Final = Path("/etc/conntrackd")
SUFFIXES: Final = (".yaml", ".yml", ".json", ".toml")
FOLDER: Final = "conntrackd.d"
PREFIX: Final = "CONNTRACKD_"
ENVIRONMENT: Final = "environment"
DEFAULT: Final = "default"
SERVICE_MANAGER: Final = "STATE_DIRECTORY"  # the variable of systemd.exec(5)
# No settings: engine.VARIABLE, and what lets the package be installed beside conntrack-tools' daemon.
FOREIGN_VARIABLES: Final = frozenset({"CONNTRACKD_ENGINE", "CONNTRACKD_REPLACE"})
# Endings that packages, editors and people give to files that are not to be read.
LEFT_OVER: Final = re.compile(
    r"~$|\.(bak|old|orig|save|sw[a-z]|tmp|disabled|off|sample|example|dist|md|txt|(rpm|dpkg-|ucf-)[a-z]+)$|README"
)
MAX_MISTAKES: Final = 100  # that are shown; a file of another program has one on each line

KEYS: Final = Keys(OPTIONS, [named.SECTION])


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, where it was set, and for a list from a file where each item stands."""

    value: object
    origin: str
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `paths` are the files that were read, in their order."""

    settings: Mapping[str, Setting]
    paths: tuple[Path, ...] = ()
    warnings: tuple[ConfigError, ...] = ()
    named: Mapping[str, NamedSink] = field(default_factory=dict)
    """The sinks beside those of the kinds' names."""
    sink: NamedSink | None = None
    """Whose settings the options `sink.KIND.*` are here; None where they are those of the kind's name."""

    def view(self, name: str) -> "Config":
        """The same where the options of a kind are those of the sink of this name."""
        return replace(self, sink=self.named.get(name))

    def list_views(self) -> Iterator[tuple[str, str, "Config"]]:
        """Name, kind and view of every sink, enabled or not."""
        for kind in named.KINDS:
            yield kind, kind, self.view(kind)
        for sink in self.named.values():
            yield sink.name, sink.kind, self.view(sink.name)

    def has(self, sink: NamedSink) -> bool:
        """Whether it names the sink, too, and as the same kind."""
        return sink.name in self.named and self.named[sink.name].kind == sink.kind

    def resolve(self, option: Option[T]) -> Option[T]:
        """The option whose setting this one is here. KeyError for one of another kind than the sink's."""
        if self.sink is None or not option.key.startswith("sink."):
            return option
        return cast(Option[T], self.sink.options[option.key])

    def __getitem__(self, option: Option[T]) -> T:
        """The value of an option, in the option's type."""
        return cast(T, self._get_setting(option).value)

    def _get_setting(self, option: Option[object]) -> Setting:
        return self.settings[self.resolve(option).key]

    def origin(self, option: Option[object]) -> str:
        """`file:line`, the variable, the flag, or `default`."""
        return self._get_setting(option).origin

    def is_set(self, option: Option[object]) -> bool:
        """Whether anybody has set it, to whatever."""
        return self._get_setting(option).origin != DEFAULT

    def origins(self, option: Option[object]) -> tuple[str, ...]:
        """Where each item of a list stands."""
        return self._get_setting(option).origins

    def locate(self, option: Option[object], item: int = -1) -> str:
        """A setting's name, and where it was made; `item`: of a list, this one."""
        option = self.resolve(option)
        origins = self.origins(option)
        origin = origins[item] if 0 <= item < len(origins) else self.origin(option)
        if origin in (option.flag, option.variable, SERVICE_MANAGER):
            return origin
        return option.key if origin == DEFAULT else f"{origin}: {option.key}"

    def explain(self, option: Option[object], message: str, hint: str = "", joint: str = " ") -> ConfigError:
        """What is wrong with a setting, where it was made. A flag or variable names it already."""
        option = self.resolve(option)
        origin = self.origin(option)
        named = origin in (option.flag, option.variable, SERVICE_MANAGER)
        origin = "" if origin == DEFAULT else origin
        return ConfigError(message if named else f"{option.key}{joint}{message}", hint=hint, origin=origin)


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings as far as they can be understood, and all that is wrong with them."""

    config: Config
    mistakes: tuple[ConfigError, ...]
    unsure: frozenset[str]
    """Keys and sections with mistakes in them; the empty one where it could be any."""

    def knows(self, *keys: str) -> bool:
        """Whether nothing that is wrong can have to do with these."""
        return not any(key.startswith(part) or part.startswith(key) for key in keys for part in self.unsure)


def read_config(
    overrides: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    path: str | Path | None = None,
    etc: Path = ETC,
) -> Config:
    """The settings of flags (`overrides`, by key), environment and files.

    Raises ConfigError or ManyErrors.
    """
    reading = read_all(overrides, environ, path, etc)
    raise_mistakes(reading.mistakes)
    return reading.config


def read_all(
    overrides: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    path: str | Path | None = None,
    etc: Path = ETC,
) -> Reading:
    """As read_config(), whatever is wrong.

    Without a path it is the first of conntrackd.yaml, .yml, .json and .toml in `etc`, and over it those
    of conntrackd.d there in the order of their names; a path replaces all of them. A later file
    replaces the values of an earlier one key by key, lists as a whole.
    """
    draft = _Draft()
    draft.add_service_manager(environ)
    paths = [Path(path)] if path is not None else []
    if path is None and not stands_alone(overrides, environ):
        paths = _list_files(etc, draft)
    for file in paths:
        draft.add_file(file)
    draft.add_sinks(environ, overrides)
    draft.add_environment(environ)
    draft.add_flags(overrides)
    return draft.finish(tuple(paths))


def read_fragment(path: Path, etc: Path = ETC) -> Reading:
    """One file of conntrackd.d, wherever it is now; what it needs of others is not asked."""
    draft = _Draft()
    draft.add_file(path, etc / FOLDER)
    draft.add_sinks({}, {}, alone=True)
    return draft.finish((path,), alone=True)


def stands_alone(overrides: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> bool:
    """Whether the command line says what is to be done, so that the machine's own files are not meant.

    A replay would write old events into the sinks of the service, and a second process new ones twice.
    """
    if options.CONNTRACK_REPLAY.key in overrides or environ.get(options.CONNTRACK_REPLAY.variable):
        return True
    switches = {key: texts[-1] for key, texts in overrides.items() if texts and key.endswith(".enable")}
    wanted = [text for key, text in switches.items() if key.startswith("sink.")]
    for key in overrides:
        if key.startswith(f"{named.SECTION}.") and key.endswith(".kind"):  # it makes one, that is on
            wanted.append(switches.get(f"{key.removesuffix('kind')}enable", "true"))
    return any(map(_is_true, wanted))


def _is_true(text: str) -> bool:
    try:
        return parse_flag(text)
    except BadValueError:
        return False


def get_host(config: Config) -> str:
    """What records call this host: text on one line, whatever bytes the kernel has for its name."""
    name = config[options.HOST] or socket.gethostname()
    text = name.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(char if char.isprintable() and char not in " \ufffd" else "?" for char in text)


def raise_mistakes(mistakes: Sequence[ConntrackdError]) -> None:
    """Raise the one mistake, or all of them at once; do nothing without one."""
    if len(mistakes) > MAX_MISTAKES:
        raise ManyErrors([*mistakes[:MAX_MISTAKES], ConfigError("more mistakes are not shown")])
    if len(mistakes) > 1:
        raise ManyErrors(mistakes)
    if mistakes:
        raise mistakes[0]


def _list_files(etc: Path, draft: "_Draft") -> list[Path]:
    """The files to read, in their order. What stands beside them and is not read is a warning."""
    # lexists: a link whose target is missing is a mistake to report, and no reason to read the next file
    main = [path for path in (etc / f"conntrackd{suffix}" for suffix in SUFFIXES) if os.path.lexists(path)]
    for path in main[1:]:
        draft.warnings.append(ConfigError(f"is ignored, because {main[0]} exists", origin=str(path)))
    folder = etc / FOLDER
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        for directory in (etc, folder):
            draft.check_folder(directory)
    except FileNotFoundError:
        names = []
    except OSError as error:
        draft.fail_file(ConfigError(f"cannot be read: {error.strerror}", origin=str(folder)))
        names = []
    for name in names:
        if not name.endswith(SUFFIXES) and not LEFT_OVER.search(name):
            hint = f"only files ending in {', '.join(SUFFIXES)} are read"
            draft.warnings.append(ConfigError("is ignored", hint=hint, origin=str(folder / name)))
    return main[:1] + [folder / name for name in names if name.endswith(SUFFIXES)]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a value stands. `names_key` where the origin names the option already; `folder` of a file."""

    origin: str
    names_key: bool = False
    folder: Path | None = None
    origins: tuple[str, ...] = ()


class _Draft:
    """Settings while they are gathered, and all that is wrong with them."""

    def __init__(self) -> None:
        self.settings = {option.key: Setting(option.default, DEFAULT) for option in OPTIONS}
        self.mistakes: list[ConfigError] = []
        self.warnings: list[ConfigError] = []
        self.unsure: set[str] = set()
        self._folder = Path()
        self._keys = KEYS
        self._mentions: Mapping[str, named.Mention] = {}
        self._sinks: dict[str, NamedSink] = {}
        self._deferred: list[named.Deferred] | None = []
        """What files say of named sinks, until add_sinks()."""

    def finish(self, paths: tuple[Path, ...], *, alone: bool = False) -> Reading:
        """What has come of it. `alone`: where the rest of the settings is not known."""
        unsure = frozenset(self.unsure)
        config = Config(MappingProxyType(self.settings), paths, named=MappingProxyType(self._sinks))
        reading = Reading(config, tuple(self.mistakes), unsure)
        if alone:
            return reading
        mistakes, warnings = (
            [issue.to_error(reading.config) for issue in issues if reading.knows(*issue.keys)]
            for issues in (together.list_mistakes(reading.config), together.list_warnings(reading.config))
        )
        config = replace(reading.config, warnings=(*self.warnings, *warnings))
        return Reading(config, (*self.mistakes, *mistakes), unsure)

    def fail_file(self, error: ConfigError) -> None:
        """Note the mistake, and that what the file would have set is unknown."""
        self.mistakes.append(error)
        self.unsure.add("")

    def check_folder(self, folder: Path) -> None:
        """Who may add files to it decides what is logged, and where to. Raises OSError."""
        if folder.stat().st_mode & stat.S_IWOTH:
            hint = f"chmod o-w '{folder}'"
            self.fail_file(ConfigError("is writable by every user", hint=hint, origin=str(folder)))

    def add_file(self, path: Path, folder: Path | None = None) -> None:
        """`folder`: where its paths are looked for, if that is not beside it."""
        self._folder = path.parent if folder is None else folder
        try:
            os.fspath(path).encode()
            self._add_section(read_document(path), "", path, {})
        except UnicodeEncodeError:
            self.fail_file(ConfigError(f"the name of {quote(os.fspath(path))} is not UTF-8 text"))
        except ConfigError as error:
            self.fail_file(error)

    def add_service_manager(self, environ: Mapping[str, str]) -> None:
        """The directory that systemd made for the service (systemd.exec(5), StateDirectory=)."""
        directory = environ.get(SERVICE_MANAGER, "").split(":")[0]
        if directory:
            self.set(options.STATE_DIRECTORY, [directory], _Source(SERVICE_MANAGER))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Ours, and those that an orchestrator or another program gives the same beginning."""
        for name in sorted(name for name in environ if name.startswith(PREFIX) and environ[name]):
            option = self._keys.by_variable.get(name)
            if option is not None:
                self.set(option, option.kind.split(environ[name]), _Source(name, names_key=True))
            elif name not in FOREIGN_VARIABLES:
                self._note_unknown(name)

    def add_sinks(
        self, environ: Mapping[str, str], overrides: Mapping[str, Sequence[str]], *, alone: bool = False
    ) -> None:
        """What the files say of named sinks, for which all that is said of their kinds has to be known.

        `alone`: where another file may say it.
        """
        deferred, self._deferred = self._deferred or [], None
        self._mentions = named.read_mentions(deferred, environ, overrides)
        sections = [named.SECTION]
        extra: list[Option[object]] = []
        for name, mention in self._mentions.items():
            sections.append(f"{named.SECTION}.{name}")
            extra.append(named.make_kind_option(name))
            if mention.known_kind:
                self._sinks[name] = sink = named.make_sink(name, mention.known_kind)
                extra += sink.options.values()
        self._keys = Keys([*OPTIONS, *extra], sections)
        self.settings |= {option.key: Setting(option.default, DEFAULT) for option in extra}
        for entry, prefix, path, self._folder, seen in deferred:
            self._add_section(Section([entry]), prefix, path, seen)
        for name, mention in self._mentions.items() if not alone else ():
            key = f"{named.SECTION}.{name}"
            if not mention.kind and not {key, f"{key}.kind"} & self.unsure:
                hint = f"add {key}.kind: one of {', '.join(named.KINDS)}"
                self._fail(key, "has no kind", hint, mention.origin)

    def add_flags(self, overrides: Mapping[str, Sequence[str]]) -> None:
        """What the command line says, by key."""
        for key, texts in overrides.items():
            option = self._keys.by_key.get(key)
            if option is None:
                self._refuse_key(key, f"--{key}")
                continue
            # A list may be given in parts; of any other option the last word counts.
            items = [item for text in texts for item in option.kind.split(text)]
            self.set(
                option, items if option.kind.separator else items[-1:], _Source(option.flag, names_key=True)
            )

    def _note_unknown(self, name: str) -> None:
        known_names = self._keys.by_variable
        near = name.upper() if name.upper() in known_names else find_one_typo(name, known_names)
        message = f"unknown variable {quote(name)}"
        if near:
            self.unsure.add(known_names[near].key)
            self.mistakes.append(ConfigError(message, hint=f"did you mean {near}?", origin=ENVIRONMENT))
        else:
            rest = {known.removeprefix(PREFIX): known for known in known_names}
            meant = find_near(name.removeprefix(PREFIX), rest)
            hint = f"did you mean {rest[meant]}?" if meant else "'conntrackd run --help' shows all options"
            hint = ": ".join(named.explain_variable(name) or (hint,))
            self.warnings.append(ConfigError(f"{message}, ignoring", hint=hint, origin=ENVIRONMENT))

    def set(self, option: Option[object], items: Sequence[str], source: _Source) -> None:
        """Parse the value and set it over what was there."""
        try:
            if len(items) > option.kind.max_items:
                raise BadValueError("", f"has {len(items)} items, the maximum is {option.kind.max_items}")
            for item in items:
                check_characters(item)
            if option.is_optional and len(items) == 1 and items[0].lower() in OFF_WORDS:
                self.settings[option.key] = Setting(option.kind.off, source.origin)
                return
            if option.kind.is_path and source.folder is not None:
                items = [option.kind.resolve_path(source.folder, item) for item in items]
            value = option.kind.parse(items)
        except BadValueError as error:
            faults = option.kind.list_faults(items) if len(items) <= option.kind.max_items else []
            for number, fault in faults or [(-1, error)]:
                origin = source.origins[number] if source.origins and number >= 0 else source.origin
                self._refuse(option, fault, replace(source, origin=origin))
            return
        origins = source.origins or (source.origin,) * len(items)
        self.settings[option.key] = Setting(value, source.origin, origins)

    def _refuse(self, option: Option[object], error: BadValueError, source: _Source) -> None:
        shown = "" if not error.text else "the value " if option.secret else f"{quote(error.text)} "
        self._fail(option.key, f"{shown}{error.message}", error.hint, source.origin, source.names_key)

    def _fail(self, key: str, message: str, hint: str, origin: str, names_key: bool = False) -> None:
        text = message if names_key else f"{key}: {message}"
        self.unsure.add(key)
        self.mistakes.append(ConfigError(text, hint=hint, origin=origin))

    def _add_section(self, table: Section, prefix: str, path: Path, seen: dict[str, str]) -> None:
        for entry in table.entries:
            if len(self.mistakes) > MAX_MISTAKES:
                return  # to look for near misses takes 70 us a key, and nobody reads on
            key = prefix + entry.key
            origin = _origin(path, entry.line)
            if self._deferred is not None and key.partition(".")[0] == named.SECTION:
                self._deferred.append(named.Deferred(entry, prefix, path, self._folder, seen))
                continue
            if key in seen:
                self._fail(key, "is given twice", f"first in {seen[key]}" if entry.line else "", origin)
            elif key in self._keys.by_key:
                self._set_node(self._keys.by_key[key], entry.node, path, origin)
            elif key in self._keys.sections:
                self._add_subsection(key, entry, path, seen)
            else:
                self._refuse_key(key, origin)
            seen.setdefault(key, origin)

    def _refuse_key(self, key: str, origin: str) -> None:
        """One that there is not, with the one that was meant."""
        if key.startswith(f"{named.SECTION}."):
            fault = named.explain_key(key, self._mentions, self._sinks)
        else:
            fault = named.explain_setting(key) or (f"unknown key {quote(key)}", self._keys.suggest(key))
        if fault is not None:
            self.unsure.add(self._keys.get_section(key))
            self.mistakes.append(ConfigError(fault[0], hint=fault[1], origin=origin))

    def _add_subsection(self, key: str, entry: Entry, path: Path, seen: dict[str, str]) -> None:
        match entry.node:
            case Section():
                self._add_section(entry.node, f"{key}.", path, seen)
            case Scalar(type="null"):
                pass  # every key in it is commented out
            case _:
                hint = f"its keys are: {self._keys.list_inside(key)}"
                hint = named.EXAMPLE if key == named.SECTION else hint
                self._fail(key, "is a section and has no value of its own", hint, _origin(path, entry.line))

    def _set_node(self, option: Option[object], node: Node, path: Path, origin: str) -> None:
        lines: list[tuple[str, int]] = []
        is_right = True
        try:
            for item, line in list_items(option, node):
                if len(self.mistakes) > MAX_MISTAKES:
                    return  # a list may have a million
                if isinstance(item, BadValueError):
                    is_right = False
                    self._refuse(option, item, _Source(_origin(path, line)))
                else:
                    lines.append((item, line))
        except BadValueError as error:
            self._refuse(option, error, _Source(origin))
            return
        if not (lines or is_right):
            return
        origins = tuple(_origin(path, line) for _, line in lines)
        source = _Source(origin, folder=self._folder, origins=origins)
        self.set(option, [text for text, _ in lines], source)


def _origin(path: Path, line: int) -> str:
    return f"{path}:{line}" if line else str(path)


def check_sinks(config: Config) -> None:
    """Raise where no sink is enabled: nobody starts a logger that logs nowhere."""
    switches = [option for option in OPTIONS if re.fullmatch(r"sink\..*\.enable", option.key)]
    own = [sink.enable for sink in config.named.values()]
    if not any(config[option] for option in [*switches, *own]):
        file = config.paths[-1] if config.paths else ETC / "conntrackd.yaml"
        flags = ", ".join(switch.flag for switch in switches)
        hint = f"one of {flags} on the command line, or 'sink.journal.enable: true' in {file}"
        raise ConfigError("no sink is enabled: events would go nowhere", hint=hint)


def changed(old: Config, new: Config) -> list[Option[object]]:
    """The options that differ; `reload` of each says whether a reload can apply it.

    Of the sinks that only one of them names, or as another kind, there is none.
    """
    own = [option for sink in new.named.values() for option in sink.options.values() if old.has(sink)]
    return [option for option in (*OPTIONS, *own) if old[option] != new[option]]


def list_unapplied(changes: Iterable[Option[object]]) -> list[Option[object]]:
    """Those of the changed options that wait for a restart."""
    return [option for option in changes if not option.reload]
