"""The connection to a server: which reply belongs to which request, and when it is used again."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.sinks.http import HttpConnection
from conntrackd.sinks.http_reply import Reply
from conntrackd.sinks.tls import Tls
from tests.sinks.raw_server import RawServer, run_raw_server

DONE = b"HTTP/1.1 204 No Content\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


@contextmanager
def connect(server: RawServer) -> Iterator[HttpConnection]:
    connection = HttpConnection(f"http://127.0.0.1:{server.port}/base", Tls())
    yield connection
    connection.close()


def push(connection: HttpConnection, number: int, size: int = 10) -> Reply:
    return connection.request("POST", f"/push{number}", {}, 5.0, b"x" * size)


def test_an_interim_reply_is_none_and_its_request_gets_the_one_behind_it() -> None:
    with (
        run_raw_server([EARLY + BUSY, b"HTTP/1.1 100 Continue\r\n\r\n" + DONE]) as server,
        connect(server) as used,
    ):
        replies = [push(used, number).status for number in range(2)]

        assert replies == [503, 204]
        assert server.connections == 1


def test_an_interim_reply_before_the_body_is_read_changes_nothing() -> None:
    with run_raw_server([DONE], before={0: EARLY}) as server, connect(server) as used:
        assert push(used, 0, 20 << 20).status == 204


@pytest.mark.parametrize("rest", [DONE, BUSY, b"x", EARLY])
def test_of_two_replies_to_one_request_none_is_believed(rest: bytes) -> None:
    with run_raw_server([DONE + rest, BUSY]) as server, connect(server) as used:
        with pytest.raises(SinkUnavailable, match="more than once"):
            push(used, 0)

        assert push(used, 1).status == 503
        assert server.connections == 2


def test_a_late_second_reply_is_not_the_one_to_the_next_request() -> None:
    sent, go_on = threading.Event(), threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(DONE)
        go_on.wait(20.0)
        connection.sendall(DONE)
        sent.set()

    with run_raw_server([answer, BUSY]) as server, connect(server) as used:
        first = push(used, 0)
        go_on.set()
        assert sent.wait(20.0)
        second = push(used, 1)

        assert (first.status, second.status) == (204, 503)
        assert server.connections == 2


def test_a_success_before_the_request_was_sent_is_not_its_success() -> None:
    """As of another request, or of a proxy that does not care."""
    with run_raw_server([DONE], before={0: DONE}) as server, connect(server) as used:
        with pytest.raises(SinkUnavailable, match="before it had the whole request"):
            push(used, 0, 40 << 20)

        assert server.requests == []


def test_a_refusal_before_the_request_was_sent_is_heard() -> None:
    def hang_up(connection: socket.socket) -> None:
        raise AssertionError("the body was read")

    with run_raw_server([hang_up], before={0: BUSY}) as server, connect(server) as used:
        assert push(used, 0, 40 << 20).status == 503


def test_a_connection_that_the_server_has_ended_is_not_used_again() -> None:
    is_over = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(DONE)
        connection.shutdown(socket.SHUT_RDWR)
        is_over.set()

    with run_raw_server([answer, DONE]) as server, connect(server) as used:
        first = push(used, 0)
        assert is_over.wait(20.0)

        assert (first.status, push(used, 1).status) == (204, 204)
        assert server.connections == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 20",
        b"HTTP/1.1 204 No Content\r\nX: y",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 101 Switch\r\n\r\n",
        EARLY,
    ],
)
def test_what_is_no_reply_is_an_outage_and_the_next_request_has_a_new_connection(raw: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_RDWR)

    with run_raw_server([answer, DONE]) as server, connect(server) as used:
        with pytest.raises(SinkUnavailable):
            push(used, 0)

        assert push(used, 1).status == 204
        assert server.connections == 2


def test_the_head_names_the_server_and_holds_nothing_that_could_end_it() -> None:
    with run_raw_server([DONE]) as server, connect(server) as used:
        push(used, 0)
        for bad in ("a\r\nX: y", "a\nb", "ü", "\x00"):
            with pytest.raises(SinkUnavailable, match="HTTP does not allow"):
                used.request("GET", "/", {"X-Scope-OrgID": bad}, 5.0)

        assert server.requests == [
            b"POST /base/push0 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 10" % server.port
        ]


@pytest.mark.parametrize(
    ("address", "host", "path"),
    [
        ("http://b\u00fccher.example:3100/x", "xn--bcher-kva.example:3100", "/x"),
        ("http://127.0.0.1/b\u00fccher/a%20b/", "127.0.0.1", "/b%C3%BCcher/a%20b"),
        ("http://[::1]", "[::1]", ""),
    ],
)
def test_what_is_not_ascii_in_an_address_is_written_as_http_has_it(
    address: str, host: str, path: str
) -> None:
    used = HttpConnection(address, Tls())

    assert (used._host, used._path) == (host, path)


def test_the_zone_of_an_address_is_not_part_of_the_name() -> None:
    """RFC 6874. Loopback has no link-local address: only the names are looked at."""
    used = HttpConnection("http://[fe80::1%eth0]:3100", Tls())

    assert (used._host, used._addresses._host) == ("[fe80::1]:3100", "fe80::1%eth0")


def test_a_closed_connection_stays_closed() -> None:
    with run_raw_server([DONE]) as server, connect(server) as used:
        used.close()
        with pytest.raises(SinkUnavailable, match="closed"):
            push(used, 0)

        assert server.requests == []
