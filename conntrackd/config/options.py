"""OPTIONS: each setting once. Flag, variable, help, completion, man entry, sample and type derive from it.

A setting is a typed constant, so that `config[CONNTRACK_BUFFER]` is an int to the type checker too.
"""

from typing import Final, NamedTuple

from conntrackd.config.field_list import FIELD_LIST
from conntrackd.config.flow_metrics import FLOW_METRICS
from conntrackd.config.labels import LABELS
from conntrackd.config.listen import LISTEN, TEXTFILE
from conntrackd.config.option import File, Option, Seconds, SpoolPath, Text
from conntrackd.config.values import (
    BUS,
    EVENTS,
    FLAG,
    HOSTNAME,
    LOCALE,
    NAMESPACE,
    PATH,
    PATHS,
    PROTOCOLS,
    RULES,
    SPOOL,
    TENANT,
    USER,
    WRITER,
    count,
    duration,
    one_of,
    size,
    url,
)
from conntrackd.config.values import SETS as SET_FILES
from conntrackd.flow import ALL_EVENTS, EventType, Protocol

# An event takes 0.2 to 0.5 kB while it waits, in each sink's form: a full outbox of this size holds 10 MB.
QUEUE: Final = count(1, 10_000_000)
QUEUE_DEFAULT: Final = 32_768
# journald stores some 20,000 records a second; a flush of 60,000 flows reached it with 295 and 1,403 dropped.
QUEUE_DEFAULT_JOURNAL: Final = 65_536
# A flow takes 21 to 43 bytes (core/flows.h), with heartbeats 64 to 128 more (core/deltas.h): 2.9 GB at most,
# while the kernel takes 5 GB for as many.
FLOWS: Final = count(0, 1 << 24)
# Below a second the records are more than the traffic; who waits longer than a day has the end of the flow.
HEARTBEAT: Final = duration(1, 86_400)
SPOOL_MAX: Final = size(1 << 20, 1 << 40)
FACILITIES: Final = (
    *["kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"],
    *(f"local{number}" for number in range(8)),
)
WAITING: Final = "Events to queue in memory before new ones are dropped"
CHOSEN: Final = "Fields to write in place of all; or -NAME to leave out, +NAME to add"
SCHEMA: Final = one_of("native", "ecs", "otel")
SCHEMA_HELP: Final = "Names of the fields: conntrackd's, or those of ECS or OpenTelemetry"
OWN_RULES: Final = "Rule for this sink alone, of the events that the global filter keeps"


class AnonymizeOptions(NamedTuple):
    """How a sink writes something else in place of addresses: the same settings for each kind."""

    mode: Option[str]
    which: Option[str]
    only: Option[str]
    ipv4_bits: Option[int]
    ipv6_bits: Option[int]
    key_file: Option[File]


def make_anonymize(kind: str) -> AnonymizeOptions:
    """Those of this kind."""
    key = f"sink.{kind}.anonymize"
    modes = one_of("none", "truncate", "pseudonym")
    which, only = one_of("both", "source", "destination"), one_of("all", "private", "public")
    return AnonymizeOptions(
        Option(key, modes, "none", "Write addresses cut short, or a pseudonym of each"),
        Option(f"{key}_which", which, "both", "Whose addresses to anonymize"),
        Option(f"{key}_only", only, "all", "Networks whose addresses to anonymize, as rules name them"),
        Option(f"{key}_ipv4_bits", count(1, 32), 8, "Last bits of IPv4 addresses that truncate sets to 0"),
        Option(f"{key}_ipv6_bits", count(1, 128), 80, "Last bits of IPv6 addresses that truncate sets to 0"),
        Option[File](
            f"{key}_key_file",
            PATH,
            None,
            "File with the 32 bytes of the key of pseudonyms",
            example=f"/etc/conntrackd/{kind}.key",
            secret=True,
        ),
    )


class TlsOptions(NamedTuple):
    """Whom a sink trusts, and who it is: the same settings for each kind that can use TLS."""

    ca: Option[File]
    cert: Option[File]
    key: Option[File]
    verify: Option[bool]


def make_tls(kind: str) -> TlsOptions:
    """Those of this kind."""
    key, path = f"sink.{kind}.tls", f"/etc/conntrackd/{kind}"
    ca, ours = "CA certificates to trust instead of the system's", "Private key of the client certificate"
    return TlsOptions(
        Option[File](f"{key}.ca", PATH, None, ca, example=f"{path}-ca.pem"),
        Option[File](f"{key}.cert", PATH, None, "Client certificate", example=f"{path}.pem"),
        Option[File](f"{key}.key", PATH, None, ours, example=f"{path}.key", secret=True),
        Option(f"{key}.verify", FLAG, True, "Verify the server's certificate and name"),
    )


class SpoolOptions(NamedTuple):
    """Of each kind whose receiver acknowledges what it takes, so that keeping it makes sense."""

    path: Option[SpoolPath]
    size: Option[int]


def make_spool(kind: str) -> SpoolOptions:
    """Those of this kind."""
    key, example = f"sink.{kind}.spool", f"/var/lib/conntrackd/{kind}"
    path = "Directory that keeps events while the server is unavailable, or off"
    bound = "Size of the spool, above which the oldest events are dropped"
    return SpoolOptions(
        Option[SpoolPath](key, SPOOL, None, path, example=example, reload=False),
        Option(f"{key}_max", SPOOL_MAX, 256 << 20, bound, reload=False),
    )


LOG_LEVEL = Option(
    "log.level",
    one_of("debug", "info", "warn", "error"),
    "info",
    "Minimum severity of the daemon's own log on stderr",
)
CONNTRACK_EVENTS = Option("conntrack.events", EVENTS, EventType(ALL_EVENTS), "Event types to process")
CONNTRACK_RECORDS = Option(
    "conntrack.records",
    one_of("events", "flows", "both"),
    "events",
    "What to write: each event, each flow when it ends, or both",
)
CONNTRACK_FLOWS_MAX = Option(
    "conntrack.flows_max",
    FLOWS,
    262_144,
    "Number of flows whose start and last counters are remembered",
)
CONNTRACK_HEARTBEAT = Option[Seconds](
    "conntrack.heartbeat",
    HEARTBEAT,
    None,
    "Write each flow that lives as an ALIVE record, at this interval",
    example="60s",
    reload=False,
)
CONNTRACK_PROTOCOLS = Option(
    "conntrack.protocols", PROTOCOLS, frozenset({Protocol.TCP, Protocol.UDP}), "Protocols to process"
)
CONNTRACK_BUFFER = Option(
    "conntrack.buffer",
    size(4096, 1023 << 20),
    64 << 20,
    "Size of the socket's receive buffer; events beyond it are lost",
    reload=False,
)
CONNTRACK_ACTIVATE = Option(
    "conntrack.activate",
    FLAG,
    False,
    "Create an nftables table that makes the kernel track connections",
)
CONNTRACK_NETNS = Option[Text](
    "conntrack.netns",
    NAMESPACE,
    None,
    "Network namespace to listen in, by name or path",
    example="office",
    reload=False,
)
CONNTRACK_REPLAY = Option[File](
    "conntrack.replay",
    PATH,
    None,
    "Process a recording instead of listening, then exit",
    example="events.nl",
    reload=False,
)
CONNTRACK_SNAPSHOT = Option(
    "conntrack.snapshot",
    FLAG,
    False,
    "Write the flows already in the connection table at the start",
    reload=False,
)
CONNTRACK_READERS = Option(
    "conntrack.readers",
    count(1, 16),
    1,
    "Number of sockets and threads among which flows are divided",
    reload=False,
)
CONNTRACK_RESYNC = Option(
    "conntrack.resync",
    one_of("off", "snapshot"),
    "off",
    "After a loss, write the flows in the table that were not reported",
    reload=False,
)
CONNTRACK_RELIABLE = Option(
    "conntrack.reliable",
    FLAG,
    False,
    "Make the kernel keep each flow until its DESTROY is delivered",
    reload=False,
)
CONNTRACK_KERNEL_FILTER = Option(
    "conntrack.kernel_filter", FLAG, True, "Let the kernel drop events that the filter would drop"
)
FILTER = Option(
    "filter",
    RULES,
    (),
    "Rule to apply; the first one that matches decides",
    example="drop destination network LOCAL\ndrop protocol UDP and destination port 53",
)
FILTER_FILE = Option[File](
    "filter_file",
    PATH,
    None,
    "File with one rule per line, applied before those of filter",
    example="/etc/conntrackd/filter.rules",
)
SETS = Option(
    "sets",
    SET_FILES,
    (),
    "Named sets of addresses and networks for rules (@NAME), and their files",
    example="bad=/etc/conntrackd/bad.txt",
)
GEOIP_DATABASE = Option(
    "geoip.database",
    PATHS,
    (),
    "MaxMind-format databases: City, Country or ASN",
    example="/var/lib/GeoIP/GeoLite2-City.mmdb",
)
GEOIP_LOCALE = Option("geoip.locale", LOCALE, "en", "Language of city and country names")
GEOIP_CACHE = Option(
    "geoip.cache", count(0, 10_000_000), 65_536, "Number of addresses whose location is cached"
)
COMMUNITY_ID_ENABLE = Option(
    "community_id.enable", FLAG, False, "Write the Community ID of each flow, as other tools do"
)
COMMUNITY_ID_SEED = Option(
    "community_id.seed", count(0, 65_535), 0, "Seed of the Community IDs: that of the other tools"
)
SINK_STREAM_ENABLE = Option("sink.stream.enable", FLAG, False, "Write events as JSON lines")
SINK_STREAM_WRITER = Option(
    "sink.stream.writer",
    WRITER,
    "stdout",
    "Destination of JSON lines: stdout, stderr, discard or file:///PATH",
)
SINK_STREAM_QUEUE = Option("sink.stream.queue", QUEUE, QUEUE_DEFAULT, WAITING)
SINK_STREAM_FILTER = Option(
    "sink.stream.filter", RULES, (), OWN_RULES, example="drop protocol UDP and destination port 53"
)
SINK_STREAM_FIELDS = Option("sink.stream.fields", FIELD_LIST, (), CHOSEN, example="-msg,-flow")
SINK_STREAM_SCHEMA = Option("sink.stream.schema", SCHEMA, "native", SCHEMA_HELP)
SINK_STREAM_ANONYMIZE = make_anonymize("stream")
SINK_JOURNAL_ENABLE = Option("sink.journal.enable", FLAG, False, "Write events to the systemd journal")
SINK_JOURNAL_QUEUE = Option("sink.journal.queue", QUEUE, QUEUE_DEFAULT_JOURNAL, WAITING)
SINK_JOURNAL_FILTER = Option(
    "sink.journal.filter", RULES, (), OWN_RULES, example="log type DESTROY\ndrop any"
)
SINK_JOURNAL_FIELDS = Option("sink.journal.fields", FIELD_LIST, (), CHOSEN, example="-flow,-time")
SINK_JOURNAL_ANONYMIZE = make_anonymize("journal")
SINK_SYSLOG_ENABLE = Option("sink.syslog.enable", FLAG, False, "Send events to a syslog server")
SINK_SYSLOG_ADDRESS = Option(
    "sink.syslog.address",
    url("udp", "tcp", "tls", "unix", "unixgram"),
    "udp://localhost:514",
    "Address of the syslog server, or socket of a local one",
)
SINK_SYSLOG_FORMAT = Option(
    "sink.syslog.format",
    one_of("rfc5424", "rfc3164", "cee"),
    "rfc5424",
    "Message format; rfc3164 by default on a local socket",
)
SINK_SYSLOG_FRAMING = Option(
    "sink.syslog.framing",
    one_of("octet-counting", "lf"),
    "octet-counting",
    "How messages are delimited over TCP and TLS",
)
SINK_SYSLOG_SEGMENTS = Option(
    "sink.syslog.segments",
    FLAG,
    False,
    "Over UDP, pad messages with spaces and send many per system call",
)
SINK_SYSLOG_FACILITY = Option(
    "sink.syslog.facility", one_of(*FACILITIES), "daemon", "Facility of the messages"
)
SINK_SYSLOG_QUEUE = Option("sink.syslog.queue", QUEUE, QUEUE_DEFAULT, WAITING)
SINK_SYSLOG_FILTER = Option(
    "sink.syslog.filter", RULES, (), OWN_RULES, example="drop destination network LOCAL,PRIVATE"
)
SINK_SYSLOG_FIELDS = Option("sink.syslog.fields", FIELD_LIST, (), CHOSEN, example="-flow,-mark")
SINK_SYSLOG_ANONYMIZE = make_anonymize("syslog")
SINK_SYSLOG_TLS = make_tls("syslog")
SINK_SYSLOG_SPOOL = make_spool("syslog")
SINK_LOKI_ENABLE = Option("sink.loki.enable", FLAG, False, "Send events to Grafana Loki")
# Paths that Loki's documentation gives to clients, now and in its first versions.
LOKI_PATHS: Final = ("/loki/api/v1/push", "/loki/api/v1", "/api/prom/push", "/ready")
SINK_LOKI_ADDRESS = Option(
    "sink.loki.address",
    url("http", "https", endpoints=LOKI_PATHS),
    "http://localhost:3100",
    "Base URL of Loki",
)
SINK_LOKI_LABELS = Option(
    "sink.loki.labels",
    LABELS,
    (),
    "Stream labels; host and service_name override the daemon's",
    example="env=prod,team=platform",
)
SINK_LOKI_QUEUE = Option("sink.loki.queue", QUEUE, QUEUE_DEFAULT, WAITING)
SINK_LOKI_FILTER = Option("sink.loki.filter", RULES, (), OWN_RULES, example="log type NEW\ndrop any")
SINK_LOKI_FIELDS = Option(
    "sink.loki.fields", FIELD_LIST, (), CHOSEN, example="time,msg,type,prot,src,dst,dport"
)
SINK_LOKI_SCHEMA = Option("sink.loki.schema", SCHEMA, "native", SCHEMA_HELP)
SINK_LOKI_ANONYMIZE = make_anonymize("loki")
SINK_LOKI_BATCH_SIZE = Option(
    "sink.loki.batch_size", size(1024, 64 << 20), 1 << 20, "Send a batch once it reaches this size"
)
SINK_LOKI_BATCH_WAIT = Option(
    "sink.loki.batch_wait", duration(0.01, 300), 1.0, "Send a batch once its oldest event is this old"
)
SINK_LOKI_TIMEOUT = Option(
    "sink.loki.timeout", duration(0.1, 3600), 10.0, "Timeout of a request and its reply"
)
SINK_LOKI_TENANT = Option[Text](
    "sink.loki.tenant", TENANT, None, "Tenant ID, sent as X-Scope-OrgID", example="network"
)
SINK_LOKI_USERNAME = Option[Text](
    "sink.loki.username", USER, None, "User name for basic authentication", example="conntrackd"
)
SINK_LOKI_PASSWORD_FILE = Option[File](
    "sink.loki.password_file",
    PATH,
    None,
    "File with the password for basic authentication",
    example="/etc/conntrackd/loki.password",
    secret=True,
)
SINK_LOKI_TOKEN_FILE = Option[File](
    "sink.loki.token_file",
    PATH,
    None,
    "File with a bearer token",
    example="/etc/conntrackd/loki.token",
    secret=True,
)
SINK_LOKI_TLS = make_tls("loki")
SINK_LOKI_SPOOL = make_spool("loki")
BUS_ENABLE = Option(
    "bus.enable", FLAG, True, "Offer the D-Bus interface that conntrackctl uses", reload=False
)
BUS_ADDRESS = Option[Text](
    "bus.address",
    BUS,
    None,
    "D-Bus address to use instead of the system bus",
    example="unix:path=/run/dbus/system_bus_socket",
    reload=False,
)
METRICS_LISTEN = Option[Text](
    "metrics.listen",
    LISTEN,
    None,
    "Where Prometheus may ask for metrics; systemd's socket where it passes one",
    example="127.0.0.1:9477",
)
METRICS_TEXTFILE = Option[File](
    "metrics.textfile",
    TEXTFILE,
    None,
    "File for node_exporter's textfile collector, written every 15 seconds",
    example="/run/conntrackd/conntrackd.prom",
)
METRICS_FLOWS = Option(
    "metrics.flows",
    FLOW_METRICS,
    (),
    "Connections to count, by the values of chosen fields",
    example="{name: by_port, by: [protocol, destination.port], max_series: 200}",
)
SHUTDOWN_TIMEOUT = Option(
    "shutdown_timeout",
    duration(0, 3600),
    10.0,
    "Time for the sinks to write what is queued when the daemon stops",
)
STATE_DIRECTORY = Option[File](
    "state_directory",
    PATH,
    None,
    "Directory for spools and state; systemd's StateDirectory= if set",
    example="/var/lib/conntrackd",
    reload=False,
)
HOST = Option[Text](
    "host",
    HOSTNAME,
    None,
    "Host name in syslog, Loki and other schemas, instead of the system's",
    example="edge1",
)

OPTIONS: tuple[Option[object], ...] = tuple(
    option
    for value in list(globals().values())
    if isinstance(value, Option | AnonymizeOptions | TlsOptions | SpoolOptions)
    for option in ((value,) if isinstance(value, Option) else value)
)
"""All the constants above, in their order."""


class SinkOptions(NamedTuple):
    """What all kinds have, and spools and TLS where they have them."""

    enable: Option[bool]
    queue: Option[int]
    filter: Option[tuple[str, ...]]
    fields: Option[tuple[str, ...]]
    anonymize: AnonymizeOptions
    spool: SpoolOptions | None = None
    tls: TlsOptions | None = None


SINK_OPTIONS: Final = {
    "stream": SinkOptions(
        SINK_STREAM_ENABLE, SINK_STREAM_QUEUE, SINK_STREAM_FILTER, SINK_STREAM_FIELDS, SINK_STREAM_ANONYMIZE
    ),
    "journal": SinkOptions(
        SINK_JOURNAL_ENABLE,
        SINK_JOURNAL_QUEUE,
        SINK_JOURNAL_FILTER,
        SINK_JOURNAL_FIELDS,
        SINK_JOURNAL_ANONYMIZE,
    ),
    "syslog": SinkOptions(
        SINK_SYSLOG_ENABLE,
        SINK_SYSLOG_QUEUE,
        SINK_SYSLOG_FILTER,
        SINK_SYSLOG_FIELDS,
        SINK_SYSLOG_ANONYMIZE,
        SINK_SYSLOG_SPOOL,
        SINK_SYSLOG_TLS,
    ),
    "loki": SinkOptions(
        SINK_LOKI_ENABLE,
        SINK_LOKI_QUEUE,
        SINK_LOKI_FILTER,
        SINK_LOKI_FIELDS,
        SINK_LOKI_ANONYMIZE,
        SINK_LOKI_SPOOL,
        SINK_LOKI_TLS,
    ),
}
"""By the kind of a sink, which has further ones of its own."""
