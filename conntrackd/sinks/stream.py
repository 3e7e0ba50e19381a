"""JSON lines to stdout, stderr, nowhere, or a file."""

import errno
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from conntrackd.config import options
from conntrackd.config.field_list import choose_names
from conntrackd.config.read import Config, get_host
from conntrackd.delivery.loan import Loan, Passed, Way, Writer
from conntrackd.delivery.sink import Sink, SinkFailed, SinkRevised, SinkUnavailable, describe
from conntrackd.files import KindError, check_file_system, locate_standard, name_standard
from conntrackd.render import json
from conntrackd.render.rendered import Rendered
from conntrackd.render.schema import SCHEMAS
from conntrackd.render.template import Template
from conntrackd.sinks.anonymizer import read_anonymizer

# A write of this many events costs as much per event as a larger one.
BATCH_EVENTS: Final = 512
# A file is written five times a second, and sooner where a relay leaves much for it: waking a thread for each
# batch costs more than the events in it.
FILE_EVENTS: Final = 2048
FILE_WAIT: Final = 0.2
IOV_MAX: Final = 1024  # include/uapi/linux/uio.h, UIO_MAXIOV
FILE_MODE: Final = 0o640  # connections are nobody's business but the administrators'
# pipe(7): what is no longer than PIPE_BUF goes into a pipe whole or not at all; poll() promises room for it.
PIECE: Final = select.PIPE_BUF
# A reader that is slow gets the rest in a write of its own after this time, so that what it has is counted.
SLOW_SECONDS: Final = 1.0
# A reader that reads nothing for this long is reported.
STALL_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 0.05  # a write that is awakened lets go at once
# include/uapi/linux/fs.h. What is no longer than this is written from the reader's thread if it goes at once;
# from there on a write costs more than waking a thread for it, which the other core may run.
RWF_NOWAIT: Final = 0x8
DIRECT_BYTES: Final = 1 << 16
WRITERS: Final = {"stdout": 1, "stderr": 2}


class StreamSink:
    """Writes to a descriptor that is its own, or to the process's stdout or stderr, which stay open.

    A pipe, socket or terminal is written to in pieces, each after poll(): other processes share stdout, so
    that it cannot be made non-blocking, and a write that blocks could not be ended.
    """

    name = "stream"

    def __init__(
        self,
        path: Path | None,
        standard: int | None = None,
        *,
        template: Template = json.TEMPLATE,
        slow: float = SLOW_SECONDS,
        stall: float = STALL_SECONDS,
    ) -> None:
        """A path, the number of a standard descriptor, or neither: then events are rendered and discarded."""
        self.template = template
        self.batch_events = BATCH_EVENTS
        self.batch_wait = 0.0  # the reader has gathered already
        self._path = path
        self._standard = standard
        self._discards = path is None and standard is None
        self._slow = slow
        self._stall = stall
        self._descriptor = -1
        self._wake = -1
        self._is_slow = False  # its other end may take no more for now
        self._is_file = False
        self._is_direct = False  # it can be asked for a write that does not wait
        self._is_torn = False  # the last line has no end
        self._done = 0  # bytes of the last write that are there
        self._begun = b""  # of them, those of a line whose end is not
        self._lock = threading.Lock()  # held while the descriptors are in use

    def succeed(self, old: Sink) -> None:
        """See Successor."""
        if isinstance(old, StreamSink) and (old._path, old._standard) == (self._path, self._standard):
            self._begun, self._is_torn = old._begun, old._is_torn

    def open(self) -> None:
        """A file is appended to; what is not there is made. A named pipe needs a reader."""
        if self._discards:
            return
        try:
            if self._path is not None:
                self._descriptor = _open_file(self._path)
                # What was begun elsewhere, or for a reader of before, is not gone on with here.
                self._is_torn = bool(self._begun) or _is_torn(self._descriptor)
                self._begun = b""
            elif self._standard is not None:
                self._descriptor = self._standard
            mode = os.fstat(self._descriptor).st_mode
        except OSError as error:
            raise self._explain(error) from error
        self._is_slow = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(self._descriptor)
        self._is_file = stat.S_ISREG(mode)
        self._is_direct = not self._is_file
        self.batch_events = FILE_EVENTS if self._is_file else BATCH_EVENTS
        self.batch_wait = FILE_WAIT if self._is_file else 0.0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def write(self, parts: Sequence[Rendered]) -> int:
        """All of it; how many events are there whole stands on what is raised: none is torn or doubled."""
        texts = [part.text for part in parts]
        with self._lock:
            if self._descriptor < 0:
                if self._discards:
                    return sum(map(len, texts))
                raise SinkUnavailable("closed")
            try:
                if self._is_slow:
                    self._write_pieces(b"".join(texts))
                else:
                    self._write_file(texts)
            except (SinkRevised, SinkUnavailable) as trouble:
                trouble.written = _count_whole(parts, self._done)
                raise
        return sum(map(len, texts))

    def try_write(self, rendered: Rendered) -> tuple[int, int]:
        """See DirectSink: only what a descriptor takes that says by itself when it would have to wait."""
        if self._discards:
            return rendered.events, len(rendered.text)
        if not self._is_direct or len(rendered.text) > DIRECT_BYTES or not self._lock.acquire(blocking=False):
            return 0, 0
        try:
            count = rendered.count_within(self._write_at_once(rendered.text))
            return count, rendered.get_end(count)
        finally:
            self._lock.release()

    def lend(self) -> Loan | None:
        """See DirectSink. What is larger than DIRECT_BYTES is written in it, too."""
        if self._discards:
            return Loan(Way.DISCARD)
        if not self._is_direct or self._descriptor < 0 or self._begun or self._is_torn:
            return None
        return Loan(Way.NOWAIT if self._path is None else Way.WRITE, self._descriptor)

    def end_loan(self, passed: Passed) -> None:
        """See DirectSink."""
        self._begun = passed.rest.text[: passed.torn]

    def can_run_writer(self) -> bool:
        """See FileSink."""
        return self._is_file and self._descriptor >= 0 and not self._is_torn

    def run_writer(self, writer: Writer) -> None:
        """See FileSink."""
        with self._lock:
            begin, done, whole = writer.run(self._descriptor, self._path is not None)
            if whole < done:
                self._is_torn = not _cut_half_line(self._descriptor, begin, done, whole)

    def _write_at_once(self, text: bytes) -> int:
        """How many bytes are there, of whole lines where the descriptor keeps pieces together."""
        done = 0
        while done < len(text) and self._descriptor >= 0 and not self._begun and not self._is_torn:
            end = text.rfind(b"\n", done, done + PIECE) + 1
            if not end:  # a line that is longer than a pipe would keep together
                break
            try:
                if self._path is not None:  # opened here, and so that it does not wait
                    done += os.write(self._descriptor, text[done:end])
                else:
                    done += os.pwritev(self._descriptor, [text[done:end]], -1, RWF_NOWAIT)
            except BlockingIOError:
                break
            except OSError as error:  # what is wrong, write() will find and explain
                self._is_direct = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
                break
            if done < end:  # a socket's buffer is full
                self._begun = text[text.rfind(b"\n", 0, done) + 1 : done]
                break
        return done

    def close(self) -> None:
        """End a write that waits. A file that is opened again is a new one where logrotate has moved it."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        # Only a write that blocks in the kernel keeps the lock: it closes when it returns, if it ever does.
        if not self._lock.acquire(timeout=LOCK_SECONDS):
            return
        try:
            descriptor, self._descriptor = self._descriptor, -1
            wake, self._wake = self._wake, -1
            if self._path is not None and descriptor >= 0:
                os.close(descriptor)
            if wake >= 0:
                os.close(wake)
        finally:
            self._lock.release()

    # ---- what may wait --------------------------------------------------------------------------------

    def _write_pieces(self, text: bytes) -> None:
        """Whole lines in each piece, so that those of others who write there stand between them."""
        self._go_on(text)
        begin, is_first = time.monotonic(), True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.register(self._wake, select.POLLIN)
        try:
            while self._done < len(text):
                if not is_first and time.monotonic() - begin >= self._slow:
                    raise SinkRevised("reads slowly")
                found = dict(poll.poll(1000 * (self._stall if is_first else self._slow)))
                if self._wake in found or (not found and is_first):
                    raise SinkUnavailable("closed" if found else "nobody reads what is written")
                if found and self._write_piece(text):
                    is_first = False
        finally:
            self._begun = text[text.rfind(b"\n", 0, self._done) + 1 : self._done]

    def _write_piece(self, text: bytes) -> bool:
        """Whether something was written: somebody else who writes there may have been faster."""
        done = self._done
        end = text.rfind(b"\n", done, done + PIECE) + 1
        try:
            if self._is_torn:
                os.write(self._descriptor, b"\n")
                self._is_torn = False
                return True
            self._done += os.write(self._descriptor, text[done : end or done + PIECE])
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._explain(error) from error
        return True

    def _go_on(self, text: bytes) -> None:
        """Begin in the middle of a line if that is the one which was begun, else in a line of its own."""
        self._is_torn |= not text.startswith(self._begun)
        self._done = 0 if self._is_torn else len(self._begun)

    # ---- what takes all or fails ----------------------------------------------------------------------

    def _write_file(self, texts: Sequence[bytes]) -> None:
        left, done = [memoryview(text) for text in texts], 0
        self._done = 0
        if self._path is not None and not os.fstat(self._descriptor).st_nlink:
            raise SinkUnavailable(f"{self._path} was deleted")  # and is made anew
        try:
            if self._is_torn and any(texts):
                os.write(self._descriptor, b"\n")
                self._is_torn = False
            begin = _compute_end(self._descriptor)
            while left:
                written = os.writev(self._descriptor, left[:IOV_MAX])
                done += written
                left = _skip(left, written)
        except OSError as error:
            whole = b"".join(texts).rfind(b"\n", 0, done) + 1
            if whole < done:
                self._is_torn = not _cut_half_line(self._descriptor, begin, done, whole)
            self._done = whole
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> SinkFailed | SinkUnavailable:
        """A reader of stdout that has gone does not come back; one of a file or a named pipe may."""
        if self._path is not None:
            return SinkUnavailable(f"{self._path}: {_describe(error)}")
        # EIO is what a terminal gives whose other end is closed.
        gone = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, *((errno.EIO,) if self._is_slow else ()))
        if error.errno in gone:
            return SinkFailed(f"{name_standard(self._descriptor)}: closed by its reader")
        return SinkUnavailable(f"{locate_standard(self._descriptor)}: {_describe(error)}")


def _open_file(path: Path) -> int:
    """Not waiting for a named pipe's reader (ENXIO says that there is none)."""
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    if path.is_fifo():
        return os.open(path, flags | os.O_WRONLY, FILE_MODE)
    return os.open(path, flags | os.O_RDWR, FILE_MODE)


def _describe(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}; free space for the events, or change the sink's writer"
    return "nobody reads it" if error.errno in (errno.ENXIO, errno.EPIPE) else describe(error)


def _is_torn(descriptor: int) -> bool:
    """Whether a file ends in mid-line, as after a power failure: the first event gets a line of its own."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    return os.pread(descriptor, 1, status.st_size - 1) != b"\n"


def _compute_end(descriptor: int) -> int:
    """Where a regular file will be written to: its end, or where whoever opened stdout has come to."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return -1
    return max(status.st_size, os.lseek(descriptor, 0, os.SEEK_CUR))


def _skip(texts: list[memoryview], size: int) -> list[memoryview]:
    """What is left of them behind the first `size` bytes."""
    for number, text in enumerate(texts):
        if size < len(text):
            return [text[size:], *texts[number + 1 :]]
        size -= len(text)
    return []


def _cut_half_line(descriptor: int, begin: int, done: int, whole: int) -> bool:
    """Cut a half line off a file that is full; False where that is not possible.

    Not where somebody else has written to it meanwhile: then the cut would be through their line.
    """
    try:
        if begin < 0 or os.fstat(descriptor).st_size != begin + done:
            return False
        os.ftruncate(descriptor, begin + whole)
        os.lseek(descriptor, begin + whole, os.SEEK_SET)
    except OSError:
        return False
    return True


def _count_whole(parts: Sequence[Rendered], size: int) -> int:
    """How many of the first events are within so many bytes."""
    events = 0
    for part in parts:
        events += part.count_within(size)
        size -= len(part.text)
        if size <= 0:
            break
    return events


def create(config: Config) -> StreamSink:
    """The sink as configured."""
    writer = config[options.SINK_STREAM_WRITER]
    template = json.make_template(
        choose_names(config[options.SINK_STREAM_FIELDS]),
        SCHEMAS[config[options.SINK_STREAM_SCHEMA]],
        get_host(config),
    ).anonymize(read_anonymizer(config, "stream"))
    if writer in WRITERS:
        # Python's stream is None where it was closed from the start: then the number is somebody else's soon.
        if getattr(sys, f"__{writer}__") is None:
            hint = "file:///PATH writes to a file"
            raise config.explain(options.SINK_STREAM_WRITER, f"{writer} is closed", hint, ": ")
        return StreamSink(None, WRITERS[writer], template=template)
    if writer == "discard":
        return StreamSink(None, template=template)
    path = Path(unquote(urlsplit(writer).path))
    hint = "file:///PATH names a file in a directory that exists"
    try:
        if path.is_dir() or not path.parent.is_dir():
            what = "is a directory" if path.is_dir() else f"no directory {path.parent}"
            raise config.explain(options.SINK_STREAM_WRITER, f"{writer}: {what}", hint, ": ")
        if not path.exists():
            check_file_system(path.parent)
    except (KindError, OSError) as error:
        what = str(error) if isinstance(error, KindError) else describe(error)
        raise config.explain(options.SINK_STREAM_WRITER, f"{writer}: {what}", hint, ": ") from error
    return StreamSink(path, template=template)
