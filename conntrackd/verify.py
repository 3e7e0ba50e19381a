"""What `conntrackd check` tries: all that the daemon needs from this machine, without privilege and network.

Nothing is made or changed: a directory that the daemon would make is looked at from the one above it.
"""

import os
import pwd
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from conntrackd import files
from conntrackd.active_filter import compile_filter, compile_sink_filter, make_scope
from conntrackd.config import options
from conntrackd.config.option import Option
from conntrackd.config.options import TlsOptions
from conntrackd.config.read import ETC, Config, Reading
from conntrackd.config.rules import list_rules, list_set_files, read_rules, try_sets
from conntrackd.delivery.sink import SinkTrouble
from conntrackd.engine import load_engine
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors, UnavailableError
from conntrackd.filter.ast import Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rule
from conntrackd.filter.never import (
    LOGS_NOTHING_HINT,
    list_silence,
    list_unknown_countries,
    list_warnings,
    logs_nothing,
)
from conntrackd.filter.sets import MAX_ENTRIES, AddressSet, Sets, make_empty_set
from conntrackd.geoip.geofile import MAX_BYTES
from conntrackd.metrics.flows import list_conditions, parse_condition
from conntrackd.metrics.service import USE_UNIT, check_library
from conntrackd.netlink import namespace
from conntrackd.render.parse import NEEDED
from conntrackd.sinks import ConfiguredSink, SinkKind, list_sinks
from conntrackd.stats import Stats

if TYPE_CHECKING:  # it costs memory that a daemon without TLS does not need
    import ssl

SERVICE: Final = "conntrackd"
MAX_SECRET: Final = 16 << 20
SET_WORD: Final = re.compile(r"@([\w-]+)")
SUDO: Final = "permission denied; try sudo conntrackd check"


@dataclass(slots=True)
class Report:
    """What is wrong, what is doubtful, and what could not be tried."""

    config: Config
    mistakes: list[ConntrackdError] = field(default_factory=list)
    warnings: list[ConntrackdError] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    """All that can be read, of all filters."""

    def attempt(self, function: Callable[..., object], *arguments: object) -> bool:
        """Do it, and keep what is wrong with it. True where nothing is."""
        try:
            function(*arguments)
        except ManyErrors as error:
            self.mistakes += error.errors
        except ConntrackdError as error:
            if _is_hidden(error.__cause__):
                self.untried.append(f"{error.origin}: {error.message}: {SUDO}")
            else:
                self.mistakes.append(error)
        else:
            return True
        return False

    def fail(self, option: Option[Any], message: str, hint: str = "", item: int = -1) -> None:
        """A setting with which nothing would work; `item`: of a list, this one."""
        self.mistakes.append(ConfigError(message, hint=hint, origin=self.config.locate(option, item)))

    def fail_path(self, option: Option[Any], path: Path, error: OSError, item: int = -1) -> None:
        """The same of a path that cannot be looked at, unless it is only this user who may not."""
        if _is_hidden(error):
            self.untried.append(f"{self.config.resolve(option).key}: {path}: {SUDO}")
        else:
            self.fail(option, f"{path}: {error.strerror}", item=item)


def verify(reading: Reading, *, alone: bool = False) -> Report:
    """All that can be tried. `alone`: of one file, whose rules may name sets of another one."""
    config = reading.config
    report = Report(config, list(reading.mistakes), list(config.warnings))
    known = _verify_sets(report, are_all=not alone and reading.knows(options.SETS.key))
    _verify_rules(report, known)
    countries = _verify_databases(report)
    _verify_namespace(report)
    state = config[options.STATE_DIRECTORY]
    if state is not None:
        _verify_folder(report, options.STATE_DIRECTORY, state)
    for sink in list_sinks(config):
        own = replace(report, config=sink.config)  # and what is found goes to the same lists
        if sink.is_enabled or not sink.config.is_set(
            sink.kind.options.enable
        ):  # of a fragment: maybe elsewhere
            _verify_sink_rules(own, sink.kind, known)
        if sink.is_enabled:
            _verify_sink(own, sink)
    _verify_metrics(report)
    for _, texts in list_conditions(config):
        _verify_texts(report, texts, known, partial(parse_condition, texts))
    report.warnings += list_unknown_countries(report.rules, countries)
    return report


def list_hindrances(config: Config, changes: Iterable[Option[Any]]) -> list[ConntrackdError]:
    """What would keep the next start from working, of the changes that wait for it."""
    report, state = Report(config), config[options.STATE_DIRECTORY]
    waiting = set(changes)
    keys = {option.key for option in waiting}
    if options.STATE_DIRECTORY in waiting and state is not None:
        _verify_folder(report, options.STATE_DIRECTORY, state)
    name = config[options.CONNTRACK_NETNS]
    if options.CONNTRACK_NETNS in waiting and name is not None:
        report.attempt(namespace.check, name, config.locate(options.CONNTRACK_NETNS))
    for sink in list_sinks(config):
        spool, view = sink.kind.spool, sink.config
        folder = sink.kind.find_spool(view) if sink.is_enabled else None
        if spool is not None and folder is not None and view.resolve(spool.path).key in keys:
            _verify_folder(replace(report, config=view), spool.path, folder)
    return report.mistakes


# ---- rules --------------------------------------------------------------------------------------------


def _verify_rules(report: Report, known: "_KnownSets") -> None:
    """Those that can be read, whatever is wrong with the others and with the file."""
    config = report.config
    try:
        texts = read_rules(config)
        path = config[options.FILTER_FILE]
        if path is not None:
            _verify_file(report, options.FILTER_FILE, path)
    except ConfigError as error:
        if _is_hidden(error.__cause__):
            report.untried.append(f"{error.origin}: {SUDO}")
        else:
            report.mistakes.append(error)
        texts = list_rules(config)
    rules = _verify_texts(
        report, texts, known, lambda sets: compile_filter(texts, "", config, load_engine(), sets=sets)
    )
    if len(rules) == len(texts):
        report.warnings += list_silence(rules)


def _verify_sink_rules(report: Report, kind: SinkKind, known: "_KnownSets") -> None:
    config = report.config
    texts = list_rules(config, option=kind.filter)
    rules = _verify_texts(
        report, texts, known, lambda sets: compile_sink_filter(texts, "", config, load_engine(), sets=sets)
    )
    if len(rules) == len(texts) and logs_nothing(rules):
        report.warnings.append(config.explain(kind.filter, "logs no event", LOGS_NOTHING_HINT))


def _verify_texts(
    report: Report, texts: Sequence[RuleText], known: "_KnownSets", compile_all: Callable[[Sets], object]
) -> list[Rule]:
    """Each of these rules and, where all can be read, what they become together. Those that can be read."""
    sets, rules = known.list_for(texts), list[Rule]()
    for number, text in enumerate(texts, 1):
        report.attempt(lambda *rule: rules.append(parse_rule(*rule)), text, number, sets)
    report.rules += rules
    if known.is_whole:
        report.warnings += list_warnings(rules, make_scope(report.config))
    if len(rules) == len(texts):
        report.attempt(compile_all, sets)
    return rules


class _KnownSets(NamedTuple):
    """The sets that rules may name."""

    sets: Sets
    is_whole: bool
    """Each was read: else one may be empty to us alone."""
    are_all: bool
    """Where they are not, another file may have those that are missing."""

    def list_for(self, texts: Sequence[RuleText]) -> Sets:
        """These, and empty ones for the other names where another file may have them."""
        if self.are_all:
            return self.sets
        names = {name.lower() for text in texts for name in SET_WORD.findall(text.text)}
        return {**{name: make_empty_set(name, Path(name)) for name in names}, **self.sets}


def _verify_sets(report: Report, *, are_all: bool) -> _KnownSets:
    """Read the sets; one that cannot be read is empty, so that rules may name it."""
    found: dict[str, AddressSet] = {}
    is_whole = are_all
    for file, result in try_sets(list_set_files(report.config), MAX_ENTRIES):
        if isinstance(result, AddressSet):
            found[file.name] = result
            _warn_of_access(report, options.SETS, file.path)
            continue
        found[file.name], is_whole = make_empty_set(file.name, file.path), False
        if _is_hidden(result.__cause__):
            report.untried.append(f"{options.SETS.key}: {file.path}: {SUDO}")
        else:
            report.mistakes += result.errors if isinstance(result, ManyErrors) else [result]
    return _KnownSets(found, is_whole, are_all)


# ---- what is read -------------------------------------------------------------------------------------


def _verify_databases(report: Report) -> set[str]:
    """The names of the countries that are in them."""
    locale, countries = report.config[options.GEOIP_LOCALE], set[str]()
    for number, path in enumerate(report.config[options.GEOIP_DATABASE]):
        if _verify_file(report, options.GEOIP_DATABASE, path, MAX_BYTES, number):
            # Late, as in daemon.py. Without a directory nothing is kept.
            from conntrackd.geoip.databases import GeoIP  # noqa: PLC0415

            origin = report.config.locate(options.GEOIP_DATABASE, number)
            made = [path], locale, 0, Stats(), None, [origin]
            report.attempt(lambda made=made: countries.update(GeoIP(*made).countries))
    return countries


def _verify_file(
    report: Report, option: Option[Any], path: Path, limit: int = MAX_SECRET, item: int = -1
) -> bool:
    """Whether it is there to be read. The owner of one that is not for us may be who the daemon runs as."""
    try:
        files.open_file(path, limit).close()
    except files.KindError as error:
        report.fail(option, f"{path} {error}", item=item)
    except OSError as error:
        report.fail_path(option, path, error, item)
    else:
        _warn_of_access(report, option, path)
        return True
    return False


def _warn_of_access(report: Report, option: Option[Any], path: Path) -> None:
    if not _may_service_read(report.config, path):
        message = f"{path} cannot be read by user {SERVICE}, which the service runs as"
        hint = f"chgrp {SERVICE} '{path}' && chmod g+r '{path}', and x for its folders"
        report.warnings.append(report.config.explain(option, message, hint, ": "))


def _may_service_read(config: Config, path: Path) -> bool:
    """Asked of the kernel as that user: it knows of groups and access lists. True where that cannot be."""
    if os.geteuid() != 0 or not any(path.is_relative_to(ETC) for path in config.paths):
        return True  # whoever checks another file may run it as somebody else
    try:
        user = pwd.getpwnam(SERVICE)
        groups = os.getgrouplist(SERVICE, user.pw_gid)
        command = ["/usr/bin/test", "-r", os.path.abspath(path)]
        identity: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
        return subprocess.run(command, check=False, cwd="/", **identity).returncode != 1
    except (KeyError, OSError):  # there is no such user, or this root may not become another
        return True


def _is_hidden(error: BaseException | None) -> bool:
    """Whether it is only this user who may not look."""
    return isinstance(error, PermissionError) and os.geteuid() != 0


def _verify_namespace(report: Report) -> None:
    name = report.config[options.CONNTRACK_NETNS]
    if name is None:
        return
    try:
        namespace.check(name)
    except UnavailableError as error:
        report.fail(options.CONNTRACK_NETNS, error.message, error.hint)
        return
    origin = report.config.origin(options.CONNTRACK_NETNS)
    if origin == options.CONNTRACK_NETNS.flag:
        report.untried.append(f"whether {name} can be entered, which needs CAP_SYS_ADMIN")
        return
    message = "cannot be entered by the service, whose unit has no CAP_SYS_ADMIN"
    path = namespace.get_path(name)
    hint = f"leave it out, and systemctl edit conntrackd: [Service] NetworkNamespacePath={path}"
    report.warnings.append(report.config.explain(options.CONNTRACK_NETNS, message, hint))


# ---- sinks --------------------------------------------------------------------------------------------


def _verify_sink(report: Report, sink: ConfiguredSink) -> None:
    """That it could work, if its receiver did."""
    config, kind, name = report.config, sink.kind, sink.prefix.removesuffix(".")
    if not report.attempt(kind.create, config):
        return
    key_file = kind.options.anonymize.key_file
    if (key := config[key_file]) is not None:
        _warn_of_access(report, key_file, key)
    if kind.spool is not None and (folder := kind.find_spool(config)) is not None:
        is_own = bool(config[kind.spool.path])
        if is_own or folder.parent.is_dir():  # else that is reported for the state directory
            _verify_folder(report, kind.spool.path if is_own else options.STATE_DIRECTORY, folder)
    _warn_of_fields(report, kind)
    match kind.name:
        case "stream":
            _verify_writer(report)
        case "syslog":
            address = config[options.SINK_SYSLOG_ADDRESS]
            _verify_local(report, address)
            report.untried.append(f"{name}: whether {address} can be reached; conntrackctl doctor")
            if address.startswith("tls://"):
                _verify_tls(report, options.SINK_SYSLOG_TLS)
        case "loki":
            address = config[options.SINK_LOKI_ADDRESS]
            report.untried.append(f"{name}: whether {address} can be reached; conntrackctl doctor")
            if address.startswith("https://"):
                _verify_tls(report, options.SINK_LOKI_TLS)
            _verify_secrets(report)


def _warn_of_fields(report: Report, kind: SinkKind) -> None:
    """What is left out and conntrackctl needs. Who lists the fields that are written knows what is there."""
    config, option = report.config, kind.options.fields
    if kind.name == "syslog" or not any(word.startswith("-") for word in config[option]):
        return
    schema = {"stream": options.SINK_STREAM_SCHEMA, "loki": options.SINK_LOKI_SCHEMA}.get(kind.name)
    if schema is not None and config[schema] != "native":  # which it does not read at all
        return
    missing = ", ".join(name for name in NEEDED.values() if f"-{name}" in config[option])
    if missing:
        message = f"leaves out {missing}: conntrackctl events and summary cannot read such records"
        report.warnings.append(config.explain(option, message, "let the fields be written"))


def _verify_metrics(report: Report) -> None:
    """The library, the folder of the file, and that the unit binds nothing."""
    config = report.config
    listen, textfile = config[options.METRICS_LISTEN], config[options.METRICS_TEXTFILE]
    if listen is None and textfile is None:
        return
    try:
        check_library()
    except ConfigError as error:
        option = options.METRICS_TEXTFILE if listen is None else options.METRICS_LISTEN
        report.fail(option, error.message, error.hint)
    if textfile is not None and not textfile.parent.is_dir():
        report.fail(options.METRICS_TEXTFILE, f"{textfile.parent} is not a directory")
    elif textfile is not None:
        _verify_folder(report, options.METRICS_TEXTFILE, textfile.parent)
    if listen is None:
        return
    if config.origin(options.METRICS_LISTEN) == options.METRICS_LISTEN.flag:
        report.untried.append(f"metrics.listen: whether {listen} can be bound")
        return
    message = "cannot be bound by the service, whose unit binds nothing"
    report.warnings.append(config.explain(options.METRICS_LISTEN, message, USE_UNIT))


def _verify_writer(report: Report) -> None:
    writer = report.config[options.SINK_STREAM_WRITER]
    if not writer.startswith("file://"):
        return
    path = Path(unquote(urlsplit(writer).path))
    target = path if path.exists() else path.parent
    try:
        is_writable = os.access(target, os.W_OK, effective_ids=True)
    except OSError:
        is_writable = False
    if is_writable:
        return
    if os.geteuid():
        key = report.config.resolve(options.SINK_STREAM_WRITER).key
        report.untried.append(f"{key}: whether the service may write {path}; {SUDO}")
    else:
        report.fail(options.SINK_STREAM_WRITER, f"{path} cannot be written: the file system is read-only")


def _verify_local(report: Report, address: str) -> None:
    """A local server's socket. One that is not there may come with its server."""
    parts = urlsplit(address)
    if not parts.scheme.startswith("unix"):
        return
    path, option = Path(unquote(parts.path)), options.SINK_SYSLOG_ADDRESS
    try:
        is_there = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        message = f"there is no socket {path} now"
        report.warnings.append(
            report.config.explain(option, message, "journald and rsyslog have /dev/log", ": ")
        )
    except OSError as error:
        report.fail_path(option, path, error)
    else:
        if not is_there:
            report.fail(option, f"{path} is not a socket", "journald and rsyslog have /dev/log")


def _verify_tls(report: Report, own: TlsOptions) -> None:
    """The files alone, and then together as the sink uses them."""
    config = report.config
    named = [option for option in (own.ca, own.cert, own.key) if config[option] is not None]
    readable = [
        _verify_file(report, option, path) for option in named if (path := config[option]) is not None
    ]
    if not all(readable):
        return
    from conntrackd.sinks.tls import Tls, make_context  # noqa: PLC0415

    try:
        context = make_context(Tls(config[own.ca], config[own.cert], config[own.key]))
    except SinkTrouble as error:
        report.fail(named[0] if named else own.ca, error.reason)
        return
    if config[own.ca] is not None:
        for name in _list_expired(context):
            report.warnings.append(config.explain(own.ca, f"has a certificate that has expired: {name}"))


def _list_expired(context: "ssl.SSLContext") -> Iterator[str]:
    """The names of authorities whose time is over."""
    import ssl  # noqa: PLC0415  # see above

    for certificate in context.get_ca_certs():
        if ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time():
            subject: Any = certificate.get("subject", ())
            yield ", ".join(value for pairs in subject for _, value in pairs) or "unnamed"


def _verify_secrets(report: Report) -> None:
    from conntrackd.sinks.secrets import read_secret  # noqa: PLC0415

    for option in (options.SINK_LOKI_PASSWORD_FILE, options.SINK_LOKI_TOKEN_FILE):
        path = report.config[option]
        if path is not None and _verify_file(report, option, path):
            try:
                read_secret(path, {}, ascii_only=option is options.SINK_LOKI_TOKEN_FILE)
            except SinkTrouble as error:
                report.fail(option, error.reason)


def _verify_folder(report: Report, option: Option[Any], folder: Path) -> None:
    """Whether it is a directory, or can be made."""
    try:
        above = files.check_folder(folder)
    except files.KindError as error:
        report.fail(option, f"{folder}: {error}", files.MADE)
        return
    except OSError:
        above = folder.parent
        if os.geteuid() == 0:
            report.fail(option, f"{folder}: cannot be looked at")
            return
    if os.access(above, os.W_OK | os.X_OK, effective_ids=True):
        return
    if os.geteuid():
        key = report.config.resolve(option).key
        report.untried.append(f"{key}: whether the service may write in {above}; {SUDO}")
    else:
        report.fail(option, f"{folder}: {above} is on a read-only file system")
