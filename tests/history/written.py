"""Files of events, as the stream sink leaves them."""

import gzip
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rules
from conntrackd.flow import Flow, Lost
from conntrackd.history.files import FileSource
from conntrackd.history.selection import HistorySelection
from conntrackd.history.times import Span
from conntrackd.render.json import TEMPLATE
from tests.rendering import list_texts, render_all


def write_lines(records: Sequence[Flow | Lost]) -> list[bytes]:
    """The line of each."""
    return [text for part in render_all(TEMPLATE, records) for text in list_texts(part)]


def write_file(path: Path, lines: Iterable[bytes], *, mtime: float | None = None) -> Path:
    """Compressed where the name says so."""
    text = b"".join(lines)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def select(*rules: str, span: Span = Span()) -> HistorySelection:  # noqa: B008  # a value
    return HistorySelection(span, parse_rules([RuleText(rule) for rule in rules]))


def read(
    path: Path, selection: HistorySelection | None = None, *, last: int | None = None
) -> list[dict[str, Any]]:
    source = FileSource(path, selection or select())
    try:
        return list(source.read()) if last is None else source.read_last(last)
    finally:
        source.close()


def list_flows(records: Iterable[dict[str, Any]]) -> list[int]:
    """The numbers of events, -1 for a LOST record."""
    return [record.get("flow", -1) for record in records]


def load(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    return found
