"""Loki's query_range over what the tests' server has stored: as documented, and no more of LogQL than we use.

Start is included, end is not. An entry's metadata are among the labels of its stream in the reply, so that
there is a stream for each set of them. The limit counts entries of all streams together.
https://grafana.com/docs/loki/latest/reference/loki-http-api/
"""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import islice

from tests.sinks.loki_server import Entry, Labels, Store

MATCHER = re.compile(r'(\w+)(=~?)"((?:[^"\\]|\\.)*)"')
QUERY = re.compile(r"\{((?:[^}\"]|\"(?:[^\"\\]|\\.)*\")+)\}(?: \| (.+))?")
MAX_ENTRIES = 5000
MAX_MESSAGE = 4 << 20
"""Between the parts of Loki, by gRPC: a longer one is tried until the time is over."""
MAX_LENGTH = 30 * 86_400 * 10**9 + 3_600 * 10**9


def query_range(store: Store, parameters: Mapping[str, str]) -> tuple[int, str]:
    """Status and text."""
    start, end, limit = (int(parameters[name]) for name in ("start", "end", "limit"))
    match = QUERY.fullmatch(parameters["query"])
    if match is None:
        return 400, "parse error at line 1, col 1: syntax error: unexpected IDENTIFIER"
    if limit > MAX_ENTRIES:
        return (
            400,
            f"max entries limit per query exceeded, limit > max_entries_limit ({limit} > {MAX_ENTRIES})",
        )
    if end - start > MAX_LENGTH:
        return 400, "the query time range exceeds the limit (query length: 800h0m0s, limit: 30d1h)"
    streams, wanted = parse_matchers(match[1]), [parse_matchers(text) for text in _list_groups(match[2])]
    with store.lock:
        found = [
            (entry, labels)
            for labels, entries in store.streams.items()
            if fulfils(streams, dict(labels))
            for entry in entries.values()
            if start <= entry.time < end
        ]
    found.sort(key=lambda pair: pair[0].time, reverse=parameters["direction"] == "backward")
    # No further than to the limit: each page asks for all that is left.
    own = ((entry, {**dict(labels), **dict(entry.metadata)}) for entry, labels in found)
    kept = (pair for pair in own if not wanted or any(fulfils(group, pair[1]) for group in wanted))
    text = render(islice(kept, limit))
    if len(text.encode()) > MAX_MESSAGE:
        return 504, "request timed out, decrease the duration of the request or add more label matchers"
    return 200, text


def _list_groups(text: str | None) -> list[str]:
    """Of `a="b" or (c=~"d|e" and f="g")`."""
    return [] if text is None else text.split(" or ")


def parse_matchers(text: str) -> list[tuple[str, re.Pattern[str]]]:
    """Labels, and what all of a value has to be."""
    found = []
    for name, operator, quoted in MATCHER.findall(text):
        value = json.loads(f'"{quoted}"')
        found.append((name, re.compile(re.escape(value) if operator == "=" else value)))
    return found


def fulfils(matchers: list[tuple[str, re.Pattern[str]]], labels: Mapping[str, str]) -> bool:
    return all(pattern.fullmatch(labels.get(name, "")) for name, pattern in matchers)


def render(entries: Iterable[tuple[Entry, dict[str, str]]]) -> str:
    streams: dict[Labels, list[list[str]]] = {}
    for entry, labels in entries:
        shown = tuple(sorted({**labels, "detected_level": labels["level"].lower()}.items()))
        streams.setdefault(shown, []).append([str(entry.time), entry.line])
    result = [{"stream": dict(labels), "values": values} for labels, values in streams.items()]
    return json.dumps({"status": "success", "data": {"resultType": "streams", "result": result, "stats": {}}})
