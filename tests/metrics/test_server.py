"""metrics/server.py over real sockets: what is asked is answered, and no client keeps another one out."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
from pytest_mock import MockerFixture

from conntrackd.bus.limits import Limiter
from conntrackd.metrics import server
from conntrackd.metrics.exposition import OPENMETRICS, TEXT
from conntrackd.metrics.listener import open_listener
from conntrackd.metrics.request import MAX_HEAD
from conntrackd.metrics.server import MAX_CONNECTIONS, Server
from tests.metrics.client import ask, get, open_client, read_answer

LARGE = 8 << 20  # more than the buffers of a loopback connection hold


class Running:
    """A server in a thread with a loop of its own."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.rendered: list[str] = []
        self.page = b"a page\n"
        self.error: Exception | None = None
        self._listener = open_listener("127.0.0.1:0")
        self.address: tuple[str, int] = self._listener.getsockname()
        self.server = Server(self._render, lambda: self.problems)
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        assert self._started.wait(10)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._task = self.loop.create_task(self.server.run(self._listener))
        self._started.set()
        with suppress(asyncio.CancelledError):
            await self._task

    def _render(self, content_type: str) -> bytes:
        self.rendered.append(content_type)
        if self.error is not None:
            raise self.error
        return self.page

    def call(self, function: Callable[[], Any]) -> Any:
        """In the thread of the server."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def running() -> Iterator[Running]:
    with closing(Running()) as made:
        yield made


def test_prometheus_gets_the_page_in_the_format_it_asks_for(running: Running) -> None:
    plain, other = get(running.address), get(running.address, "/metrics", f"Accept: {OPENMETRICS}")

    assert (plain.status, plain.headers["Content-Type"], plain.body) == (200, TEXT, b"a page\n")
    assert (other.status, other.headers["Content-Type"], other.body) == (200, OPENMETRICS, b"a page\n")
    assert plain.headers["Connection"] == "close"


def test_head_is_get_without_the_body(running: Running) -> None:
    answer = ask(running.address, b"HEAD /metrics HTTP/1.1\r\n\r\n")

    assert answer is not None
    assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "7", b"")


def test_health_is_what_status_says(running: Running) -> None:
    well = get(running.address, "/healthz")
    running.problems = ["sink loki is retrying: \udcffrefused", "another one"]
    ill = get(running.address, "/healthz")

    assert (well.status, well.body) == (200, b"healthy\n")
    assert (ill.status, ill.body) == (503, b"sink loki is retrying: ?refused\nanother one\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /healthz HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * MAX_HEAD, 431),
        (b"GET /" + b"x" * MAX_HEAD, 431),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD - 31) + b"\r\n\r\n", 200),
    ],
)
def test_everything_else_is_refused(running: Running, request_: bytes, status: int) -> None:
    answer = ask(running.address, request_)

    assert answer is not None
    assert answer.status == status
    assert running.rendered == [TEXT] * (status == 200)


def test_a_request_may_come_in_pieces(running: Running) -> None:
    with closing(open_client(running.address)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            client.send(bytes([byte]))
        answer = read_answer(client)

    assert answer is not None
    assert answer.body == b"a page\n"


def test_who_goes_without_asking_is_forgotten(running: Running) -> None:
    open_client(running.address).close()

    assert get(running.address).status == 200
    assert running.call(lambda: len(running.server._tasks)) <= 1


def test_a_megabyte_of_headers_is_not_read(running: Running) -> None:
    """It may be told so before the connection is reset, or not."""
    with closing(open_client(running.address)) as client:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall((b"X: " + b"x" * 1019 + b"\r\n") * (LARGE >> 10))
        answer = read_answer(client)

    assert answer is None or answer.status == 431
    assert get(running.address).status == 200


def test_the_oldest_goes_for_one_more_and_the_new_one_is_answered(running: Running) -> None:
    with ExitStack() as stack:
        idle = []
        for _ in range(MAX_CONNECTIONS + 10):
            client = stack.enter_context(closing(open_client(running.address)))
            client.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no end
            idle.append(client)
        assert get(running.address).status == 200

        assert [read_answer(client) for client in idle[:11]] == [None] * 11
        assert running.call(lambda: len(running.server._tasks)) <= MAX_CONNECTIONS
        idle[-1].sendall(b"\r\n")
        answer = read_answer(idle[-1])

    assert answer is not None
    assert answer.status == 200


def test_who_writes_or_reads_slowly_has_a_deadline_and_stops_nobody(
    running: Running, mocker: MockerFixture
) -> None:
    mocker.patch.object(server, "DEADLINE_SECONDS", 0.5)
    running.page = b"x" * LARGE
    began = time.monotonic()
    with closing(open_client(running.address)) as writer, closing(open_client(running.address)) as reader:
        writer.sendall(b"GET /met")
        reader.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and reads nothing
        assert get(running.address, "/healthz").status == 200
        answered = time.monotonic() - began

        assert read_answer(writer) is None
        written = time.monotonic() - began
        cut = read_answer(reader)
    mocker.stopall()  # so much may take longer than that on a machine that has other work

    assert len(get(running.address).body) == LARGE
    assert answered < written
    assert written >= 0.5
    assert cut is not None
    assert len(cut.body) < LARGE


def test_a_page_is_made_once_in_a_while_for_however_many(running: Running, mocker: MockerFixture) -> None:
    mocker.patch.object(server, "FRESH_SECONDS", 1000.0)
    running.call(lambda: setattr(running.server, "_made_at", time.monotonic()))

    for _ in range(20):
        assert get(running.address).status == 200
        assert get(running.address, "/metrics", f"Accept: {OPENMETRICS}").status == 200

    assert running.rendered == [TEXT, OPENMETRICS]
    running.page = b"another one\n"
    running.call(lambda: setattr(running.server, "_made_at", time.monotonic() - 1001))
    assert get(running.address).body == b"another one\n"


def test_a_mistake_of_ours_costs_one_answer_and_is_reported(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.error = KeyError("secret of a stack")

    answer = get(running.address)
    running.error = None

    assert (answer.status, answer.body) == (500, b"500 Internal Server Error\n")
    assert get(running.address).status == 200
    assert re.search(r"metrics: unexpected KeyError.* at test_server\.py:\d+", caplog.text)


def test_more_than_the_rate_wait(running: Running, mocker: MockerFixture) -> None:
    """The bucket is empty: each takes the time in which it gets one more."""
    mocker.patch.object(running.server, "_limiter", Limiter(20.0, 1.0))

    began = time.monotonic()
    assert [get(running.address).status for _ in range(12)] == [200] * 12
    assert time.monotonic() - began > 0.4


def test_no_descriptor_is_a_pause_and_not_the_end(
    running: Running, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    mocker.patch.object(server, "TROUBLE_SECONDS", 0.05)
    accept = running.loop.sock_accept
    failures = [OSError(24, "Too many open files")]

    async def fail_once(listener: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return await accept(listener)

    mocker.patch.object(running.loop, "sock_accept", fail_once)
    assert get(running.address).status == 200  # by the call that is under way
    assert get(running.address).status == 200

    assert "metrics: nobody can connect: Too many open files" in caplog.text
