"""Where events were logged: the source that somebody names, or that of a sink which is on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote, urlsplit

from conntrackd.config.options import (
    SINK_JOURNAL_ENABLE,
    SINK_LOKI_ENABLE,
    SINK_LOKI_SCHEMA,
    SINK_STREAM_ENABLE,
    SINK_STREAM_SCHEMA,
    SINK_STREAM_WRITER,
)
from conntrackd.config.read import Config, read_config
from conntrackd.errors import ConfigError, ConntrackdError, UnavailableError, UsageError
from conntrackd.history.selection import HistorySelection
from conntrackd.render.parse import Record
from conntrackd.render.schema import NATIVE
from conntrackd.text import quote

if TYPE_CHECKING:
    from conntrackd.sinks.loki import Settings

FORMS: Final = "journal, journal:DIRECTORY, file:PATH, loki or loki:NAME"


class Source(Protocol):
    """What was logged in one place, as far as it is wanted."""

    def read(self) -> Iterator[Record]:
        """All of it, oldest first."""

    def read_last(self, count: int) -> list[Record]:
        """The last so many, oldest first."""

    def follow(self) -> Iterator[Record]:
        """What comes after what was read, without an end."""

    def close(self) -> None:
        """Let go what is open."""


def open_source(
    named: str | None, selection: HistorySelection, path: Path | None = None, *, is_followed: bool = False
) -> Source:
    """The one that is named (see FORMS), or else the first that is on in the configuration (of `path`).

    Raises UsageError for one that is to be followed and cannot be, UnavailableError where there is none.
    """
    kind, _, rest = (named or choose_source(path)).partition(":")
    if kind == "file" and rest:
        from conntrackd.history.files import FileSource  # noqa: PLC0415
        from conntrackd.history.lines import is_compressed  # noqa: PLC0415

        if is_followed and is_compressed(Path(rest)):
            message = f"{rest}: nothing comes into a compressed file any more"
            raise UsageError(message, hint="leave out --follow")
        return FileSource(Path(rest), selection)
    if kind == "journal":
        from conntrackd.history.journal import JournalSource  # noqa: PLC0415

        return JournalSource(rest, selection)
    if kind == "loki":
        from conntrackd.history.loki import LokiSource  # noqa: PLC0415

        return LokiSource(read_loki(rest, path), selection)
    is_path = named is not None and ("/" in named or Path(named).exists())
    hint = f"did you mean file:{named}?" if is_path and not rest else f"one of: {FORMS}"
    raise UsageError(f"--from: {quote(named or '')} is not a valid source", hint=hint)


def choose_source(path: Path | None) -> str:
    """In the words of --from: a file is read the fastest."""
    found = list_readable_sinks(read_configuration(path))
    if not found:
        hint = (
            f"use --config FILE for that of the daemon, or --from {FORMS}; conntrackctl tail shows what comes"
        )
        message = "no sink is on that can be read back: the journal, or a file or Loki with the schema native"
        raise UnavailableError(message, hint=hint)
    return found[0]


def read_configuration(path: Path | None) -> Config:
    """That of this file, else of this machine's daemon."""
    try:
        return read_config({}, os.environ, path)
    except ConntrackdError as error:
        message = f"the configuration does not say where events are: {error.message}"
        hint = "conntrackctl events --from journal, or file:PATH, needs none"
        raise ConfigError(message, origin=error.origin, hint=hint) from error


def list_readable_sinks(config: Config) -> list[str]:
    """Those that are on and can be read back: not in the names of another schema."""
    files, journal, loki = list[str](), list[str](), list[str]()
    for name, kind, view in config.list_views():
        if kind == "stream" and view[SINK_STREAM_ENABLE] and view[SINK_STREAM_SCHEMA] == NATIVE.name:
            writer = urlsplit(view[SINK_STREAM_WRITER])
            files += [f"file:{unquote(writer.path)}"] if writer.scheme == "file" else []
        elif kind == "journal" and view[SINK_JOURNAL_ENABLE]:
            journal = ["journal"]
        elif kind == "loki" and view[SINK_LOKI_ENABLE] and view[SINK_LOKI_SCHEMA] == NATIVE.name:
            loki.append("loki" if view.sink is None else f"loki:{name}")
    return files + journal + loki


def read_loki(name: str, path: Path | None) -> "Settings":
    """The settings of `sink.loki`, or of the sink of kind loki with a name.

    Raises UsageError, and UnavailableError where its records are not in our own names.
    """
    from conntrackd.sinks.loki import read_settings  # noqa: PLC0415

    config = read_configuration(path)
    sink = config.named.get(name)
    if name and (sink is None or sink.kind != "loki"):
        known = [sink.name for sink in config.named.values() if sink.kind == "loki"]
        hint = f"named sinks of kind loki: {', '.join(known) or 'none'}"
        raise UsageError(f"--from: there is no sink {quote(name)} of kind loki", hint=hint)
    view = config.view(name)
    if view[SINK_LOKI_SCHEMA] != NATIVE.name:
        key = view.resolve(SINK_LOKI_SCHEMA).key
        message = f"{key} is {view[SINK_LOKI_SCHEMA]}: conntrackctl reads native records alone"
        hint = f"--config FILE, with {key}: native in it, reads what was written before"
        raise UnavailableError(message, hint=hint)
    return read_settings(view)
