"""Where a server is: asked again while it runs, never waited for, and no reason to stop what works."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conntrackd.render.syslog import make_template
from conntrackd.sinks.addresses import ASK_SECONDS, Addresses
from conntrackd.sinks.http import HttpConnection
from conntrackd.sinks.syslog import SyslogSink, Target
from conntrackd.sinks.tls import Tls
from tests.delivery.fakes import Clock
from tests.rendering import render
from tests.sinks.flows import make_flow
from tests.sinks.raw_server import run_raw_server

NAME = "logs.example"
DONE = b"HTTP/1.1 204 No Content\r\n\r\n"


class Resolver:
    """getaddrinfo(3) as a test wants it."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.times = 0
        self.port = 0  # in place of the one that was asked for

    def __call__(self, host: str, port: int, *_: object, **options: int) -> list[object]:
        self.times += 1
        self.may_answer.wait(20.0)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        kind = options["type"]
        return [(socket.AF_INET, kind, 0, "", (address, self.port or port)) for address in self.addresses]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


@contextmanager
def bind(address: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        sock.settimeout(10.0)
        yield sock


def wait_for_answer(addresses: Addresses) -> None:
    assert addresses._asking is not None
    addresses._asking.join(20.0)


def make_syslog(port: int, clock: Clock) -> SyslogSink:
    sink = SyslogSink(Target("udp", NAME, port), make_template("rfc5424", "daemon"))
    sink._addresses = Addresses(NAME, port, socket.SOCK_DGRAM, clock)
    return sink


def test_a_syslog_server_that_moves_gets_its_datagrams_at_its_new_address(resolver: Resolver) -> None:
    clock = Clock()
    with bind("127.0.0.1") as old, bind("127.0.0.2", old.getsockname()[1]) as new:
        sink = make_syslog(old.getsockname()[1], clock)
        resolver.addresses = ["127.0.0.1"]
        sink.open()
        sink.write([render(sink.template, [make_flow(1)])])
        first = old.recv(1 << 16)
        resolver.addresses = ["127.0.0.2"]
        sink.write([render(sink.template, [make_flow(2)])])
        second = old.recv(1 << 16)  # not asked more than once a minute
        clock.now += ASK_SECONDS
        resolver.may_answer.clear()
        sink.write([render(sink.template, [make_flow(3)])])
        third = old.recv(1 << 16)  # and nobody waits for the answer
        resolver.may_answer.set()
        wait_for_answer(sink._addresses)
        sink.write([render(sink.template, [make_flow(4)])])
        fourth = new.recv(1 << 16)
        sink.close()

    assert [
        b'flow="%d"' % number in data for number, data in enumerate((first, second, third, fourth), 1)
    ] == [True] * 4


def test_a_resolver_that_is_away_stops_nothing(resolver: Resolver) -> None:
    clock = Clock()
    with bind("127.0.0.1") as server:
        sink = make_syslog(server.getsockname()[1], clock)
        resolver.addresses = ["127.0.0.1"]
        sink.open()
        resolver.addresses = []
        resolver.may_answer.clear()
        for number in range(3):
            clock.now += ASK_SECONDS
            sink.write([render(sink.template, [make_flow(number)])])
            assert server.recv(1 << 16)
        resolver.may_answer.set()
        wait_for_answer(sink._addresses)
        asked = resolver.times  # not before: a thread that was started may not have come to it yet
        clock.now += ASK_SECONDS
        sink.write([render(sink.template, [make_flow(4)])])
        wait_for_answer(sink._addresses)
        sink.write([render(sink.template, [make_flow(5)])])
        assert server.recv(1 << 16)
        sink.close()

    assert asked == 2  # once to open, and one thread that waits


def test_another_answer_with_the_address_in_use_changes_nothing(resolver: Resolver) -> None:
    clock = Clock()
    with bind("127.0.0.1") as server:
        sink = make_syslog(server.getsockname()[1], clock)
        resolver.addresses = ["127.0.0.1"]
        sink.open()
        before = sink._socket
        resolver.addresses = ["127.0.0.3", "127.0.0.1"]
        clock.now += ASK_SECONDS
        sink.write([render(sink.template, [make_flow(1)])])
        wait_for_answer(sink._addresses)
        sink.write([render(sink.template, [make_flow(2)])])

        assert sink._socket is before
        sink.close()


def test_a_connection_to_an_address_that_is_no_more_the_servers_is_left(resolver: Resolver) -> None:
    clock = Clock()
    with run_raw_server([DONE, DONE]) as old, run_raw_server([DONE]) as new:
        used = HttpConnection(f"http://{NAME}:{old.port}", Tls())
        used._addresses._clock = clock
        resolver.addresses, resolver.port = ["127.0.0.1"], old.port
        used.request("POST", "/", {}, 5.0, b"x")
        resolver.port = new.port
        resolver.may_answer.clear()
        clock.now += ASK_SECONDS
        used.request("POST", "/", {}, 5.0, b"x")
        resolver.may_answer.set()
        wait_for_answer(used._addresses)
        used.request("POST", "/", {}, 5.0, b"x")
        used.close()

        assert (len(old.requests), len(new.requests)) == (2, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo"])
def test_an_address_is_not_asked_for(resolver: Resolver, host: str) -> None:
    clock = Clock()
    addresses = Addresses(host, 514, clock=clock)
    clock.now += 10 * ASK_SECONDS
    with socket.socket() as sock:
        assert not addresses.have_moved(sock)

    assert resolver.times == 0


def test_of_several_addresses_the_first_that_answers_is_taken(resolver: Resolver) -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        resolver.addresses = ["127.0.0.1", "127.0.0.2"]
        watched: list[socket.socket] = []
        sock = Addresses(NAME, server.getsockname()[1]).connect(5.0, watched.append)
        peer = sock.getpeername()[0]
        sock.close()

    assert (peer, len(watched)) == ("127.0.0.2", 2)
