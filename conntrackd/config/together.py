"""Settings that are right alone, and together contradict each other (mistakes) or do nothing (warnings)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd.config import options
from conntrackd.config.field_list import choose_names
from conntrackd.config.labels import list_joined_labels
from conntrackd.config.options import OPTIONS, Option
from conntrackd.errors import ConfigError
from conntrackd.flow import EventType
from conntrackd.render.forms import explain_choice
from conntrackd.render.loki import list_metadata
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
# What is about the kernel, or about who asks a daemon that goes on: nothing of it is looked at in a replay.
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

    def to_error(self, config: "Config") -> ConfigError:
        """Add where the option is set."""
        return config.explain(self.option, self.message, self.hint)


def list_mistakes(config: "Config") -> Iterator[SettingIssue]:
    """What contradicts each other."""
    # Not the other way round: the password may be a credential of systemd's.
    yield from _check_need(config, options.SINK_LOKI_PASSWORD_FILE, options.SINK_LOKI_USERNAME)
    yield from _check_pair(config, options.SINK_LOKI_TLS_CERT, options.SINK_LOKI_TLS_KEY)
    yield from _check_pair(config, options.SINK_SYSLOG_TLS_CERT, options.SINK_SYSLOG_TLS_KEY)
    if config[options.SINK_LOKI_TOKEN_FILE] and config[options.SINK_LOKI_USERNAME]:
        yield SettingIssue(
            options.SINK_LOKI_TOKEN_FILE,
            (options.SINK_LOKI_USERNAME,),
            "and sink.loki.username exclude each other",
            "",
        )
    yield from _check_event_types(config)
    yield from _check_fields(config)
    yield from _check_labels(config)
    if config[options.CONNTRACK_RELIABLE] and config[options.CONNTRACK_READERS] > 1:
        hint = "it guards a single socket: remove conntrack.readers"
        others = (options.CONNTRACK_READERS,)
        yield SettingIssue(
            options.CONNTRACK_RELIABLE, others, "cannot be combined with several readers", hint
        )
    loki, syslog = options.SINK_LOKI_ADDRESS, options.SINK_SYSLOG_ADDRESS
    tls = {
        options.SINK_LOKI_TLS_CA: (loki, "https"),
        options.SINK_LOKI_TLS_CERT: (loki, "https"),
        options.SINK_SYSLOG_TLS_CA: (syslog, "tls"),
        options.SINK_SYSLOG_TLS_CERT: (syslog, "tls"),
    }
    for option, (address, scheme) in tls.items():
        if config[option] and not config[address].startswith(f"{scheme}://"):
            message = f"has no effect on {config[address]}"
            yield SettingIssue(option, (address,), message, f"use an address with {scheme}://")
    if config[options.SINK_SYSLOG_SPOOL] and not config[syslog].startswith(STREAMS):
        hint = "only TCP and TLS detect that the server is unavailable"
        yield SettingIssue(options.SINK_SYSLOG_SPOOL, (syslog,), f"has no effect on {config[syslog]}", hint)


def _check_fields(config: "Config") -> Iterator[SettingIssue]:
    """Fields that a sink's records cannot be without."""
    forms = {
        options.SINK_STREAM_FIELDS: "stream",
        options.SINK_JOURNAL_FIELDS: "journal",
        options.SINK_SYSLOG_FIELDS: get_syslog_form(config),
        options.SINK_LOKI_FIELDS: "loki",
    }
    for option, form in forms.items():
        names = choose_names(config[option])
        fault, hint = ("", "") if names is None else explain_choice(form, names)
        if fault:
            others = (options.SINK_SYSLOG_ADDRESS, options.SINK_SYSLOG_FORMAT)
            yield SettingIssue(option, others if option is options.SINK_SYSLOG_FIELDS else (), fault, hint)


def _check_labels(config: "Config") -> Iterator[SettingIssue]:
    """Labels that Loki would show in place of a field; those with our own names are none."""
    schema = SCHEMAS[config[options.SINK_LOKI_SCHEMA]]
    if schema.is_native:
        return
    for name, _ in config[options.SINK_LOKI_LABELS]:
        if name in list_metadata(schema):
            message = (
                f"has {name}, which would hide the field of that name in sink.loki.schema: {schema.name}"
            )
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


def _check_pair(config: "Config", first: Option[object], second: Option[object]) -> Iterator[SettingIssue]:
    yield from _check_need(config, first, second)
    yield from _check_need(config, second, first)


def _check_need(config: "Config", option: Option[object], needed: Option[object]) -> Iterator[SettingIssue]:
    if config[option] and not config[needed]:
        yield SettingIssue(option, (needed,), "has no effect alone", f"set {needed.key} too")


def list_warnings(config: "Config") -> Iterator[SettingIssue]:
    """What was set and does nothing, or most likely something else than was meant."""
    for option, needed in SERVES.items():
        if config.is_set(option) and not config[needed]:
            yield SettingIssue(option, (needed,), f"has no effect without {needed.key}", "")
    is_remembered = config[options.CONNTRACK_RECORDS] != "events" or config[options.CONNTRACK_HEARTBEAT]
    if config.is_set(options.CONNTRACK_FLOWS_MAX) and not is_remembered:
        others = (options.CONNTRACK_RECORDS, options.CONNTRACK_HEARTBEAT)
        message = "has no effect without FLOW and ALIVE records"
        hint = "set conntrack.records to flows or both, or conntrack.heartbeat"
        yield SettingIssue(options.CONNTRACK_FLOWS_MAX, others, message, hint)
    for option in (options.METRICS_LISTEN, options.METRICS_TEXTFILE):
        if config[option] and config[options.CONNTRACK_REPLAY]:
            yield SettingIssue(option, (options.CONNTRACK_REPLAY,), "has no effect in a replay", "")
    yield from _list_idle_sinks(config)
    replay = options.CONNTRACK_REPLAY
    for option in LIVE if config[replay] is not None else ():
        if config.is_set(option) and config[option] not in (option.default, False):
            yield SettingIssue(option, (replay,), f"has no effect in a replay ({replay.key})", "")
    syslog = options.SINK_SYSLOG_ADDRESS
    for option in (options.SINK_SYSLOG_FRAMING, options.SINK_SYSLOG_SPOOL_MAX):
        if config.is_set(option) and not config[syslog].startswith(STREAMS):
            yield SettingIssue(option, (syslog,), f"has no effect on {config[syslog]}", "")
    for name in list_joined_labels(config[options.SINK_LOKI_LABELS]):
        message = f"the value of {name} seems to contain another label"
        yield SettingIssue(options.SINK_LOKI_LABELS, (), message, "labels are separated by commas: a=1,b=2")


def _list_idle_sinks(config: "Config") -> Iterator[SettingIssue]:
    """Settings of a sink that nothing enables. Who wrote `enable: false` knows that."""
    for enable in OPTIONS:
        if not enable.key.startswith("sink.") or not enable.key.endswith(".enable") or config.is_set(enable):
            continue
        section = enable.key.removesuffix("enable")
        first = next(
            (option for option in OPTIONS if option.key.startswith(section) and config.is_set(option)), None
        )
        if first is not None:
            hint = f"add {enable.key}: true, or false to keep it for later"
            yield SettingIssue(first, (enable,), f"has no effect: {enable.key} is not set", hint)
