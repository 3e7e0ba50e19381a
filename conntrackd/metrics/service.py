"""What metrics.listen, metrics.textfile and a socket of systemd's ask for: begun, changed by a reload, ended.

Nothing of Prometheus's library is imported before somebody asks for metrics.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from conntrackd.apart import run_apart
from conntrackd.bus.control import Control
from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.errors import ConfigError, UnavailableError, describe_raise_site
from conntrackd.metrics.listener import adopt_listeners, close_listener, open_listener, show_address
from conntrackd.metrics.textfile import WRITE_SECONDS, TextFile
from conntrackd.unwritten import Unwritten

if TYPE_CHECKING:
    from conntrackd.metrics.server import Server

logger = logging.getLogger(__name__)

UNIT: Final = "conntrackd-metrics.socket"
NO_LIBRARY: Final = "metrics need the Python library prometheus_client, which is not installed"
INSTALL: Final = (
    "apt install python3-prometheus-client, dnf install python3-prometheus_client, or "
    "pip install 'conntrackd[metrics]'"
)
USE_UNIT: Final = f"leave it out, and: systemctl enable {UNIT} && systemctl restart conntrackd"
# The old socket serves until the reload is certain, so one that would overlap with it cannot be tried.
KEEPS_PORT: Final = "metrics are still at {}: take another port, or systemctl restart conntrackd"


def check_library() -> None:
    """Raise ConfigError, without an origin, where metrics cannot be made."""
    try:
        import conntrackd.metrics.exposition  # noqa: PLC0415
        import conntrackd.metrics.server  # noqa: F401, PLC0415  # a reload that has begun could not load it
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        raise ConfigError(NO_LIBRARY, hint=INSTALL) from error


@dataclass(frozen=True, slots=True)
class Change:
    """What is asked for now, with all that can fail done: close() it, or Metrics.apply() it."""

    config: Config
    opened: socket.socket | None = None

    def close(self) -> None:
        if self.opened is not None:
            close_listener(self.opened, is_ours=True)


class Metrics:
    """All of it, in the thread of the event loop."""

    def __init__(self, control: Control) -> None:
        self.unwritten = Unwritten(options.METRICS_TEXTFILE.key, "its numbers are old, or it is not there")
        self._control = control
        self._is_open = False
        self._namespace: str | None = None
        self._passed: list[socket.socket] = []
        self._server: Server | None = None
        self._listening: asyncio.Task[None] | None = None
        self._address: str | None = None
        self._file: TextFile | None = None
        self._writing: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []

    def open(self, config: Config, passed: Sequence[int]) -> None:
        """Begin. `passed`: descriptors of systemd's. Raises ConfigError."""
        self._is_open = True
        self._namespace = config[options.CONNTRACK_NETNS]
        self._passed = adopt_listeners(passed)
        try:
            change = self.prepare(config)
        except BaseException:
            for listener in self._passed:
                listener.close()
            raise
        if self._passed and config[options.METRICS_LISTEN] is not None:
            logger.warning("metrics.listen has no effect: %s passes a socket", UNIT)
        for listener in self._passed:
            self._others.append(self._begin_listening(listener, is_ours=False))
        self.apply(change)

    def prepare(self, config: Config) -> Change:
        """Do what can fail, and change nothing. Raises ConfigError."""
        listen, textfile = config[options.METRICS_LISTEN], config[options.METRICS_TEXTFILE]
        if not self._is_open or not (self._passed or listen or textfile):
            return Change(config)
        try:
            check_library()
        except ConfigError as error:
            if not (listen or textfile):
                raise ConfigError(error.message, hint=error.hint, origin=UNIT) from error
            option = options.METRICS_LISTEN if listen else options.METRICS_TEXTFILE
            raise config.explain(option, error.message, error.hint, ": ") from error
        if listen is None or self._passed or listen == self._address:
            return Change(config)
        try:
            return Change(config, open_listener(listen))
        except OSError as error:
            hint = USE_UNIT if error.errno in {errno.EPERM, errno.EACCES} else ""
            if error.errno == errno.EADDRINUSE and _is_same_port(listen, self._address):
                hint = KEEPS_PORT.format(self._address)
            message = f"{listen} cannot be bound: {error.strerror}"
            raise config.explain(options.METRICS_LISTEN, message, hint, ": ") from error

    def apply(self, change: Change) -> None:
        """Have it as the configuration says."""
        listen = None if self._passed else change.config[options.METRICS_LISTEN]
        if self._is_open and listen != self._address:
            if self._listening is not None:
                self._listening.cancel()
            self._address, self._listening = listen, None
            if change.opened is not None:
                self._listening = self._begin_listening(change.opened, is_ours=True)
        textfile = change.config[options.METRICS_TEXTFILE] if self._is_open else None
        if textfile != (self._file and self._file.path):
            self._end_writing()
            if textfile is not None:
                self._file = TextFile(textfile)
                self._writing = self._begin(self._write(self._file))

    def close(self) -> None:
        """The tasks end when the loop turns."""
        for task in (self._listening, *self._others):
            if task is not None:
                task.cancel()
        self._end_writing()

    def _begin_listening(self, listener: socket.socket, *, is_ours: bool) -> asyncio.Task[None]:
        if self._server is None:
            # Late, as check_library() says.
            from conntrackd.metrics.server import Server  # noqa: PLC0415

            self._server = Server(self._render, lambda: self._control.status().problems)
        logger.info("metrics are at %s", show_address(listener))
        task = self._begin(self._server.run(listener))
        # When the loop no longer waits for it, and also where the task has not even begun.
        task.add_done_callback(lambda _: close_listener(listener, is_ours=is_ours))
        return task

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_report_end)
        return task

    def _end_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        if self._file is not None:
            self._file.remove()
        self._file = self._writing = None
        self.unwritten.clear()

    async def _write(self, file: TextFile) -> None:
        from conntrackd.metrics.exposition import TEXT  # noqa: PLC0415

        while True:
            try:
                await run_apart(file.write, self._render(TEXT))
                self.unwritten.clear()
            except OSError as error:
                self.unwritten.fail(file.path, error)
            except UnavailableError:
                pass  # no thread to be had: the next time, perhaps
            await asyncio.sleep(WRITE_SECONDS)

    def _render(self, content_type: str) -> bytes:
        from conntrackd.metrics.exposition import render  # noqa: PLC0415
        from conntrackd.metrics.table import gather  # noqa: PLC0415  # it is memory, too

        return render(gather(self._control, self._namespace), content_type)


def _is_same_port(new: str, old: str | None) -> bool:
    """Whether both are of TCP, at the same port."""
    both = [address for address in (new, old) if address and not address.startswith("unix://")]
    return len(both) == 2 and both[0].rpartition(":")[2] == both[1].rpartition(":")[2]


def _report_end(task: asyncio.Task[None]) -> None:
    """That a mistake of ours ended it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error(
            "metrics: unexpected %r at %s, no more until a restart", error, describe_raise_site(error)
        )
