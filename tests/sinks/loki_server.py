"""An HTTP server that speaks Loki's push API: its limits, its validation, its duplicates, and faults.

What it does is what Loki 3 does (pkg/distributor/validator.go, pkg/ingester/stream.go): entries are checked
each by itself, good ones of a refused push are stored, an entry with the time and line of one that is there
is dropped in silence, and one that is too far behind the newest of its stream is refused. Statuses and texts
were compared with those of Loki 3.7.6 and of its main branch of August 2026 (65e30f8), run on loopback with
limits low enough to meet each. In two things it is as strict as Loki 3.0: those look at the metadata too
before they take an entry for a duplicate, and do not count `service_name` among the 15 labels.
"""

import gzip
import json
import re
import socket
import socketserver
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl

NANO = 1_000_000_000
BLOCKED = "ingestion blocked for user 'fake' until '2027-01-01T00:00:00Z' with status code '260'"
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Entry:
    """One stored line."""

    time: int
    line: str
    metadata: Labels


@dataclass
class Limits:
    """Loki's defaults, smaller where a test would have to send too much."""

    max_labels: int = 15
    max_label_name: int = 1024
    max_label_value: int = 2048
    max_metadata_size: int = 64 << 10
    """Of names and values together."""
    max_metadata_count: int = 128
    max_body: int = 4 << 20
    max_line: int = 256 << 10
    reject_before: int = 0
    """Nanoseconds since the epoch: reject_old_samples_max_age."""
    reject_after: int | None = None
    """Nanoseconds since the epoch: creation_grace_period."""
    max_behind: int | None = None
    """Nanoseconds behind the newest entry of the stream: half of max_chunk_age."""
    burst: int | None = None
    """Entries of a push at most: ingestion_burst_size_mb, which Loki counts in bytes."""
    stream_burst: int | None = None
    """Entries of a stream at most: per_stream_rate_limit_burst, which Loki counts in bytes."""
    shards: int = 1
    """Into how many streams shard_streams divides one; a push that comes again goes to another of them."""
    blocked: bool = False
    """block_ingestion_until: nothing is stored, and the status is no error."""


@dataclass
class Request:
    """What came, for the test to look at."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


# What a test wants to happen to the next push: gets the handler; returns whether the push was answered.
Fault = Callable[["Handler"], bool]


@dataclass
class Store:
    """The state of the server. One lock: pushes are handled one at a time."""

    limits: Limits = field(default_factory=Limits)
    streams: dict[Labels, dict[tuple[int, str], Entry]] = field(default_factory=dict)
    newest: dict[Labels, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    early: deque[Fault] = field(default_factory=deque)
    """As `faults`, but before the body of the push is read."""
    taken: int = 0
    """Bytes of replies without end that the client's kernel took."""
    streamed: Counter[Labels] = field(default_factory=Counter)
    """Entries of each stream, for limits.stream_burst; a test empties it as time does."""
    duplicates: int = 0
    count: int = 0
    """Of the pushes that were looked into."""
    ready: int = 200
    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: dict[str, Callable[["Store", Mapping[str, str]], tuple[int, str]]] = field(default_factory=dict)
    """Status and text for the parameters of a GET, by path."""
    let_go: threading.Event = field(default_factory=threading.Event)

    @property
    def pushes(self) -> list[Request]:
        """The push requests that came, accepted or not."""
        return [request for request in self.requests if request.path.endswith("/loki/api/v1/push")]

    def query(self, **wanted: str) -> list[Entry]:
        """Entries of all streams that have these labels, in the order of their time."""
        with self.lock:
            found = [
                entry
                for labels, entries in self.streams.items()
                if set(wanted.items()) <= set(labels)
                for entry in entries.values()
            ]
        return sorted(found, key=lambda entry: entry.time)

    def push(self, body: bytes) -> tuple[int, str]:
        """Stores what is good. Returns status and text."""
        try:
            streams = json.loads(body)["streams"]
        except (ValueError, KeyError, TypeError):
            return 400, "couldn't parse push request"
        if not streams:
            return 422, "error at least one valid stream is required for ingestion"
        if any(not LABEL_NAME.fullmatch(name) for stream in streams for name in stream["stream"]):
            return 400, "couldn't parse labels: 1:5: parse error: unexpected character inside braces: '-'"
        if self.limits.blocked:
            return (
                260,
                "ingestion blocked for user 'fake' until '2027-01-01T00:00:00Z' with status code '260'",
            )
        self.count += 1
        lines = sum(len(stream["values"]) for stream in streams)
        if self.limits.burst is not None and lines > self.limits.burst:
            return 429, f"ingestion rate limit exceeded while attempting to ingest '{lines}' lines"
        problems: Counter[str] = Counter()
        ignored = 0, ""
        for stream in streams:
            ignored = self._push_stream(stream["stream"], stream["values"], problems)
        # As Loki: the ingester's answer is about the last stream alone, and goes before the distributor's.
        if ignored[0]:
            return ignored
        return (400, _group(problems)) if problems else (204, "")

    def _push_stream(
        self, labels: Mapping[str, str], values: list[list[Any]], problems: Counter[str]
    ) -> tuple[int, str]:
        """What the ingester answers: status and text, 0 where all is well."""
        shard = {"__stream_shard__": str(self.count % self.limits.shards)} if self.limits.shards > 1 else {}
        key = tuple(sorted({**labels, **shard}.items()))
        problem = self._check_labels(labels)
        if problem:
            problems[problem] += 1
            return 0, ""
        if self.limits.stream_burst is not None:
            self.streamed[key] += len(values)
            if self.streamed[key] > self.limits.stream_burst:
                self.streamed[key] -= len(values)
                said = "Per stream rate limit exceeded (limit: 3MB/sec) while attempting to ingest for stream"
                reasons = [
                    (int(time), f"{said} '{_render_labels(key)}' totaling 120B") for time, *_ in values
                ]
                return 429, _ignore(reasons, len(values), key)
        behind = []
        for value in values:
            entry = Entry(int(value[0]), value[1], tuple(value[2].items()))
            assert all(isinstance(text, str) for text in value[2].values())
            assert all(LABEL_NAME.fullmatch(name) for name in value[2])  # others Loki would rename
            problem = self._check_entry(key, entry)
            if problem:
                problems[problem] += 1
            elif too_late := self._check_order(key, entry):
                behind.append((entry.time, too_late))
            else:
                self._store(key, entry)
        return (400, _ignore(behind, len(values), key)) if behind else (0, "")

    def _check_labels(self, labels: Mapping[str, str]) -> str:
        limits, stream = self.limits, f"stream '{_render_labels(tuple(sorted(labels.items())))}'"
        if len(labels) > limits.max_labels:
            return f"entry for {stream} has {len(labels)} label names; limit {limits.max_labels}"
        for name, value in labels.items():
            if len(name.encode()) > limits.max_label_name:
                return f"{stream} has label name too long: '{name}'"
            if len(value.encode()) > limits.max_label_value:
                return f"{stream} has label value too long: '{value}'"
        return ""

    def _check_entry(self, key: Labels, entry: Entry) -> str:
        """The distributor: each entry by itself."""
        limits, stream = self.limits, f"stream '{_render_labels(key)}'"
        if entry.time < limits.reject_before:
            said = f"entry for {stream} has timestamp too old: {_render(entry.time)}"
            return f"{said}, oldest acceptable timestamp is: {_render(limits.reject_before)}"
        if limits.reject_after is not None and entry.time > limits.reject_after:
            return f"entry for {stream} has timestamp too new: {_render(entry.time)}"
        if len(entry.line) > limits.max_line:
            length = f"while adding an entry with length '{len(entry.line)}' bytes"
            return f"max entry size '{limits.max_line}' bytes exceeded for {stream} {length}"
        size, see = (
            sum(len((name + value).encode()) for name, value in entry.metadata),
            "Please see `limits_config`",
        )
        if size > limits.max_metadata_size:
            said = f"structured metadata too large: '{size}' bytes, limit: '{limits.max_metadata_size}' bytes"
            return f"{stream} has {said}. {see}"
        if len(entry.metadata) > limits.max_metadata_count:
            said = f"'{len(entry.metadata)}', limit: '{limits.max_metadata_count}'"
            return f"{stream} has too many structured metadata labels: {said}. {see}"
        return ""

    def _check_order(self, key: Labels, entry: Entry) -> str:
        """The ingester: against the newest of the stream."""
        behind = self.limits.max_behind
        oldest = self.newest.get(key, 0) - (behind or 0)
        if behind is None or entry.time >= oldest:
            return ""
        said = f"entry timestamp is: {_render(entry.time)}, oldest acceptable timestamp is: {_render(oldest)}"
        return f"entry too far behind, {said}"

    def _store(self, key: Labels, entry: Entry) -> None:
        entries = self.streams.setdefault(key, {})
        self.newest[key] = max(self.newest.get(key, 0), entry.time)
        if (entry.time, entry.line) in entries:
            self.duplicates += 1
        else:
            entries[entry.time, entry.line] = entry


def _group(problems: Counter[str]) -> str:
    """The same words once with their number."""
    if problems.total() == 1:
        return next(iter(problems))
    return "; ".join(f"{count} errors like: {problem}" for problem, count in problems.items())


def _ignore(reasons: list[tuple[int, str]], count: int, key: Labels) -> str:
    """What the ingester says of entries of a stream."""
    lines = [
        f"entry with timestamp {_render(time)} ignored, reason: '{why}',\n" for time, why in reasons[:10]
    ]
    ignored = f"total ignored: {len(reasons)} out of {count} for stream: {_render_labels(key)}"
    return f"{''.join(lines)}user 'fake', {ignored}"


def _render_labels(key: Labels) -> str:
    return "{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in key) + "}"


def _render(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // NANO))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a reply is written in two pieces
    server: "Server"

    def log_message(self, format: str, *args: object) -> None:
        """Tests read what is stored, and not this."""

    def reply(self, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> bool:
        """A whole reply, with its length."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        if status != 204:
            self.wfile.write(text.encode())
        return True

    def read_request(self) -> Request:
        """Reads the body too."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        request = Request(self.command, self.path, dict(self.headers), body)
        self.server.store.requests.append(request)
        return request

    def do_GET(self) -> None:
        """Only /ready and what a test gives are there."""
        request = self.read_request()
        store = self.server.store
        path, _, query = request.path.partition("?")
        if path in store.answers:
            self.reply(*store.answers[path](store, dict(parse_qsl(query))))
            return
        if self.path.endswith("/ready"):
            self.reply(store.ready, "ready" if store.ready == 200 else "Ingester not ready: waiting for 15s")
        else:
            self.reply(404, "404 page not found")

    def do_POST(self) -> None:
        """A push, unless a fault comes first."""
        store = self.server.store
        if store.early and store.early.popleft()(self):
            return
        request = self.read_request()
        if store.faults:
            fault = store.faults.popleft()
            if fault(self):
                return
        if len(request.body) > store.limits.max_body:
            self.reply(413, "request body too large")
            return
        body = gzip.decompress(request.body)
        with store.lock:
            status, text = store.push(body)
        self.reply(status, text)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """On a free port of loopback."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, store: Store, port: int = 0) -> None:
        self.store = store
        self.connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remembers connections, to cut them when the server goes."""
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that cuts its connection is part of the tests."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


@contextmanager
def run_server(
    store: Store, *, port: int = 0, wrap: Callable[[socket.socket], socket.socket] | None = None
) -> Iterator[Server]:
    """A server until the end of the block; then all of its connections are cut and its threads are over."""
    server = Server(store, port)
    if wrap is not None:
        server.socket = wrap(server.socket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        store.let_go.set()
        server.shutdown()
        thread.join()
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


# ---- faults: each is what happens to one push


def say(status: int, text: str = "", headers: Mapping[str, str] | None = None) -> Fault:
    """A status and nothing stored."""
    return lambda handler: handler.reply(status, text, headers)


def store_and_say(status: int) -> Fault:
    """Stored, but the reply says something else."""

    def fault(handler: Handler) -> bool:
        _store_last(handler)
        return handler.reply(status)

    return fault


def refuse_one(handler: Handler) -> bool:
    """One entry is bad, the others are stored."""
    store = handler.server.store
    streams = json.loads(gzip.decompress(store.requests[-1].body))["streams"]
    labels, (time, *_) = streams[0]["stream"], streams[0]["values"].pop(0)
    with store.lock:
        store.push(json.dumps({"streams": streams}).encode())
    stream = _render_labels(tuple(sorted(labels.items())))
    said = f"entry for stream '{stream}' has timestamp too new: {_render(int(time))}\n"
    return handler.reply(400, said)


def _store_last(handler: Handler) -> None:
    store = handler.server.store
    with store.lock:
        store.push(gzip.decompress(store.requests[-1].body))


def store_and_reset(handler: Handler) -> bool:
    """Stored, and the reply is lost."""
    _store_last(handler)
    return reset(handler)


def reset(handler: Handler) -> bool:
    """The connection ends with a RST."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    handler.close_connection = True
    handler.connection.close()
    return True


def drip(handler: Handler) -> bool:
    """A header that never ends, a byte at a time."""
    return _drip(handler, b"HTTP/1.1 204 No Content\r\nX-Long: ")


def drip_body(handler: Handler) -> bool:
    """A reply whose body never ends, a byte at a time."""
    return _drip(handler, b"HTTP/1.1 503 Busy\r\n\r\n")


def _drip(handler: Handler, begin: bytes) -> bool:
    handler.wfile.write(begin)
    while not handler.server.store.let_go.wait(0.02):
        handler.wfile.write(b"x")
    handler.close_connection = True
    return True


def _pour(handler: Handler, piece: bytes) -> bool:
    """A gigabyte, as fast as it is taken, and as long as there is somebody to take it."""
    handler.close_connection = True
    for _ in range((1 << 30) // len(piece)):
        handler.wfile.write(piece)
        handler.server.store.taken += len(piece)
    return True


def send_endless(status: int) -> Fault:
    """A body without end, which begins in the same segment: a 204 is believed where nothing comes with it."""

    def fault(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 %d Whatever\r\n\r\n" % status + b"x" * 1000)
        return _pour(handler, b"x" * 65536)

    return fault


def send_garbage(handler: Handler) -> bool:
    """No HTTP at all."""
    return _pour(handler, b"\x1b]0;owned\x07\xff\xfe" * 1000)


def hang(handler: Handler) -> bool:
    """No reply until the test is over."""
    handler.server.store.let_go.wait(60.0)
    handler.close_connection = True
    return True
