"""Events in Loki, a page at a time, of the streams that this machine's daemon has.

https://grafana.com/docs/loki/latest/reference/loki-http-api/#query-logs-within-a-range-of-time
"""

import json
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.errors import DataError, NotPermittedError, UnavailableError
from conntrackd.flow import NANO
from conntrackd.history.selection import HistorySelection, find_conditions
from conntrackd.render.parse import NAMES, REPORTS, Record, parse_text
from conntrackd.render.template import render_time
from conntrackd.sinks.loki import Settings, make_headers, make_labels
from conntrackd.sinks.loki_push import REPLAY
from conntrackd.sinks.tls import make_context, name_cause
from conntrackd.text import quote as quote_text

PATH: Final = "/loki/api/v1/query_range"
# Loki's own limits, unless they were changed: max_entries_limit_per_query is 5000, max_query_length 30d1h. A
# message between its parts has 4 MiB: 5000 entries of 860 bytes end in a 504 after a minute (3.8, measured).
PAGE: Final = 1000
RANGE: Final = 30 * 86_400 * NANO
# An entry has 1 to 2 kB in a reply, and one of 256 kB is the largest that Loki keeps.
MAX_REPLY: Final = 300 << 20
# What a server may take to search; it answers at once where there is little.
SECONDS: Final = 60.0
POLL_SECONDS: Final = 1.0
# Events come in batches and through a spool: so far back each look reaches for some that came late.
OVERLAP: Final = 30 * NANO
# Labels that are no part of an event. A push that is repeated may be divided otherwise, or go to a stream of
# replays: the same event is there twice then, and is shown once.
DIVIDING: Final = frozenset({"__stream_shard__", "__time_shard__", *REPLAY})
HINT: Final = "sink.loki.* in the configuration is what is used; root may read its secrets"


class LokiEntry(NamedTuple):
    """One line, with the labels of its stream and its own."""

    time: int
    line: str
    labels: tuple[tuple[str, str], ...]


class LokiSource:
    """What query_range returns for the labels that the sink writes."""

    def __init__(self, settings: Settings, selection: HistorySelection) -> None:
        self._settings = settings
        self._selection = selection
        self._query = make_query(make_labels(settings), selection)
        since, until = selection.span
        self._end = (time.time_ns() if until is None else until) + 1  # Loki leaves out the end itself
        self._begin = self._end - RANGE if since is None else since
        self._seen: set[LokiEntry] = set()
        """What was read of the last OVERLAP before the end, for follow()."""
        self._oldest = 0
        """What is older was not asked for."""
        parts = urlsplit(settings.address)
        self._path = quote(parts.path, safe="/%").rstrip("/")
        try:
            self._headers, self._secrets = make_headers(settings)
            self._connection: HTTPConnection
            if parts.scheme == "https":
                context = make_context(settings.tls)
                self._connection = HTTPSConnection(
                    parts.hostname or "", parts.port, timeout=SECONDS, context=context
                )
            else:
                self._connection = HTTPConnection(parts.hostname or "", parts.port, timeout=SECONDS)
        except SinkUnavailable as error:
            raise UnavailableError(f"Loki cannot be asked: {error.reason}", hint=HINT) from error

    def close(self) -> None:
        """The connection is kept between requests."""
        self._connection.close()

    def read(self) -> Iterator[Record]:
        """All that is wanted, oldest first; without a --since of the last 30 days."""
        return self._choose(self._note(self._read_forward(self._begin, self._end)))

    def read_last(self, count: int) -> list[Record]:
        """The last so many of what is wanted, oldest first."""
        found: list[Record] = []
        for record in self._choose(self._note(self._read_backward(self._begin, self._end), is_last=True)):
            found.append(record)
            if len(found) == count:
                break
        return found[::-1]

    def follow(self) -> Iterator[Record]:
        """What comes after what was read, without an end."""
        begin = max(self._oldest, self._end - OVERLAP)
        while True:
            end = time.time_ns()
            fresh = [entry for entry in self._read_forward(begin, end) if entry not in self._seen]
            yield from self._choose(fresh)
            begin = max(self._oldest, end - OVERLAP)
            self._seen = {entry for entry in self._seen.union(fresh) if entry.time >= begin}
            time.sleep(POLL_SECONDS)

    def _note(self, entries: Iterator[LokiEntry], *, is_last: bool = False) -> Iterator[LokiEntry]:
        for entry in entries:
            if entry.time >= self._end - OVERLAP:
                self._seen.add(entry)
            if is_last:
                self._oldest = entry.time
            yield entry

    def _choose(self, entries: Iterator[LokiEntry] | list[LokiEntry]) -> Iterator[Record]:
        for entry in entries:
            try:
                record = read_entry(entry)
                if self._selection.accepts(record):
                    yield record
            except DataError as error:
                self._selection.damage.add("loki", error)

    # ---- pages ----------------------------------------------------------------------------------------

    def _read_forward(self, begin: int, end: int) -> Iterator[LokiEntry]:
        """In the order of time. A page begins with the time at which the one before it ended."""
        seen: set[LokiEntry] = set()
        while begin < end:
            limit = min(end, begin + RANGE)
            page = self._ask(begin, limit, "forward")
            fresh = [entry for entry in dict.fromkeys(page) if entry not in seen]
            yield from fresh
            if len(page) < PAGE:
                begin, seen = limit, set()
                continue
            last = page[-1].time
            # A page of one time alone: there is no way to the rest of that time.
            begin = last if last > begin or fresh else last + 1
            seen = {entry for entry in page if entry.time == last}

    def _read_backward(self, begin: int, end: int) -> Iterator[LokiEntry]:
        """The newest first."""
        seen: set[LokiEntry] = set()
        while begin < end:
            limit = max(begin, end - RANGE)
            page = self._ask(limit, end, "backward")
            fresh = [entry for entry in dict.fromkeys(page) if entry not in seen]
            yield from fresh
            if len(page) < PAGE:
                end, seen = limit, set()
                continue
            first = page[-1].time
            end = first + 1 if fresh else first
            seen = {entry for entry in page if entry.time == first}

    def _ask(self, begin: int, end: int, direction: str) -> list[LokiEntry]:
        parameters = {
            "query": self._query,
            "start": begin,
            "end": end,
            "limit": PAGE,
            "direction": direction,
        }
        entries = read_reply(self._request(f"{self._path}{PATH}?{urlencode(parameters)}"))
        # Each stream is in order, and there is one for each set of labels: almost one for each event.
        return sorted(entries, key=lambda entry: entry.time, reverse=direction == "backward")

    def _request(self, path: str) -> bytes:
        address = self._settings.address
        try:
            self._connection.request("GET", path, headers=self._headers)
            reply = self._connection.getresponse()
            body = reply.read(MAX_REPLY + 1)
        except (OSError, HTTPException, ValueError) as error:
            self._connection.close()
            raise UnavailableError(f"Loki at {address}: {name_cause(error)}", hint=HINT) from error
        if len(body) > MAX_REPLY:
            raise UnavailableError(f"Loki at {address} sends more than was asked for")
        if reply.status == 200:
            return body
        text = body.decode(errors="replace").strip()
        for secret in self._secrets:
            text = text.replace(secret, "***")
        message = f"Loki at {address} replied {reply.status}: {quote_text(text)}"
        kind = NotPermittedError if reply.status in {401, 403} else UnavailableError
        raise kind(message, hint=HINT)


def make_query(labels: Mapping[str, str], selection: HistorySelection) -> str:
    """LogQL: the sink's own streams; of them reports, and what the rules can keep, or more than that."""
    chosen = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
    conditions = find_conditions(selection.rules)
    if conditions is None:
        return f"{{{chosen}}}"
    groups = [
        *(f'type="{name}"' for name in REPORTS),
        *(_render_condition(condition) for condition in conditions),
    ]
    return f"{{{chosen}}} | {' or '.join(groups)}"


def _render_condition(condition: Mapping[str, list[str]]) -> str:
    # Names, numbers and addresses: in a regular expression a dot is one of them, too, and others with it.
    parts = [f'{name}=~"{"|".join(values)}"' for name, values in condition.items()]
    return f"({' and '.join(parts)})"


def read_reply(body: bytes) -> list[LokiEntry]:
    """The entries of a reply, as they stand there. Raises UnavailableError for anything else."""
    try:
        data = json.loads(body)["data"]
        if data["resultType"] != "streams":
            raise ValueError(data["resultType"])
        return [
            LokiEntry(int(moment), str(line), labels)
            for stream in data["result"]
            for labels in [
                tuple(sorted(item for item in stream["stream"].items() if item[0] not in DIVIDING))
            ]
            for moment, line, *_ in stream["values"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnavailableError("this is not a reply of Loki's query_range", hint=HINT) from None


def read_entry(entry: LokiEntry) -> Record:
    """An entry -> the record that the stream would have, with the host. Labels of one's own are left out."""
    own: dict[str, Any] = {**dict(entry.labels), "msg": entry.line, "time": render_time(entry.time)}
    return {name: parse_text(name, own[name]) for name in NAMES if isinstance(own.get(name), str)}
