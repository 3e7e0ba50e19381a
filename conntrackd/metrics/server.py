"""Answers Prometheus on the event loop: whatever a client does or leaves out has a bound here.

http.server has a thread for each client, a deadline for each read and none for all of them, and takes 6 MB of
headers; aiohttp would cost every gateway 15 MB.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from conntrackd.bus.limits import Limiter
from conntrackd.errors import describe_raise_site
from conntrackd.logs import Repeats
from conntrackd.metrics.request import (
    END,
    MAX_HEAD,
    METHODS,
    PLAIN,
    RefusedError,
    Request,
    choose_format,
    parse_head,
    render_answer,
    render_refusal,
)

logger = logging.getLogger(__name__)

# A Prometheus or two, and somebody who looks. The oldest goes for one more: those who wait for nothing keep
# nobody out.
MAX_CONNECTIONS: Final = 50
# From the connection to the last byte of the answer. Prometheus waits for 10 s by default.
DEADLINE_SECONDS: Final = 10.0
# Connections a second, and as many at once: at 0.2 ms each they take 4 % of a core. The others wait in the
# kernel.
RATE: Final = 200.0
BURST: Final = 200
PAUSE_SECONDS: Final = 0.02
# A page is made at most once in so long, whoever asks how often.
FRESH_SECONDS: Final = 1.0
# Where no file can be opened, or no memory is left.
TROUBLE_SECONDS: Final = 1.0

Render = Callable[[str], bytes]


class Server:
    """GET and HEAD of /metrics and /healthz."""

    def __init__(self, render: Render, find_problems: Callable[[], Sequence[str]]) -> None:
        """`render` makes the page of a content type, `find_problems` the reasons not to be healthy."""
        self._render = render
        self._find_problems = find_problems
        self._limiter = Limiter(RATE, BURST)
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their beginning
        self._pages: dict[str, bytes] = {}
        self._made_at = 0.0
        self._troubles = Repeats(time.monotonic)

    async def run(self, listener: socket.socket) -> None:
        """Answers those who connect, until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self._limiter.admit(""):
                    await asyncio.sleep(PAUSE_SECONDS)
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    self._troubles.warn(logger, "metrics: nobody can connect: %s", error.strerror)
                    await asyncio.sleep(TROUBLE_SECONDS)
                    continue
                self._begin(connection)
        finally:
            for task in self._tasks:
                task.cancel()

    def _begin(self, connection: socket.socket) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._serve(connection))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._end(done, connection))

    def _end(self, task: asyncio.Task[None], connection: socket.socket) -> None:
        """Also where it was cancelled before it had begun."""
        self._tasks.pop(task, None)
        connection.close()

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # TimeoutError too: it had its time
            async with asyncio.timeout(DEADLINE_SECONDS):
                answer = self._answer(await _read_head(loop, connection))
                await loop.sock_sendall(connection, answer)

    def _answer(self, head: bytes) -> bytes:
        if not head:
            return b""
        method = "GET"
        try:
            if END not in head:
                raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            request = parse_head(head.partition(END)[0])
            method = request.method
            return self._answer_request(request)
        except RefusedError as refusal:
            return render_refusal(refusal.status, method)
        except Exception as error:  # a mistake of ours costs one answer
            self._troubles.warn(logger, "metrics: unexpected %r at %s", error, describe_raise_site(error))
            return render_refusal(HTTPStatus.INTERNAL_SERVER_ERROR, method)

    def _answer_request(self, request: Request) -> bytes:
        if request.path not in {"/metrics", "/healthz"}:
            raise RefusedError(HTTPStatus.NOT_FOUND)
        if request.method not in METHODS:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == "/metrics":
            content_type = choose_format(request.accept)
            page = self._get_page(content_type)
            return render_answer(HTTPStatus.OK, content_type, page, request.method)
        problems = self._find_problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        body = "".join(f"{problem}\n" for problem in problems or ["healthy"])
        return render_answer(status, PLAIN, body.encode(errors="replace"), request.method)

    def _get_page(self, content_type: str) -> bytes:
        now = time.monotonic()
        if now - self._made_at >= FRESH_SECONDS:
            self._pages.clear()
            self._made_at = now
        if content_type not in self._pages:
            self._pages[content_type] = self._render(content_type)
        return self._pages[content_type]


async def _read_head(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    """Up to the empty line or a little further, or MAX_HEAD bytes; nothing where the client went."""
    head = b""
    while END not in head and len(head) < MAX_HEAD:
        part = await loop.sock_recv(connection, MAX_HEAD - len(head))
        if not part:
            return b""
        head += part
    return head
