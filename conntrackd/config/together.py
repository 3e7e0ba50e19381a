"""Settings that are right alone, and together contradict each other (mistakes) or do nothing (warnings)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd.config import options
from conntrackd.config.labels import find_joined_labels
from conntrackd.config.options import OPTIONS, Option
from conntrackd.errors import ConfigError
from conntrackd.flow import EventType

if TYPE_CHECKING:
    from conntrackd.config.read import Config

# What each is for: of no use where the other is not set.
SERVES: Final[dict[Option[object], Option[object]]] = {
    options.GEOIP_LOCALE: options.GEOIP_DATABASE,
    options.GEOIP_CACHE: options.GEOIP_DATABASE,
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
    options.CONNTRACK_KERNEL_FILTER,
    options.BUS_ENABLE,
    options.BUS_ADDRESS,
)


class Finding(NamedTuple):
    """What is wrong with an option, and whether another one that is in doubt could be the reason."""

    option: Option[object]
    others: tuple[Option[object], ...]
    message: str
    hint: str

    def to_error(self, config: "Config") -> ConfigError:
        """With the place where the option is set."""
        return config.explain(self.option, self.message, self.hint)


def find_mistakes(config: "Config") -> Iterator[Finding]:
    """What contradicts each other."""
    # Not the other way round: the password may be a credential of systemd's.
    yield from _find_need(config, options.SINK_LOKI_PASSWORD_FILE, options.SINK_LOKI_USERNAME)
    yield from _find_pair(config, options.SINK_LOKI_TLS_CERT, options.SINK_LOKI_TLS_KEY)
    yield from _find_pair(config, options.SINK_SYSLOG_TLS_CERT, options.SINK_SYSLOG_TLS_KEY)
    if config[options.SINK_LOKI_TOKEN_FILE] and config[options.SINK_LOKI_USERNAME]:
        yield Finding(
            options.SINK_LOKI_TOKEN_FILE,
            (options.SINK_LOKI_USERNAME,),
            "and sink.loki.username exclude each other",
            "",
        )
    yield from _find_event_mistakes(config)
    if config[options.CONNTRACK_RELIABLE] and config[options.CONNTRACK_READERS] > 1:
        hint = "it watches over one socket: leave out conntrack.readers"
        others = (options.CONNTRACK_READERS,)
        yield Finding(options.CONNTRACK_RELIABLE, others, "does not go with several readers", hint)
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
            yield Finding(option, (address,), message, f"an address with {scheme}:// is needed")
    if config[options.SINK_SYSLOG_SPOOL] and not config[syslog].startswith(STREAMS):
        hint = "only TCP and TLS tell whether the server is there"
        yield Finding(options.SINK_SYSLOG_SPOOL, (syslog,), f"has no effect on {config[syslog]}", hint)


def _find_event_mistakes(config: "Config") -> Iterator[Finding]:
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
            yield Finding(option, (options.CONNTRACK_EVENTS,), f"has no effect without {name} events", hint)


def _find_pair(config: "Config", first: Option[object], second: Option[object]) -> Iterator[Finding]:
    yield from _find_need(config, first, second)
    yield from _find_need(config, second, first)


def _find_need(config: "Config", option: Option[object], needed: Option[object]) -> Iterator[Finding]:
    if config[option] and not config[needed]:
        yield Finding(option, (needed,), "is of no use alone", f"set {needed.key} too")


def find_warnings(config: "Config") -> Iterator[Finding]:
    """What was set and does nothing, or most likely something else than was meant."""
    for option, needed in SERVES.items():
        if config.is_set(option) and not config[needed]:
            yield Finding(option, (needed,), f"has no effect without {needed.key}", "")
    yield from _find_idle_sinks(config)
    replay = options.CONNTRACK_REPLAY
    for option in LIVE if config[replay] is not None else ():
        if config.is_set(option) and config[option] not in (option.default, False):
            yield Finding(option, (replay,), f"has no effect in a replay ({replay.key})", "")
    syslog = options.SINK_SYSLOG_ADDRESS
    for option in (options.SINK_SYSLOG_FRAMING, options.SINK_SYSLOG_SPOOL_MAX):
        if config.is_set(option) and not config[syslog].startswith(STREAMS):
            yield Finding(option, (syslog,), f"has no effect on {config[syslog]}", "")
    for name in find_joined_labels(config[options.SINK_LOKI_LABELS]):
        message = f"the value of {name} seems to hold another label"
        yield Finding(options.SINK_LOKI_LABELS, (), message, "labels are separated by commas: a=1,b=2")


def _find_idle_sinks(config: "Config") -> Iterator[Finding]:
    """Settings of a sink that nothing enables. Who wrote `enable: false` knows that."""
    for enable in OPTIONS:
        if not enable.key.startswith("sink.") or not enable.key.endswith(".enable") or config.is_set(enable):
            continue
        section = enable.key.removesuffix("enable")
        first = next((each for each in OPTIONS if each.key.startswith(section) and config.is_set(each)), None)
        if first is not None:
            hint = f"add {enable.key}: true, or false to keep it for later"
            yield Finding(first, (enable,), f"has no effect: {enable.key} is not set", hint)
