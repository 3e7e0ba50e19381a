"""Recording receivers of all four kinds of sinks: what arrives, as records with the names that people see."""

import json
import os
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Protocol

from tests.sinks.loki_server import Entry, Labels, Store, run_server

Record = dict[str, str]
"""Field -> text, without time, level and message, which not every format has in the same form."""

ENVELOPE = ("time", "level", "msg")
DATA = re.compile(r'\[event@\d+((?: \w+="(?:[^"\\\]]|\\.)*")+)\]')
PARAMETER = re.compile(r' (\w+)="((?:[^"\\\]]|\\.)*)"')


class Receiver(Protocol):
    """One sink's other end."""

    def take(self) -> list[Record]:
        """What came since the last time."""


def read_line(line: bytes | str) -> Record:
    """A JSON line of the stream sink."""
    values: dict[str, Any] = json.loads(line)
    return {name: str(value) for name, value in values.items() if name not in ENVELOPE}


def read_message(message: str) -> Record:
    """An RFC 5424 message of the syslog sink."""
    match = DATA.search(message)
    assert match, message
    return {
        name: re.sub(r"\\(.)", r"\1", value) if "\\" in value else value
        for name, value in PARAMETER.findall(match[1])
    }


def read_entry(labels: Labels, entry: Entry) -> Record:
    """An entry of Loki, whose type and protocol are labels."""
    own = {name: value for name, value in labels if name in ("type", "prot")}
    return {**own, **{name: value for name, value in entry.metadata if name not in ENVELOPE}}


def read_datagram(datagram: bytes) -> Record:
    """A datagram to journald."""
    fields = [line.partition("=") for line in datagram.decode().splitlines()]
    return {
        name.removeprefix("EVENT_").lower(): value
        for name, _, value in fields
        if name.startswith("EVENT_") and name != "EVENT_TIME"
    }


@dataclass
class File:
    """The stream sink's file, read as it grows."""

    path: Path
    _done: int = 0
    _moved: tuple[Path, int] | None = None

    def rotate(self) -> None:
        """Moves the file away, as logrotate does; what is still written to it is read there."""
        moved = self.path.with_suffix(".1")
        self.path.replace(moved)
        self._moved, self._done = (moved, self._done), 0

    def take(self) -> list[Record]:
        before: list[Record] = []
        if self._moved is not None:
            path, done = self._moved
            before, done = _read_lines(path, done)
            self._moved = path, done
        found, self._done = _read_lines(self.path, self._done)
        return before + found


def _read_lines(path: Path, done: int) -> tuple[list[Record], int]:
    """The whole lines behind the first so many bytes, and how many bytes are read then."""
    if not path.exists():
        return [], done
    with path.open("rb") as file:
        file.seek(done)
        text = file.read()
    end = text.rfind(b"\n") + 1
    return [read_line(line) for line in text[:end].splitlines()], done + end


@dataclass
class Pushes(Store):
    """A Loki that remembers each entry that came, also those that it drops as duplicates."""

    arrived: list[tuple[Labels, Entry]] = field(default_factory=list)

    def _store(self, key: Labels, entry: Entry) -> None:
        self.arrived.append((key, entry))
        super()._store(key, entry)

    def take(self) -> list[Record]:
        with self.lock:
            arrived, self.arrived = self.arrived, []
        return [read_entry(labels, entry) for labels, entry in arrived]

    def forget(self) -> None:
        """What is stored, and the faults to come; those that wait are over."""
        with self.lock:
            for item in (self.requests, self.streams, self.newest, self.faults):
                item.clear()
        self.let_go.set()
        self.let_go.clear()


class _Listening:
    """A thread that reads sockets until the end, with pauses on demand."""

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._raw: list[bytes] = []
        self._wake, self._waker = socket.socketpair()
        self._going = threading.Event()
        self._going.set()
        self._is_over = False
        self._errands: Queue[Callable[[], None]] = Queue()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    def take_raw(self) -> list[bytes]:
        """The bytes of each record since the last time."""
        with self._lock:
            raw, self._raw = self._raw, []
        return raw

    def pause(self) -> None:
        """Read no more: the receiver hangs."""
        self._going.clear()
        self._waker.send(b"x")

    def go_on(self) -> None:
        self._going.set()

    def do(self, errand: Callable[[], None]) -> None:
        """In the thread, between two reads; returns when it is done."""
        self._errands.put(errand)
        self._waker.send(b"x")
        self._errands.join()

    def stop(self) -> None:
        self._is_over = True
        self._going.set()
        self._waker.send(b"x")
        self._thread.join()
        self._wake.close()
        self._waker.close()

    def _sources(self) -> list[socket.socket]:
        raise NotImplementedError

    def _receive(self, source: socket.socket) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        while not self._is_over:
            self._going.wait()
            ready, _, _ = select.select([self._wake, *self._sources()], [], [])
            if self._wake in ready:
                self._wake.recv(64)
                self._run_errands()
                continue  # what was ready may be closed now
            for source in ready:
                if self._going.is_set():
                    self._receive(source)

    def _run_errands(self) -> None:
        while not self._errands.empty():
            self._errands.get()()
            self._errands.task_done()


class SyslogServer(_Listening):
    """Syslog over TCP, octet counting."""

    def __init__(self) -> None:
        super().__init__("syslog")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self._connections: dict[socket.socket, bytearray] = {}

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._port}"

    def reset(self) -> None:
        """Ends each connection with a RST. What its kernel has acknowledged and it has not read is lost."""
        self.do(self._reset)

    def leave(self) -> None:
        """As reset(), and nobody listens any more."""
        self.do(self._leave)

    def come_back(self) -> None:
        self.do(self._come_back)

    def _reset(self) -> None:
        for connection in self._connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            connection.close()
        self._connections.clear()

    def _leave(self) -> None:
        self._reset()
        self._listener.close()

    def _come_back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))

    def take(self) -> list[Record]:
        return [read_message(event.decode()) for event in self.take_raw()]

    def stop(self) -> None:
        super().stop()
        for item in (self._listener, *self._connections):
            item.close()

    def _sources(self) -> list[socket.socket]:
        return [item for item in (self._listener, *self._connections) if item.fileno() >= 0]

    def _receive(self, source: socket.socket) -> None:
        if source is self._listener:
            self._connections[source.accept()[0]] = bytearray()
            return
        try:
            data = source.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            del self._connections[source]
            source.close()
            return
        waiting = self._connections[source]
        waiting += data
        messages = list(_cut_frames(waiting))
        with self._lock:
            self._raw += messages


def _cut_frames(waiting: bytearray) -> Iterator[bytes]:
    """RFC 6587, 3.4.1; what is not whole stays."""
    start = 0
    while (space := waiting.find(b" ", start, start + 8)) > 0:
        end = space + 1 + int(waiting[start:space])
        if end > len(waiting):
            break
        yield bytes(waiting[space + 1 : end])
        start = end
    del waiting[:start]


class Journal(_Listening):
    """journald's socket, at a path of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__("journal")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))

    def take(self) -> list[Record]:
        return [read_datagram(event) for event in self.take_raw()]

    def stop(self) -> None:
        super().stop()
        self._socket.close()

    def _sources(self) -> list[socket.socket]:
        return [self._socket]

    def _receive(self, source: socket.socket) -> None:
        found = [source.recv(1 << 16)]
        while len(found) < 1000:
            try:
                found.append(source.recv(1 << 16, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
        with self._lock:
            self._raw += found


@dataclass
class Receivers:
    """One of each."""

    stream: File
    syslog: SyslogServer
    loki: Pushes
    journal: Journal
    loki_port: int

    def list_all(self) -> dict[str, Receiver]:
        return {"stream": self.stream, "syslog": self.syslog, "loki": self.loki, "journal": self.journal}


@contextmanager
def receive(directory: Path) -> Iterator[Receivers]:
    """All of them, until the end of the block."""
    run = directory / "run"
    (run / "journal").mkdir(parents=True)
    store = Pushes()
    syslog, journal = SyslogServer(), Journal(run / "journal" / "socket")
    syslog.start()
    journal.start()
    try:
        with run_server(store) as server:
            yield Receivers(File(directory / "events.json"), syslog, store, journal, server.port)
    finally:
        syslog.stop()
        journal.stop()
