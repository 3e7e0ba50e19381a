"""Loki's push API: open, write a body, close. loki_push.py has the bodies, and interprets the replies."""

import base64
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from conntrackd import VERSION
from conntrackd.config import options
from conntrackd.config.field_list import choose_names
from conntrackd.config.read import Config, get_host
from conntrackd.delivery.batch import compress
from conntrackd.delivery.sink import SinkRefused, SinkRevised, SinkTrouble, SinkUnavailable
from conntrackd.render import loki
from conntrackd.render.anonymize import Anonymizer
from conntrackd.render.rendered import Rendered, join
from conntrackd.render.schema import NATIVE, SCHEMAS, Schema
from conntrackd.sinks.anonymizer import read_anonymizer
from conntrackd.sinks.http import HttpConnection
from conntrackd.sinks.http_reply import Reply
from conntrackd.sinks.loki_push import (
    FINAL,
    LATER,
    STORED,
    Kind,
    gather_streams,
    halve,
    interpret,
    is_stream_refused,
    list_kinds,
    split_streams,
    write_streams,
)
from conntrackd.sinks.secrets import (
    Origins,
    encode_basic,
    find_credential,
    list_origins,
    read_secret,
    read_stamp,
)
from conntrackd.sinks.tls import Tls, read_tls

PUSH: Final = "/loki/api/v1/push"
READY: Final = "/ready"
USER_AGENT: Final = f"conntrackd/{VERSION}"
READY_TIMEOUT: Final = 2.0
# A push that is larger than ingestion_burst_size is refused with the status of one that comes too early, and
# would be for ever: after as many refusals in a row it is halved.
MAX_THROTTLED: Final = 5
# A stream that Loki does not open is tried as often, which is about a minute, while all behind it waits; from
# then on once a batch, until Loki accepts it.
MAX_STREAM_REFUSALS: Final = 8
# A push that was denied as often may be so for its content, by a firewall for the web, and not for who sends
# it: a push of nothing shows which.
MAX_DENIED: Final = 5
# Of a push an ingester answers for the last stream alone. What it refuses of another one, for its rate of
# 3 MB/s, is gone with a 204: where much is sent, in pushes of more than this part of the largest, each stream
# has one of its own.
LARGE: Final = 1 / 4
NOTHING: Final = b'{"streams":[]}'


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that Loki needs to know of the configuration."""

    address: str
    labels: tuple[tuple[str, str], ...] = ()
    fields: frozenset[str] | None = None
    """Names of those that are written; None for all."""
    schema: Schema = NATIVE
    """Whose names they have."""
    anonymizer: Anonymizer | None = None
    host: str = field(default_factory=socket.gethostname)
    batch_size: int = 1 << 20
    batch_wait: float = 1.0
    timeout: float = 10.0
    tenant: str | None = None
    username: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    origins: Origins = field(default_factory=dict)
    tls: Tls = field(default_factory=Tls)


def create(config: Config) -> "Loki":
    """The sink as configured."""
    return Loki(read_settings(config))


def read_settings(config: Config) -> Settings:
    """As configured. systemd's credentials `loki.password`, `loki.token` stand in for the files.

    Those of a sink with a name of its own begin with that: what is for one server is not sent to another.
    """
    name = "loki" if config.sink is None else config.sink.name
    return Settings(
        address=config[options.SINK_LOKI_ADDRESS],
        labels=config[options.SINK_LOKI_LABELS],
        fields=choose_names(config[options.SINK_LOKI_FIELDS]),
        schema=SCHEMAS[config[options.SINK_LOKI_SCHEMA]],
        anonymizer=read_anonymizer(config, "loki"),
        host=get_host(config),
        batch_size=config[options.SINK_LOKI_BATCH_SIZE],
        batch_wait=config[options.SINK_LOKI_BATCH_WAIT],
        timeout=config[options.SINK_LOKI_TIMEOUT],
        tenant=config[options.SINK_LOKI_TENANT],
        username=config[options.SINK_LOKI_USERNAME],
        password_file=config[options.SINK_LOKI_PASSWORD_FILE] or find_credential(f"{name}.password"),
        token_file=config[options.SINK_LOKI_TOKEN_FILE] or find_credential(f"{name}.token"),
        origins=list_origins(config, options.SINK_LOKI_PASSWORD_FILE, options.SINK_LOKI_TOKEN_FILE),
        tls=read_tls(config, options.SINK_LOKI_TLS),
    )


def make_labels(settings: Settings) -> dict[str, str]:
    """Those of every stream."""
    return {"service_name": "conntrackd", "host": settings.host, **dict(settings.labels)}


def make_headers(settings: Settings) -> tuple[dict[str, str], tuple[str, ...]]:
    """Of every request, and the secrets in them. SinkUnavailable where a secret cannot be read."""
    headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    if settings.tenant is not None:
        headers["X-Scope-OrgID"] = settings.tenant
    if settings.token_file is not None:
        token = read_secret(settings.token_file, settings.origins)
        return {**headers, "Authorization": f"Bearer {token}"}, (token,)
    if settings.username is not None and settings.password_file is not None:
        password = read_secret(settings.password_file, settings.origins, ascii_only=False)
        encoded = base64.b64encode(encode_basic(settings.username, password)).decode()
        return {**headers, "Authorization": f"Basic {encoded}"}, (encoded, password)
    return headers, ()


class Loki:
    """A Sink. See sink.py for the contract."""

    name = "loki"

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.template = loki.make_template(settings.fields, settings.schema).anonymize(settings.anonymizer)
        self.batch_wait = settings.batch_wait
        self._settings = settings
        self._clock = clock
        self._labels = make_labels(settings)
        self._event_size = 300.0  # bytes of an event in a body; corrected by what is written
        self._connection: HttpConnection | None = None
        self._headers: dict[str, str] = {}
        self._secrets: tuple[str, ...] = ()
        self._secret_files = (settings.token_file, settings.password_file)
        self._secret_stamp = read_stamp(self._secret_files)
        self._hint = ""
        self._throttled = 0
        self._most = 1 << 32  # events of a push, after one was halved that had come too early: grows slowly
        self._denied = 0
        self._streams: Counter[Kind] = Counter()  # how often in a row Loki did not open this one

    @property
    def batch_events(self) -> int:
        """As many as make a body of the size that was asked for."""
        return max(1, min(int(self._settings.batch_size / self._event_size), self._most))

    def open(self) -> None:
        """Read secrets and certificates again, and ask /ready, whose answer is a hint and never a gate."""
        settings = self._settings
        self._headers = self._make_headers()
        self._connection = connection = HttpConnection(settings.address, settings.tls)
        self._hint = ""
        with contextlib.suppress(SinkUnavailable):
            reply = connection.request("GET", READY, self._headers, min(READY_TIMEOUT, settings.timeout))
            if reply.status != 200:
                self._hint = f" (/ready: {reply.hide(self._secrets).reason})"

    def write(self, parts: Sequence[Rendered]) -> int:
        """One push. Returns the number of bytes of the body. Every reason names the server."""
        try:
            return self._write(parts)
        except SinkTrouble as trouble:
            trouble.reason = f"{self._settings.address}: {trouble.reason}"
            raise

    def _write(self, parts: Sequence[Rendered]) -> int:
        if read_stamp(self._secret_files) != self._secret_stamp:
            with contextlib.suppress(SinkUnavailable):  # half a file: what was good until now may still be
                self._headers = self._make_headers()
        events = sum(part.events for part in parts)
        if events:
            self._event_size += (sum(len(part.text) for part in parts) / events - self._event_size) / 8
        streams = gather_streams(parts)
        if events > LARGE * self.batch_events and len(streams) > 1:
            return self._write_apart(parts, streams)
        body = compress(write_streams(streams, self._labels))
        reply = self._push(body)
        self._throttled = self._throttled + 1 if reply.status == 429 else 0
        if reply.status != STORED:
            self._interpret(reply, join(parts))
        for kind in streams if self._streams else ():
            self._streams.pop(kind, None)
        self._note_stored()
        return len(body)

    def _interpret(self, reply: Reply, events: Rendered) -> None:
        """Raises what is to become of events that are not stored."""
        try:
            interpret(reply.hide(self._secrets), events, self._clock())
        except SinkUnavailable as absence:
            self._count_refusal(reply, events, absence.reason)
            absence.reason += self._hint
            raise

    def _write_apart(self, parts: Sequence[Rendered], streams: Mapping[Kind, Sequence[memoryview]]) -> int:
        """A push for each stream. What is not taken is left to writes of its own, from there on."""
        size, left = 0, list(streams)
        for kind, entries in streams.items():
            body = compress(write_streams({kind: entries}, self._labels))
            reply = self._push(body)
            if reply.status != STORED:
                events = join(parts)
                others = [part for part in split_streams(events) if list_kinds(part)[0] in left]
                written = events.events - sum(part.events for part in others)
                raise SinkRevised(reply.hide(self._secrets).reason, others, written=written)
            self._streams.pop(kind, None)
            left.remove(kind)
            size += len(body)
        self._note_stored()
        return size

    def _note_stored(self) -> None:
        """Of a whole write: Loki takes as much as that."""
        self._throttled = self._denied = 0
        self._most += self._most // 100 + 1

    def _push(self, body: bytes) -> Reply:
        connection = self._connection
        if connection is None:
            raise SinkUnavailable("closed")
        headers = {**self._headers, "Content-Encoding": "gzip", "Content-Type": "application/json"}
        return connection.request("POST", PUSH, headers, self._settings.timeout, body)

    def _count_refusal(self, reply: Reply, events: Rendered, reason: str) -> None:
        """Raises what is to become of events that are refused again and again while others would not be."""
        if is_stream_refused(reply):
            self._give_up_stream(events, reason)
        elif self._is_throttled(events) and len(halves := halve(events)) > 1:
            self._throttled = MAX_THROTTLED - 2  # what is halved once has to be twice, more often than not
            self._most = min(self._most, halves[0].events)
            raise SinkRevised(reason, halves)
        self._denied = self._denied + 1 if 400 <= reply.status < 500 and reply.status not in LATER else 0
        if self._denied >= MAX_DENIED and self._takes_others():
            self._denied = 0
            if len(halves := halve(events)) > 1:
                raise SinkRevised(reason, halves)
            raise SinkRefused(reason)

    def _is_throttled(self, events: Rendered) -> bool:
        """Whether it comes too early again and again, or is larger than what did not."""
        return self._throttled >= (MAX_THROTTLED if events.events <= self._most else 1)

    def _give_up_stream(self, events: Rendered, reason: str) -> None:
        (kind,) = list_kinds(events)
        self._streams[kind] += 1
        if self._streams[kind] >= MAX_STREAM_REFUSALS:
            raise SinkRefused(reason)

    def _takes_others(self) -> bool:
        """Whether a push of nothing gets Loki's own answer: then the token and the address are right."""
        with contextlib.suppress(SinkUnavailable):
            return self._push(compress([NOTHING])).status in {STORED, *FINAL}
        return False

    def close(self) -> None:
        """Cut off what runs, from whichever thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _make_headers(self) -> dict[str, str]:
        stamp = read_stamp(self._secret_files)
        headers, secrets = make_headers(self._settings)
        self._secrets = secrets or self._secrets
        self._secret_stamp = stamp
        return headers
