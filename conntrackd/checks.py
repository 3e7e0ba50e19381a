"""What keeps events from coming, being complete, or arriving: checks of this machine, each with its remedy.

The daemon answers Doctor() with examine(config, situation); `conntrackctl doctor` prints that, or calls
examine(config) itself where no daemon runs. Nothing here changes anything.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from conntrackd import advice
from conntrackd.bus.control import Finding, SinkStatus
from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.errors import ConntrackdError
from conntrackd.netlink import tracking
from conntrackd.netlink.namespace import enter
from conntrackd.sinks import ConfiguredSink, list_sinks
from conntrackd.source import hearing
from conntrackd.stats import Stats
from conntrackd.units import render_size

if TYPE_CHECKING:
    import ctypes

OK: Final = "ok"
NOTE: Final = "note"
WARNING: Final = "warning"
ERROR: Final = "error"

SYSCTL: Final = "proc/sys/net/netfilter"
# include/uapi/linux/capability.h
CAP_NET_ADMIN: Final = 12
# Where the kernel starts to drop new connections soon, and where it is about to.
FILL_WARNING: Final = 0.8
FILL_ERROR: Final = 0.95
# MaxMind and DB-IP bring out a new one at least monthly.
GEOIP_DAYS: Final = 60
GEOIP_REMEDY: Final = "geoipupdate, or fix geoip.database"
# Where an ordinary user cannot see enough.
AS_ROOT: Final = "sudo conntrackctl doctor"
# journald.conf(5): RateLimitBurst=, RateLimitIntervalSec=
JOURNAL_BURST: Final = 10_000
JOURNAL_CONFIG: Final = (
    "usr/lib/systemd/journald.conf.d",
    "run/systemd/journald.conf.d",
    "etc/systemd/journald.conf.d",
)
UNIT_PATHS: Final = (
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/system",
    "etc/systemd/system",
)
# Where Debian and Fedora have the rules that are loaded at boot; as `nft list ruleset` writes them.
SAVED_RULES: Final = ("etc/nftables.conf", "etc/sysconfig/nftables.conf")
OWNED_TABLE: Final = re.compile(r"(?m)^\s*table inet conntrackd\S* \{[^\n]*\n\s*flags [^\n]*owner")
JOURNAL_SOCKET: Final = "run/systemd/journal/socket"
CONNECT_SECONDS: Final = 2.0
# 2020-01-01: no machine that runs this code has an earlier date
OLDEST_TIME: Final = 1_577_836_800
# adjtimex(2): TIME_ERROR, "the system clock is not synchronized"
TIME_ERROR: Final = 5
TIMEX_BYTES: Final = 208

NO_ROOM: Final = "the kernel has no room for the filter's program: the daemon filters all events"
NO_CORE: Final = "the core in C cannot be loaded, and in Python an event takes fifty times the CPU, 90 us"
NO_CORE_REMEDY: Final = (
    "apt install --reinstall conntrackd  # in a checkout: make conntrackd/core/_core.abi3.so"
)
# The check that says that others could not be made, and belong to whoever asks.
HIDDEN: Final = "settings"
# More than a machine can log in any interval: what the shipped unit asks for.
ENOUGH_BURST: Final = 10_000_000
# Where to look when a sink's receiver does not take events: settings that there are, behind the sink's name.
RECEIVERS: Final = {
    "stream": "check the file or its reader: {}writer",
    "journal": "systemctl status systemd-journald  # another sink where there is no journald",
    "syslog": "check that the receiver at {}address is up",
    "loki": "check that the receiver at {}address is up",
}
ZERO: Final = frozenset({"0", "0s"})
# Of records of flows whose beginnings the daemon remembers (conntrack.flows_max).
TIMES_LACK: Final = "start and stop, those of flows older than the daemon also without duration"


@dataclass(frozen=True, slots=True)
class Situation:
    """What only the running daemon knows. `buffer` is what the kernel gave, not doubled."""

    is_tracking: bool | None
    buffer: int
    lost: int = 0
    sinks: Mapping[str, SinkStatus] = field(default_factory=dict)
    has_room: bool = True
    """Whether the kernel runs the filter's program."""
    faults: Sequence[str] = ()
    """Of hearing.py."""
    is_active: bool = False
    """Whether conntrack.activate is in force."""
    engine_fault: str = ""
    """Why the core is not in use."""
    troubles: Mapping[str, str] = field(default_factory=dict)
    """By sink: why it does not deliver in a state that is not bad; empty where it does. See progress.py."""
    silence: Sequence[ConntrackdError] = ()
    """Why the rules log nothing, whatever comes."""
    unwritten: Sequence[ConntrackdError] = ()
    """Files that the daemon keeps and cannot write, see unwritten.py."""
    databases: Mapping[Path, ConntrackdError] = field(default_factory=dict)
    """Files that were replaced by ones that cannot be used."""


def examine(config: Config, situation: Situation | None = None, *, root: Path = Path("/")) -> list[Finding]:
    """All findings, in the order in which an event travels. Raises nothing.

    Takes up to some seconds, and ten more where no daemon runs and a database has the whole Internet.

    `situation` is None where no daemon runs. `root` is where /proc, /etc and /run are. Sysctls are those of
    the network namespace that the configuration names.
    """
    found = [check_capability(root)] if situation is None else []
    try:
        with enter(config[options.CONNTRACK_NETNS]):
            found += check_kernel(root, situation, config)
    except ConntrackdError as error:
        found.append(Finding(ERROR, "namespace", error.message, error.hint))
    found += check_saved_rules(root)
    found.append(check_buffer(config, situation, root))
    if situation is not None:
        found += [check_engine(situation), check_program(situation, config), check_loss(situation)]
        found += [Finding(ERROR, "filter", silence.message, silence.hint) for silence in situation.silence]
    found += check_geoip(config, situation)
    if any(sink.is_enabled and sink.kind.name == "journal" for sink in list_sinks(config)):
        found.append(check_journal_rate(root))
    found += check_sinks(config, situation, root)
    if situation is not None:
        found += [
            Finding(WARNING, "files", f"{fault.origin}: {fault.message}", fault.hint)
            for fault in situation.unwritten
        ]
    found += [check_clock(time.time(), is_synchronized()), check_packages(root)]
    return found


# ---- the kernel ---------------------------------------------------------------------------------------


def check_capability(root: Path) -> Finding:
    """Whether this process may listen: without a daemon, root is what it would be started as."""
    match = re.search(r"(?m)^CapEff:\s*([0-9a-f]+)$", _read(root / "proc/self/status"))
    if match and int(match[1], 16) >> CAP_NET_ADMIN & 1:
        return Finding(OK, "capability", "CAP_NET_ADMIN is present")
    return Finding(
        NOTE,
        "capability",
        "missing privilege: CAP_NET_ADMIN, which the service has; some checks are incomplete",
        AS_ROOT,
    )


def check_kernel(root: Path, situation: Situation | None, config: Config) -> Iterator[Finding]:
    """Module, tracking, and the settings of conntrack in this thread's network namespace."""
    if situation is not None and hearing.OTHER_NAMESPACE in situation.faults:
        remedy = advice.advise_fault(hearing.OTHER_NAMESPACE, config)
        yield Finding(ERROR, "namespace", hearing.OTHER_NAMESPACE, remedy)
    if situation is not None and not (root / "proc/sys/net").exists():
        # The unit's sandbox hides the kernel's settings; conntrackctl looks at them from where it runs.
        yield check_tracking(situation.is_tracking, config, is_active=situation.is_active)
        yield from check_extent(situation.is_tracking)
        yield Finding(NOTE, HIDDEN, "the service's sandbox hides the kernel's settings")
        return
    if not (root / SYSCTL / "nf_conntrack_count").exists():
        yield Finding(
            ERROR, "module", "the kernel module nf_conntrack is not loaded", "modprobe nf_conntrack"
        )
        return
    yield Finding(OK, "module", "nf_conntrack is loaded")
    is_tracking = tracking.is_tracking() if situation is None else situation.is_tracking
    yield check_tracking(is_tracking, config, is_active=situation is not None and situation.is_active)
    yield from check_extent(is_tracking)
    yield from check_settings(root, config)
    yield check_table(root, config)


def check_tracking(is_tracking: bool | None, config: Config, *, is_active: bool) -> Finding:
    """What netlink/tracking.py found out."""
    if is_tracking is False:
        remedy = advice.advise_tracking(config, is_active=is_active)
        return Finding(ERROR, "tracking", tracking.NOT_TRACKED, remedy)
    if is_tracking is None:
        return Finding(NOTE, "tracking", "unknown whether connections are tracked here")
    return Finding(OK, "tracking", "connections are tracked in this network namespace")


def check_extent(is_tracking: bool | None) -> Iterator[Finding]:
    """What is left out of tracking for certain. No more than notes: it may well be meant so."""
    families = tracking.find_families() if is_tracking else None
    if families is not None and len(families) == 1:
        (tracked,) = families
        (other,) = tracking.FAMILIES.keys() - families
        text = f"connections of {tracked} are tracked, and no rule asks for those of {other}"
        yield Finding(NOTE, "tracking", text, f"{advice.OWN_RULE} in a table of the family inet")
    if is_tracking and tracking.has_exceptions():
        text = "a rule with notrack leaves connections out of tracking: of them there are no events"
        yield Finding(NOTE, "tracking", text, "nft list ruleset  # shows it")


def check_saved_rules(root: Path) -> Iterator[Finding]:
    """Whether the firewall's file holds a table of the daemon's: then it cannot be loaded beside it."""
    for path in SAVED_RULES:
        if OWNED_TABLE.search(_read(root / path)):
            text = f"/{path} contains the daemon's table: it cannot be loaded while the daemon runs"
            yield Finding(WARNING, "firewall", text, f"remove 'table inet conntrackd' from /{path}")


def check_settings(root: Path, config: Config) -> Iterator[Finding]:
    """nf_conntrack_events, _acct and _timestamp."""
    events = read_number(root / SYSCTL / "nf_conntrack_events")
    if events == 0:
        yield _advise(ERROR, "events", hearing.EVENTS_OFF, "nf_conntrack_events", 1, config)
    elif events == 2:
        text = "flows that are older than the daemon end without an event"
        yield _advise(NOTE, "events", text, "nf_conntrack_events", 1, config)
    else:
        yield Finding(OK, "events", "the kernel sends events")
    for name, lack in (("acct", "packets and bytes"), ("timestamp", "start, stop and duration")):
        if read_number(root / SYSCTL / f"nf_conntrack_{name}") == 0:
            is_missed = config[options.CONNTRACK_RECORDS] != "events"
            level, what = (WARNING, "FLOW records") if is_missed else (NOTE, "events")
            if name == "acct" and config[options.CONNTRACK_HEARTBEAT] is not None:
                level, what = WARNING, "ALIVE and FLOW records" if is_missed else "ALIVE records"
            is_measured = name == "timestamp" and is_missed and config[options.CONNTRACK_FLOWS_MAX]
            text = f"{what} come without {TIMES_LACK if is_measured else lack}"
            yield _advise(level, name, text, f"nf_conntrack_{name}", 1, config)
        else:
            yield Finding(OK, name, f"nf_conntrack_{name} is on")


def check_table(root: Path, config: Config) -> Finding:
    """How full the table of connections is: where it is full, the kernel refuses new ones."""
    count = read_number(root / SYSCTL / "nf_conntrack_count") or 0
    limit = read_number(root / SYSCTL / "nf_conntrack_max") or read_number(
        root / "proc/sys/net/nf_conntrack_max"
    )
    if not limit:
        return Finding(OK, "table", f"{count} connections, no limit")
    text = f"{count} of {limit} connections"
    if count >= limit * FILL_WARNING:
        severity = ERROR if count >= limit * FILL_ERROR else WARNING
        text = f"the table is nearly full: {text}; above the limit the kernel drops packets"
        return _advise(severity, "table", text, "nf_conntrack_max", limit * 2, config)
    return Finding(OK, "table", text)


def _advise(severity: str, check: str, message: str, name: str, value: int, config: Config) -> Finding:
    return Finding(severity, check, message, advice.advise_conntrack(name, value, config))


# ---- the daemon ---------------------------------------------------------------------------------------


def check_buffer(config: Config, situation: Situation | None, root: Path) -> Finding:
    """The receive buffer against what was asked for."""
    asked = config[options.CONNTRACK_BUFFER]
    limit = read_number(root / "proc/sys/net/core/rmem_max")
    if situation is None:
        text = f"{render_size(asked)} will be asked for"
        if limit is not None and limit < asked:
            text += "; more than net.core.rmem_max takes CAP_NET_ADMIN, which the service has"
        return Finding(OK, "buffer", text)
    if situation.buffer < asked:
        text = f"the receive buffer has {render_size(situation.buffer)} instead of {render_size(asked)}"
        return Finding(WARNING, "buffer", text, advice.advise_core("rmem_max", asked))
    return Finding(OK, "buffer", f"{render_size(situation.buffer)}, as asked for")


def check_program(situation: Situation, config: Config) -> Finding:
    """Whether the kernel decides what it could of the filter."""
    if not situation.has_room:
        return Finding(WARNING, "filter", NO_ROOM, _refilter(config))
    return Finding(OK, "filter", "the kernel runs the filter's program")


def _refilter(config: Config) -> str:
    line, _, note = advice.advise_room(config).partition("  #")
    return f"{line}; conntrackctl reload-filter" + (f"  #{note}" if note else "")


def check_engine(situation: Situation) -> Finding:
    """Whether events are the core's business, or Python's."""
    if situation.engine_fault:
        return Finding(WARNING, "core", f"{NO_CORE} ({situation.engine_fault})", NO_CORE_REMEDY)
    return Finding(OK, "core", "the core in C is loaded")


def check_loss(situation: Situation) -> Finding:
    """Whether the kernel had to drop events."""
    if situation.lost:
        wanted = (
            f"in conntrackd.yaml: conntrack: {{buffer: {render_size(max(situation.buffer, 1 << 20) * 2)}}}"
        )
        return Finding(WARNING, "loss", f"{situation.lost} events were lost in the kernel", wanted)
    return Finding(OK, "loss", "no event was lost in the kernel")


def check_geoip(
    config: Config, situation: Situation | None = None, now: float | None = None
) -> Iterator[Finding]:
    """Each database: whether it is there, can be used (as a daemon found, or by reading it here), its age."""
    for path in config[options.GEOIP_DATABASE]:
        if situation is not None and (fault := situation.databases.get(path)) is not None:
            yield Finding(WARNING, "geoip", f"{fault.origin}: {fault.message}", fault.hint)
            continue
        try:
            age = ((time.time() if now is None else now) - path.stat().st_mtime) / 86400
            if situation is None:
                from conntrackd.geoip.databases import GeoIP  # noqa: PLC0415  # late, as in daemon.py

                GeoIP([path], config[options.GEOIP_LOCALE], 0, Stats())
        except OSError as error:
            is_hidden = situation is None and isinstance(error, PermissionError)
            yield _blame_database(f"{path}: {error.strerror}", is_hidden=is_hidden)
            continue
        except ConntrackdError as error:
            yield _blame_database(error.message, is_hidden=not os.access(path, os.R_OK, effective_ids=True))
            continue
        if age > GEOIP_DAYS:
            yield Finding(WARNING, "geoip", f"{path} is {age:.0f} days old", "geoipupdate")
        else:
            yield Finding(OK, "geoip", f"{path} is {max(age, 0):.0f} days old")


def _blame_database(message: str, *, is_hidden: bool) -> Finding:
    """`is_hidden`: from whoever asks, and perhaps not from the service."""
    severity, remedy = (NOTE, AS_ROOT) if is_hidden else (ERROR, GEOIP_REMEDY)
    return Finding(severity, "geoip", message, remedy)


# ---- the sinks ----------------------------------------------------------------------------------------


def check_sinks(config: Config, situation: Situation | None, root: Path) -> Iterator[Finding]:
    """Whether each sink's receiver can be reached: as the daemon sees it, or tried from here."""
    sinks = {sink.name: sink for sink in list_sinks(config)}
    enabled = [sink.name for sink in sinks.values() if sink.is_enabled]
    if not enabled:
        yield Finding(
            ERROR, "sink", "no sink is enabled", "in conntrackd.yaml: sink: {journal: {enable: true}}"
        )
    for name in enabled if situation is None else situation.sinks:
        if situation is None:
            yield check_receiver(sinks[name], root)
        elif name in sinks:  # else a reload has just removed it
            yield check_sink_state(sinks[name], situation.sinks[name], situation.troubles.get(name, ""))


def check_sink_state(sink: ConfiguredSink, status: SinkStatus, trouble: str = "") -> Finding:
    """What the outbox says, and what comes out of it."""
    name, prefix = sink.name, sink.prefix
    text = f"{name} is {status.state}{f': {status.error}' if status.error else ''}"
    match status.state:
        case "refused":
            return Finding(
                ERROR, "sink", text, f"check the receiver's log, and {prefix.removesuffix('.')} here"
            )
        case "failed" | "disabled":
            severity = ERROR if status.state == "failed" else NOTE
            return Finding(severity, "sink", text, f"conntrackctl sink enable {name}")
        case "retrying":
            return Finding(WARNING, "sink", text, RECEIVERS[sink.kind.name].format(prefix))
    if trouble:
        remedy = f"a faster receiver, a larger {prefix}queue, or a filter that keeps less"
        return Finding(WARNING, "sink", f"{name} {trouble}", remedy)
    return Finding(OK, "sink", text)


def check_receiver(sink: ConfiguredSink, root: Path) -> Finding:
    """A connection, as far as that shows anything."""
    name, config = sink.name, sink.config
    match sink.kind.name:
        case "journal":
            if not (root / JOURNAL_SOCKET).exists():
                return Finding(ERROR, "sink", f"{name}: journald is not running here", "use another sink")
            return Finding(OK, "sink", f"{name}: journald is running")
        case "syslog":
            address = config[options.SINK_SYSLOG_ADDRESS]
        case "loki":
            address = config[options.SINK_LOKI_ADDRESS]
        case _:
            return Finding(OK, "sink", f"{name} is enabled")
    reason = try_address(address)
    if reason:
        return Finding(WARNING, "sink", f"{name}: {address}: {reason}", f"fix {sink.prefix}address")
    return Finding(OK, "sink", f"{name}: {address} can be reached")


def try_address(address: str) -> str:
    """Why nothing answers there, or nothing."""
    parts = urlsplit(address)
    try:
        if parts.scheme in {"unix", "unixgram"}:
            return "" if Path(parts.path).is_socket() else "no such socket"
        default = {"udp": 514, "tcp": 514, "tls": 6514, "http": 80, "https": 443}[parts.scheme]
        where = (parts.hostname or "", parts.port or default)
        if parts.scheme == "udp":
            socket.getaddrinfo(*where, type=socket.SOCK_DGRAM)
        else:
            socket.create_connection(where, CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_journal_rate(root: Path, unit: str = "conntrackd.service") -> Finding:
    """journald drops what one service logs above a rate, unless its unit says otherwise."""
    files = [root / base / unit for base in UNIT_PATHS]
    files += [path for base in UNIT_PATHS for path in sorted((root / base / f"{unit}.d").glob("*.conf"))]
    # systemd does not pass a 0 of a unit on to journald, where the general limit stands then.
    own = {key: value for key, value in read_settings(files).items() if value not in ZERO}
    files = [root / "etc/systemd/journald.conf"]
    files += [path for base in JOURNAL_CONFIG for path in sorted((root / base).glob("*.conf"))]
    general = read_settings(files)
    if {general.get("RateLimitIntervalSec"), general.get("RateLimitBurst")} & ZERO and not own:
        return Finding(OK, "journald", "no rate limit")
    burst = own.get("LogRateLimitBurst") or general.get("RateLimitBurst") or str(JOURNAL_BURST)
    interval = own.get("LogRateLimitIntervalSec") or general.get("RateLimitIntervalSec") or "30s"
    if burst.isdigit() and int(burst) >= ENOUGH_BURST:
        return Finding(OK, "journald", f"journald keeps {burst} messages of the service in {interval}")
    return Finding(
        WARNING,
        "journald",
        f"journald keeps {burst} messages of a service in {interval} and drops the rest",
        f"systemctl edit conntrackd, with these lines: [Service] LogRateLimitBurst={ENOUGH_BURST}",
    )


def read_settings(files: list[Path]) -> dict[str, str]:
    """`Key=value` lines, the last one of each key; files that are not there have none."""
    return {
        match[1]: match[2]
        for path in files
        for match in re.finditer(r"(?m)^\s*([A-Za-z]+)\s*=\s*(.*?)\s*$", _read(path))
    }


# ---- around it ----------------------------------------------------------------------------------------


def check_clock(now: float, synchronized: bool | None) -> Finding:
    """Events carry the time of this machine."""
    if now < OLDEST_TIME:
        return Finding(ERROR, "clock", "the clock is years behind", "timedatectl set-ntp true")
    if synchronized is False:
        return Finding(NOTE, "clock", "the clock is not synchronized", "timedatectl set-ntp true")
    return Finding(OK, "clock", "the clock is set")


def is_synchronized(call: "Callable[[ctypes.Array[ctypes.c_char]], int] | None" = None) -> bool | None:
    """Whether the kernel says that something keeps its clock right; None where it does not say."""
    import ctypes  # noqa: PLC0415  # a daemon whose doctor nobody asks does without it

    timex = ctypes.create_string_buffer(TIMEX_BYTES)  # modes is 0: nothing is set
    try:
        state = call(timex) if call is not None else ctypes.CDLL(None).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def check_packages(root: Path) -> Finding:
    """conntrack-tools has a daemon of the same name, that synchronizes firewalls."""
    if (root / "etc/conntrackd/conntrackd.conf").exists():
        return Finding(
            WARNING,
            "packages",
            "/etc/conntrackd/conntrackd.conf belongs to conntrack-tools, whose daemon has the same name",
            "apt remove conntrackd, where it is that of conntrack-tools (its table tool stays)",
        )
    return Finding(OK, "packages", "no other conntrackd")


def read_number(path: Path) -> int | None:
    """The number in a file of /proc, None where there is none."""
    try:
        return int(_read(path))
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
