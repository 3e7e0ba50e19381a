"""Settings that are right alone, and together contradict each other (mistakes) or do nothing (warnings)."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from conntrackd.config import options
from conntrackd.config.field_list import choose_names
from conntrackd.config.labels import list_joined_labels
from conntrackd.config.option import Option, SpoolPath
from conntrackd.config.options import OPTIONS, SINK_OPTIONS, AnonymizeOptions, TlsOptions
from conntrackd.errors import ConfigError
from conntrackd.flow import EventType
from conntrackd.render.fields import ALWAYS, HEADS
from conntrackd.render.loki import LABELS, list_metadata
from conntrackd.render.schema import SCHEMAS

if TYPE_CHECKING:
    from conntrackd.config.read import Config

# What each is for: of no use where the other is not set.
SERVES: Final[dict[Option[object], Option[object]]] = {
    options.GEOIP_LOCALE: options.GEOIP_DATABASE,
    options.GEOIP_CACHE: options.GEOIP_DATABASE,
    options.COMMUNITY_ID_SEED: options.COMMUNITY_ID_ENABLE,
}
STREAMS: Final = ("tcp://", "tls://")
# What conntrackctl events decompresses, see history/lines.py.
COMPRESSED: Final = frozenset({".gz", ".bz2", ".xz", ".zst"})
JOINED: Final = "labels are separated by commas: a=1,b=2"
# About the kernel, and about the bus: a replay ignores these.
LIVE: Final[tuple[Option[object], ...]] = (
    options.CONNTRACK_BUFFER,
    options.CONNTRACK_ACTIVATE,
    options.CONNTRACK_NETNS,
    options.CONNTRACK_SNAPSHOT,
    options.CONNTRACK_READERS,
    options.CONNTRACK_RESYNC,
    options.CONNTRACK_RELIABLE,
    options.CONNTRACK_HEARTBEAT,
    options.CONNTRACK_KERNEL_FILTER,
    options.BUS_ENABLE,
    options.BUS_ADDRESS,
)


class Form(NamedTuple):
    """A form of records, as far as it does not leave the choice of fields to people."""

    needs: Mapping[str, str]
    """What it needs, by name, and why."""
    heads: tuple[str, ...] | None = None
    """What may stand before an event's own fields; None where nothing separates fields from each other."""


HEADER: Final = "it stands in the header of the message"
STREAM_LABEL: Final = "it is a label of Loki's streams"
FORMS: Final[Mapping[str, Form]] = {
    "stream": Form({}, HEADS),
    "journal": Form({"level": "it is the entry's PRIORITY", "msg": "it is the entry's MESSAGE"}),
    "loki": Form(
        {
            "time": "an entry of Loki's has one",
            "msg": "it is the line of an entry",
            "type": STREAM_LABEL,
            "prot": STREAM_LABEL,
        },
        ("level",),
    ),
    "rfc5424": Form({"time": HEADER, "level": HEADER, "type": HEADER}),
    "rfc3164": Form({"time": HEADER, "level": HEADER}, ("msg",)),
    "cee": Form({}, HEADS),
}
"""By the name of the sink, or of syslog's form."""


class SettingIssue(NamedTuple):
    """What is wrong with an option, and whether another one that is in doubt could be the reason."""

    option: Option[object]
    others: tuple[Option[object], ...]
    message: str
    hint: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all options that it is about."""
        return (self.option.key, *(option.key for option in self.others))

    def of(self, view: "Config") -> "SettingIssue":
        """The same, of the settings of the view's sink."""
        others = tuple(map(view.resolve, self.others))
        return self._replace(option=view.resolve(self.option), others=others)

    def to_error(self, config: "Config") -> ConfigError:
        """Add where the option is set."""
        return config.explain(self.option, self.message, self.hint)


def list_mistakes(config: "Config") -> Iterator[SettingIssue]:
    """What contradicts each other."""
    for _, kind, view in config.list_views():
        yield from (issue.of(view) for issue in _list_sink_mistakes(kind, view))
    yield from _check_event_types(config)
    if config[options.CONNTRACK_RELIABLE] and config[options.CONNTRACK_READERS] > 1:
        hint = "it guards a single socket: remove conntrack.readers"
        others = (options.CONNTRACK_READERS,)
        yield SettingIssue(
            options.CONNTRACK_RELIABLE, others, "cannot be combined with several readers", hint
        )
    yield from _list_clashes(config)


def _list_sink_mistakes(kind: str, config: "Config") -> Iterator[SettingIssue]:
    """Of one sink, of this kind."""
    match kind:
        case "loki":
            # Not the other way round: the password may be a credential of systemd's.
            yield from _check_need(config, options.SINK_LOKI_PASSWORD_FILE, options.SINK_LOKI_USERNAME)
            yield from _check_tls(config, options.SINK_LOKI_TLS, options.SINK_LOKI_ADDRESS, "https")
            if config[options.SINK_LOKI_TOKEN_FILE] and config[options.SINK_LOKI_USERNAME]:
                user = options.SINK_LOKI_USERNAME
                message = f"and {config.resolve(user).key} exclude each other"
                yield SettingIssue(options.SINK_LOKI_TOKEN_FILE, (user,), message, "")
            yield from _check_labels(config)
        case "syslog":
            address, spool = options.SINK_SYSLOG_ADDRESS, options.SINK_SYSLOG_SPOOL.path
            yield from _check_tls(config, options.SINK_SYSLOG_TLS, address, "tls")
            if config[spool] and not config[address].startswith(STREAMS):
                hint = "only TCP and TLS detect that the server is unavailable"
                yield SettingIssue(spool, (address,), f"has no effect on {config[address]}", hint)
    yield from _check_fields(kind, config)
    yield from _check_key(kind, config)


def _check_key(kind: str, config: "Config") -> Iterator[SettingIssue]:
    """Who gives a key believes that it does something."""
    own = SINK_OPTIONS[kind].anonymize
    if config[own.key_file] and config[own.mode] != "pseudonym":
        key = config.resolve(own.mode).key
        yield SettingIssue(own.key_file, (own.mode,), f"has no effect without {key}: pseudonym", "")


def _check_tls(
    config: "Config", own: TlsOptions, address: Option[str], scheme: str
) -> Iterator[SettingIssue]:
    """Half of what is needed to show who we are, and files where there is no TLS."""
    yield from _check_need(config, own.cert, own.key)
    yield from _check_need(config, own.key, own.cert)
    for option in (own.ca, own.cert):
        if config[option] and not config[address].startswith(f"{scheme}://"):
            message = f"has no effect on {config[address]}"
            yield SettingIssue(option, (address,), message, f"use an address with {scheme}://")


def list_identified(config: "Config") -> list[str]:
    """Sinks whose own setting asks for Community IDs."""
    asked = {"community_id", "+community_id"}
    views = config.list_views()
    return [name for name, kind, own in views if asked.intersection(own[SINK_OPTIONS[kind].fields])]


def _check_fields(kind: str, config: "Config") -> Iterator[SettingIssue]:
    """Fields that a sink's records cannot be without."""
    option = SINK_OPTIONS[kind].fields
    names = choose_names(config[option])
    form = get_syslog_form(config) if kind == "syslog" else kind
    fault, hint = ("", "") if names is None else explain_choice(form, names)
    if fault:
        others = (options.SINK_SYSLOG_ADDRESS, options.SINK_SYSLOG_FORMAT)
        yield SettingIssue(option, others if kind == "syslog" else (), fault, hint)


def explain_choice(form: str, names: frozenset[str]) -> tuple[str, str]:
    """Why a record of this form cannot have these fields alone, and what to do; both empty where it can."""
    needs, heads = FORMS[form]
    for name, reason in needs.items():
        if name not in names:
            return f"leaves out {name}: {reason}", f"it has to be written: add {name}, or remove -{name}"
    rest = names - needs.keys() - set(HEADS)
    # Where no head stands before it a field is the first, and it has to be known which one.
    has_first = bool(rest & set(ALWAYS)) or (form == "loki" and not rest)
    if heads is None or names & set(heads) or has_first:
        return "", ""
    first = [name for name in ALWAYS if form != "loki" or name not in LABELS]
    return "has no field that is there in every record", f"add one of {', '.join([*heads, *first])}"


def _check_labels(config: "Config") -> Iterator[SettingIssue]:
    """Labels that Loki would show in place of a field; those with our own names are none."""
    schema = SCHEMAS[config[options.SINK_LOKI_SCHEMA]]
    if schema.is_native:
        return
    for name, _ in config[options.SINK_LOKI_LABELS]:
        if name in list_metadata(schema):
            setting = f"{config.resolve(options.SINK_LOKI_SCHEMA).key}: {schema.name}"
            message = f"has {name}, which would hide the field of that name in {setting}"
            hint = "give the label another name"
            yield SettingIssue(options.SINK_LOKI_LABELS, (options.SINK_LOKI_SCHEMA,), message, hint)


def get_syslog_form(config: "Config") -> str:
    """journald, rsyslog and syslog-ng read what comes over /dev/log as syslog(3) writes it."""
    is_local = config[options.SINK_SYSLOG_ADDRESS].startswith("unix")
    return (
        "rfc3164"
        if is_local and not config.is_set(options.SINK_SYSLOG_FORMAT)
        else config[options.SINK_SYSLOG_FORMAT]
    )


# ---- two sinks ----------------------------------------------------------------------------------------


def find_spool(config: "Config", option: Option[SpoolPath], kind: str) -> Path | None:
    """Where a spool is that makes sense: as set, or in the state directory, by the name of its sink."""
    directory, state = config[option], config[options.STATE_DIRECTORY]
    if directory is None and state is not None:
        # No file of the state directory's own can have such a name.
        directory = state / (kind if config.sink is None else f"sink-{config.sink.name}")
    return directory or None


def has_receipts(config: "Config") -> bool:
    """Whether a syslog server's system says what has arrived."""
    return config[options.SINK_SYSLOG_ADDRESS].startswith(STREAMS)


def _list_clashes(config: "Config") -> Iterator[SettingIssue]:
    """Sinks that cannot be on together: both would write to one output, or keep events in one directory."""
    outputs: dict[str, Option[object]] = {}
    spools: dict[str, Option[object]] = {}
    for _, kind, view in config.list_views():
        if not view[SINK_OPTIONS[kind].enable]:
            continue
        writer = view[options.SINK_STREAM_WRITER] if kind == "stream" else "discard"
        if writer != "discard":
            output = view.resolve(options.SINK_STREAM_WRITER)
            yield from _note(outputs, _name_output(writer), output, writer, "an output")
        spool = SINK_OPTIONS[kind].spool
        if spool is None or (kind == "syslog" and not has_receipts(view)):
            continue
        folder = find_spool(view, spool.path, kind)
        if folder is not None and view.sink is None:
            # The two of the kinds' names may share one: their files have other names, and some do share one.
            spools.setdefault(os.path.realpath(folder), spool.path)
        elif folder is not None:
            kept = view.resolve(spool.path)
            yield from _note(spools, os.path.realpath(folder), kept, str(folder), "a directory")


def _note(
    found: dict[str, Option[object]], key: str, option: Option[object], text: str, what: str
) -> Iterator[SettingIssue]:
    """Where the same thing is another sink's already."""
    first = found.setdefault(key, option)
    if first is not option:
        hint = f"each sink needs {what} of its own"
        yield SettingIssue(option, (first,), f"is {text}, and so is {first.key}", hint)


def _name_output(writer: str) -> str:
    """What a writer is written to, whatever the path."""
    parts = urlsplit(writer)
    return os.path.realpath(unquote(parts.path)) if parts.scheme == "file" else writer


def _check_event_types(config: "Config") -> Iterator[SettingIssue]:
    """What is about events of one type takes these."""
    records = config[options.CONNTRACK_RECORDS]
    needs: dict[Option[object], tuple[bool, EventType]] = {
        options.CONNTRACK_RECORDS: (records != "events", EventType.DESTROY),
        options.CONNTRACK_RELIABLE: (config[options.CONNTRACK_RELIABLE], EventType.DESTROY),
        options.CONNTRACK_RESYNC: (config[options.CONNTRACK_RESYNC] != "off", EventType.NEW),
        options.CONNTRACK_SNAPSHOT: (config[options.CONNTRACK_SNAPSHOT], EventType.NEW),
    }
    for option, (is_set, needed) in needs.items():
        if is_set and needed == EventType.NEW and records == "flows":
            hint = "a flow of the table is written when it ends; or set conntrack.records to both"
            others = (options.CONNTRACK_RECORDS,)
            yield SettingIssue(option, others, "has no effect with conntrack.records: flows", hint)
        elif is_set and not config[options.CONNTRACK_EVENTS] & needed:
            name = str(needed.name).lower()
            hint = f"add {name} to conntrack.events"
            yield SettingIssue(
                option, (options.CONNTRACK_EVENTS,), f"has no effect without {name} events", hint
            )


def _check_need(config: "Config", option: Option[object], needed: Option[object]) -> Iterator[SettingIssue]:
    if config[option] and not config[needed]:
        key = config.resolve(needed).key
        yield SettingIssue(option, (needed,), "has no effect alone", f"set {key} too")


def list_warnings(config: "Config") -> Iterator[SettingIssue]:
    """What was set and does nothing, or most likely something else than was meant."""
    for option, needed in SERVES.items():
        is_of_use = config[needed] or (needed is options.COMMUNITY_ID_ENABLE and list_identified(config))
        if config.is_set(option) and not is_of_use:
            yield SettingIssue(option, (needed,), f"has no effect without {needed.key}", "")
    is_remembered = config[options.CONNTRACK_RECORDS] != "events" or config[options.CONNTRACK_HEARTBEAT]
    if config.is_set(options.CONNTRACK_FLOWS_MAX) and not is_remembered:
        others = (options.CONNTRACK_RECORDS, options.CONNTRACK_HEARTBEAT)
        message = "has no effect without FLOW and ALIVE records"
        hint = "set conntrack.records to flows or both, or conntrack.heartbeat"
        yield SettingIssue(options.CONNTRACK_FLOWS_MAX, others, message, hint)
    for option in (options.METRICS_LISTEN, options.METRICS_TEXTFILE, options.METRICS_FLOWS):
        if config[option] and config[options.CONNTRACK_REPLAY]:
            yield SettingIssue(option, (options.CONNTRACK_REPLAY,), "has no effect in a replay", "")
    yield from _list_blind_metrics(config)
    yield from _list_idle_sinks(config)
    replay = options.CONNTRACK_REPLAY
    for option in LIVE if config[replay] is not None else ():
        if config.is_set(option) and config[option] not in (option.default, False):
            yield SettingIssue(option, (replay,), f"has no effect in a replay ({replay.key})", "")
    for _, kind, view in config.list_views():
        yield from (issue.of(view) for issue in _list_sink_warnings(kind, view))


def _list_blind_metrics(config: "Config") -> Iterator[SettingIssue]:
    """Counts of connections that open or close unseen."""
    if not config[options.METRICS_FLOWS]:
        return
    option = options.METRICS_FLOWS
    if config[options.CONNTRACK_RECORDS] == "flows":
        hint = "set conntrack.records to both"
        message = "count no connection that opens with conntrack.records: flows"
        yield SettingIssue(option, (options.CONNTRACK_RECORDS,), message, hint)
        return
    for needed, verb in ((EventType.NEW, "opens"), (EventType.DESTROY, "closes")):
        if not config[options.CONNTRACK_EVENTS] & needed:
            name = str(needed.name).lower()
            message, hint = (
                f"count no connection that {verb} without {name} events",
                f"add {name} to conntrack.events",
            )
            yield SettingIssue(option, (options.CONNTRACK_EVENTS,), message, hint)


def _list_sink_warnings(kind: str, config: "Config") -> Iterator[SettingIssue]:
    """Of one sink, of this kind."""
    yield from _list_idle_anonymize(SINK_OPTIONS[kind].anonymize, config)
    if kind == "syslog":
        syslog = options.SINK_SYSLOG_ADDRESS
        for option in (options.SINK_SYSLOG_FRAMING, options.SINK_SYSLOG_SPOOL.size):
            if config.is_set(option) and not has_receipts(config):
                yield SettingIssue(option, (syslog,), f"has no effect on {config[syslog]}", "")
    if kind == "stream" and (ending := Path(config[options.SINK_STREAM_WRITER]).suffix) in COMPRESSED:
        writer = options.SINK_STREAM_WRITER
        message = f"ends in {ending} and is not compressed: conntrackctl reads nothing of it"
        yield SettingIssue(writer, (), message, "leave the ending out: logrotate compresses what it rotates")
    if kind == "loki":
        for name in list_joined_labels(config[options.SINK_LOKI_LABELS]):
            message, hint = f"the value of {name} seems to contain another label", JOINED
            yield SettingIssue(options.SINK_LOKI_LABELS, (), message, hint)


def _list_idle_anonymize(own: AnonymizeOptions, config: "Config") -> Iterator[SettingIssue]:
    """What is about another way to write addresses than the one that is set."""
    mode, key = config[own.mode], config.resolve(own.mode).key
    idle: list[Option[object]] = [own.which, own.only] if mode == "none" else []
    cut: list[Option[object]] = [own.ipv4_bits, own.ipv6_bits] if mode != "truncate" else []
    for options_of, needed in ((idle, key), (cut, f"{key}: truncate")):
        for option in options_of:
            if config.is_set(option):
                yield SettingIssue(option, (own.mode,), f"has no effect without {needed}", "")


def _list_idle_sinks(config: "Config") -> Iterator[SettingIssue]:
    """Settings of a sink that nothing enables. Who wrote `enable: false` knows that."""
    for kind, own in SINK_OPTIONS.items():
        enable, section = own.enable, f"sink.{kind}."
        first = next(
            (option for option in OPTIONS if option.key.startswith(section) and config.is_set(option)), None
        )
        if first is not None and not config.is_set(enable):
            hint = f"add {enable.key}: true, or false to keep it for later"
            yield SettingIssue(first, (enable,), f"has no effect: {enable.key} is not set", hint)
