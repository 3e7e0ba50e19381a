"""The sockets that scrapers connect to: bound here, or passed by systemd (sd_listen_fds(3))."""

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

# FileDescriptorName= in conntrackd-metrics.socket
PASSED: Final = "metrics"
BACKLOG: Final = 64
# The group of the daemon may connect, and nobody else.
UNIX_MODE: Final = 0o660


def open_listener(address: str) -> socket.socket:
    """Listens at what metrics.listen says. Raises OSError."""
    if address.startswith("unix://"):
        return _open_unix(Path(address.removeprefix("unix://")))
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with _listening(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host.strip("[]"), int(port)))
    return listener


def _open_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    with _listening(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        path.chmod(UNIX_MODE)
    return listener


@contextmanager
def _listening(family: socket.AddressFamily) -> Iterator[socket.socket]:
    """A socket that is bound inside, listens at the end, and is closed by an error."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        yield listener
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)


def _remove_stale(path: Path) -> None:
    """What a killed process has left. Raises OSError where somebody listens, or it is not a socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is something else that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def close_listener(listener: socket.socket, *, is_ours: bool) -> None:
    """And remove the path of a unix socket that we made."""
    path = listener.getsockname() if listener.family == socket.AF_UNIX else ""
    listener.close()
    if is_ours and path:
        with suppress(OSError):
            os.unlink(path)


def adopt_listeners(descriptors: Iterable[int]) -> list[socket.socket]:
    """Those that listen for streams; what does not is closed, and a warning."""
    found = []
    for descriptor in descriptors:
        try:
            listener = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            logger.warning("metrics: what systemd passed is not a socket")
            continue
        is_stream = listener.type == socket.SOCK_STREAM
        if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listener.close()
            logger.warning("metrics: the socket that systemd passed does not listen\nhint: ListenStream=")
            continue
        listener.setblocking(False)
        found.append(listener)
    return found


def show_address(listener: socket.socket) -> str:
    """As metrics.listen would have it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix://{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"
