"""Where events were logged: the source that somebody names, or that of a sink which is on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol
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
from conntrackd.history.selection import Selection
from conntrackd.render.parse import Record
from conntrackd.render.schema import NATIVE
from conntrackd.text import quote

FORMS: Final = "journal, journal:DIRECTORY, file:PATH or loki"


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


def open_source(named: str | None, selection: Selection, path: Path | None = None) -> Source:
    """The one that is named (see FORMS), or else the first that is on in the configuration (of `path`)."""
    kind, _, rest = (named or find_source(path)).partition(":")
    if kind == "file" and rest:
        from conntrackd.history.files import FileSource  # noqa: PLC0415

        return FileSource(Path(rest), selection)
    if kind == "journal":
        from conntrackd.history.journal import JournalSource  # noqa: PLC0415

        return JournalSource(rest, selection)
    if kind == "loki" and not rest:
        from conntrackd.history.loki import LokiSource  # noqa: PLC0415
        from conntrackd.sinks.loki import read_settings  # noqa: PLC0415

        settings = read_settings(read_configuration(path))
        if not settings.schema.is_native:
            message = f"sink.loki.schema is {settings.schema.name}: conntrackctl reads native records alone"
            hint = "--config FILE, with sink.loki.schema: native in it, reads what was written before"
            raise UnavailableError(message, hint=hint)
        return LokiSource(settings, selection)
    raise UsageError(f"--from: {quote(named or '')} is not a valid source", hint=f"one of: {FORMS}")


def find_source(path: Path | None) -> str:
    """In the words of --from: a file is read the fastest."""
    found = find_sinks(read_configuration(path))
    if not found:
        hint = f"use --from {FORMS}; conntrackctl tail shows events as they come"
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


def find_sinks(config: Config) -> list[str]:
    """Those that are on and can be read back: not in the names of another schema."""
    found = []
    writer = urlsplit(config[SINK_STREAM_WRITER])
    is_native = config[SINK_STREAM_SCHEMA] == NATIVE.name
    if config[SINK_STREAM_ENABLE] and writer.scheme == "file" and is_native:
        found.append(f"file:{unquote(writer.path)}")
    found += ["journal"] if config[SINK_JOURNAL_ENABLE] else []
    is_native = config[SINK_LOKI_SCHEMA] == NATIVE.name
    return found + (["loki"] if config[SINK_LOKI_ENABLE] and is_native else [])
