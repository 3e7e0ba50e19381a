"""The daemon as systemd runs it: told when it is up, and with a store that keeps its descriptors."""

import array
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.live.daemon import Running, command, environment, start
from tests.live.network import Network

# Descriptors to be passed on as the ones from 3, as many as the first word says.
PASS_ON = """
count=$1; shift
for ((number = 3; number < 3 + count; number++)); do eval "exec $number<&$1 $1<&-"; shift; done
export LISTEN_PID=$$; exec "$@"
"""


class Store:
    """systemd, as far as it keeps descriptors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(15)
        self.all: dict[str, int] = {}

    @property
    def kept(self) -> int:
        """The socket that hears of events."""
        return self.all.get("events", -1)

    def wait(self, word: str) -> None:
        """For a message with this word; keeps and forgets descriptors as it is told until then."""
        while word not in self._take():
            pass

    def catch_up(self) -> None:
        """With all that was sent until now."""
        self._socket.setblocking(False)
        try:
            while True:
                self._take()
        except BlockingIOError:
            return
        finally:
            self._socket.settimeout(15)

    def _take(self) -> str:
        data, ancillary, _, _ = self._socket.recvmsg(4096, 1024)
        lines = dict(line.partition("=")[::2] for line in data.decode().split("\n"))
        for _, _, content in ancillary:
            assert lines["FDNAME"] not in self.all, "two under one name"
            self.all[lines["FDNAME"]] = array.array("i", content[:4])[0]
        if "FDSTOREREMOVE" in lines:
            self.forget(lines["FDNAME"])
        return data.decode()

    def forget(self, name: str) -> None:
        if name in self.all:
            os.close(self.all.pop(name))

    def drain(self) -> list[str]:
        """What came since, without waiting."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(15)

    def close_kept(self) -> None:
        for name in list(self.all):
            self.forget(name)

    def close(self) -> None:
        self.close_kept()
        self._socket.close()


@contextmanager
def service(
    net: Network,
    store: Store,
    descriptor: int | None = None,
    *more: str,
    passed: dict[str, int] | None = None,
    events: str = "new",
    **extra: str,
) -> Iterator[Running]:
    """The daemon as systemd starts it, with a descriptor from the store, or several."""
    passed = passed or ({} if descriptor is None else {"events": descriptor})
    with start_service(net, store, command("run"), *more, passed=passed, events=events, **extra) as running:
        store.wait("READY=1")
        yield running


@contextmanager
def start_service(
    net: Network,
    store: Store,
    line: Sequence[str],
    *more: str,
    passed: dict[str, int],
    events: str = "new",
    **extra: str,
) -> Iterator[Running]:
    # Numbers that are none of those from 3 on, which are overwritten one after another.
    numbers = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in passed.values()]
    arguments = ["--conntrack.netns", net.router, "--conntrack.events", events, "--sink.stream.enable", *more]
    line = [*line, *arguments]
    env = environment(NOTIFY_SOCKET=os.fspath(store.path), **extra)
    if passed:
        line = ["bash", "-c", PASS_ON, "bash", str(len(passed)), *map(str, numbers), *line]
        env |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(passed)}
    with start(Running, line, env, numbers) as running:
        for number in numbers:
            os.close(number)
        yield running
