"""Loki's query_range over what the tests' server has stored: as documented, and no more of LogQL than we use.

Start is included, end is not. An entry's metadata are among the labels of its stream in the reply, so that
there is a stream for each set of them. The limit counts entries of all streams together.
https://grafana.com/docs/loki/latest/reference/loki-http-api/
"""

import json
import re
from collections.abc import Mapping

from tests.sinks.loki_server import Entry, Labels, Store

MATCHER = re.compile(r'(\w+)(=~?)"((?:[^"\\]|\\.)*)"')
QUERY = re.compile(r"\{((?:[^}\"]|\"(?:[^\"\\]|\\.)*\")+)\}(?: \| (.+))?")
MAX_ENTRIES = 5000
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
    with store.lock:
        found = [
            (entry, {**dict(labels), **dict(entry.metadata)})
            for labels, entries in store.streams.items()
            if all(holds(matcher, dict(labels)) for matcher in MATCHER.finditer(match[1]))
            for entry in entries.values()
            if start <= entry.time < end
        ]
    kept = [(entry, labels) for entry, labels in found if match[2] is None or keeps(match[2], labels)]
    kept.sort(key=lambda pair: pair[0].time, reverse=parameters["direction"] == "backward")
    return 200, render(kept[:limit])


def keeps(text: str, labels: Mapping[str, str]) -> bool:
    """`a="b" or (c=~"d|e" and f="g")`."""
    return any(
        all(holds(matcher, labels) for matcher in MATCHER.finditer(group)) for group in text.split(" or ")
    )


def holds(matcher: re.Match[str], labels: Mapping[str, str]) -> bool:
    name, operator, text = matcher.groups()
    value, wanted = labels.get(name, ""), json.loads(f'"{text}"')
    return value == wanted if operator == "=" else re.fullmatch(wanted, value) is not None


def render(entries: list[tuple[Entry, dict[str, str]]]) -> str:
    streams: dict[Labels, list[list[str]]] = {}
    for entry, labels in entries:
        shown = tuple(sorted({**labels, "detected_level": labels["level"].lower()}.items()))
        streams.setdefault(shown, []).append([str(entry.time), entry.line])
    result = [{"stream": dict(labels), "values": values} for labels, values in streams.items()]
    return json.dumps({"status": "success", "data": {"resultType": "streams", "result": result, "stats": {}}})
