"""JSON lines to stdout, stderr, nowhere, or a file."""

import errno
import os
import select
import sys
from pathlib import Path
from typing import Final, TextIO
from urllib.parse import unquote, urlsplit

from conntrackd import options
from conntrackd.config import Config
from conntrackd.errors import ConfigError
from conntrackd.flow import Batch
from conntrackd.sinks.encode import JsonEncoder
from conntrackd.sinks.sink import Parcel, SinkFailed, SinkUnavailable, describe

# A write of this many events costs as much per event as a larger one; a person at a terminal waits for none.
BATCH_EVENTS: Final = 512
BATCH_WAIT: Final = 0.02
# What marks a LOST record's line: in a text the quotes would be escaped.
LOST_MARK: Final = b'"type":"LOST"'
FILE_MODE: Final = 0o640  # connections are nobody's business but the administrators'


class StreamSink:
    """Writes to a descriptor that is its own, or to the process's stdout or stderr, which stay open."""

    name = "stream"
    batch_events = BATCH_EVENTS
    batch_wait = BATCH_WAIT

    def __init__(self, path: Path | None, standard: int | None = None) -> None:
        """A path, the number of a standard descriptor, or neither: then events are encoded and discarded."""
        self._path = path
        self._standard = standard
        self._descriptor = -1
        self._encoder = JsonEncoder()

    def open(self) -> None:
        """A file is appended to; what is not there is made."""
        if self._path is not None:
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
                self._descriptor = os.open(self._path, flags, FILE_MODE)
            except OSError as error:
                raise SinkUnavailable(f"{self._path}: {describe(error)}") from error
        elif self._standard is not None:
            self._descriptor = self._standard

    def encode(self, batch: Batch) -> bytes:
        return self._encoder.encode(batch)

    def write(self, payload: bytes) -> int:
        """All of it, or what is left is raised as `rest`: no line is ever torn or doubled by a retry."""
        if self._descriptor < 0:
            return len(payload)
        done = 0
        while done < len(payload):
            try:
                done += os.write(self._descriptor, payload[done:] if done else payload)
            except BlockingIOError:  # somebody who shares our terminal has set it so
                self._wait()
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.EBADF):
                    raise SinkFailed("closed by its reader") from error
                raise self._explain(error, payload[done:]) from error
        return len(payload)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll()

    def _explain(self, error: OSError, left: bytes) -> SinkUnavailable:
        """What is left begins in the middle of a line where the disk took half of it: it goes there first."""
        rest = Parcel(left, left.count(b"\n") - left.count(LOST_MARK))
        where = "" if self._path is None else f"{self._path}: "
        return SinkUnavailable(f"{where}{describe(error)}", rest=rest)

    def close(self) -> None:
        """Of a file. A reopened one is a new one where logrotate has moved the old."""
        descriptor, self._descriptor = self._descriptor, -1
        if self._path is not None and descriptor >= 0:
            os.close(descriptor)


def create(config: Config) -> StreamSink:
    """The sink as configured."""
    writer = config[options.SINK_STREAM_WRITER]
    standards: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
    if writer in standards:
        return StreamSink(None, standards[writer].fileno())
    if writer == "discard":
        return StreamSink(None)
    path = Path(unquote(urlsplit(writer).path))
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise ConfigError(
            f"sink.stream.writer: {writer}: {what}",
            place=config.origin(options.SINK_STREAM_WRITER),
            hint="file:///PATH names a file in a directory that exists",
        )
    return StreamSink(path)
