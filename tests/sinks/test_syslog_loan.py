"""What sinks/syslog.py lends, and writes at once: as its thread would, with the same numbers and accounts."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conntrackd.delivery.sink import DirectSink, SinkRevised, SinkUnavailable
from conntrackd.engine import Outlet
from conntrackd.flow import Flow, Location
from conntrackd.sinks.addresses import ASK_SECONDS
from conntrackd.sinks.syslog import SyslogSink
from tests.engine.feed import ENGINE, ROOM, Feed, pair
from tests.live.network import call_inside, inside, ip
from tests.rendering import render
from tests.sinks.flows import make_flow, make_flows
from tests.sinks.syslog_servers import get_free_port
from tests.sinks.test_syslog import make

SEGMENTS = ("false", "true")
WAYS = ("loan", "direct")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        yield receiver


@pytest.fixture
def feed() -> Iterator[Feed]:
    with pair() as (one, other):
        yield Feed(8, one, other)


def make_to(server: socket.socket, **settings: str) -> SyslogSink:
    return make(f"udp://127.0.0.1:{server.getsockname()[1]}", **settings)


def pass_on(feed: Feed, sink: SyslogSink, flows: list[Flow], way: str) -> tuple[int, int]:
    """How many of them went out at once, and as how many bytes."""
    if way == "direct":
        return sink.try_write(render(sink.template, flows))
    loan = sink.lend()
    assert loan is not None
    feed.send(flows)
    (passed,) = feed.relay_to([Outlet(ENGINE.compile_template(sink.template), loan, ROOM)]).passed
    sink.end_loan(passed)
    sizes = [(written.events, written.bytes) for written in passed.written]
    events = sum(events for events, _ in sizes)
    assert passed.rest.text == render(sink.template, flows[events:]).text
    return events, sum(size for _, size in sizes)


def list_numbers(messages: list[bytes]) -> list[int]:
    return [int(number) for message in messages for number in re.findall(rb'sequenceId="(\d+)"', message)]


@pytest.mark.parametrize("segments", SEGMENTS)
def test_what_goes_at_once_is_what_the_thread_would_send(
    feed: Feed, server: socket.socket, segments: str
) -> None:
    flows = make_flows(8)
    with closing(make_to(server, segments=segments)) as sink:
        sink.open()
        sink.write([render(sink.template, flows)])
        expected = [server.recv(1 << 16) for _ in flows]
    with closing(make_to(server, segments=segments)) as sink:
        sink.open()
        sink.write([render(sink.template, flows[:2])])
        found = [pass_on(feed, sink, flows[2:5], "loan"), pass_on(feed, sink, flows[5:7], "direct")]
        sink.write([render(sink.template, flows[7:])])
        received = [server.recv(1 << 16) for _ in flows]

    assert received == expected
    assert list_numbers(received) == [*range(1, 9)]
    assert found == [(3, len(b"".join(expected[2:5]))), (2, len(b"".join(expected[5:7])))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_datagram_to_nobody_is_said_to_be_delivered(
    feed: Feed, segments: str, way: str, count: int
) -> None:
    """Then the thread is told, once: it does not send what it cannot."""
    with closing(make(f"udp://127.0.0.1:{get_free_port()}", segments=segments)) as sink:
        sink.open()
        events = render(sink.template, make_flows(count))
        sent = pass_on(feed, sink, make_flows(count), way)
        then = (sink.lend(), sink.try_write(events))
        with pytest.raises(SinkUnavailable, match="Connection refused") as caught:
            sink.write([events])
        sink.close()
        sink.open()
        again = sink.lend()

    assert (sent, then, caught.value.written) == ((0, 0), (None, (0, 0)), 0)
    assert again is not None
    assert again.number == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_receiver_without_room_gets_the_rest_from_the_thread(tmp_path: Path, feed: Feed, way: str) -> None:
    flows, received = make_flows(7), []  # a local queue has room for ten
    path = tmp_path / "log"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local,
        closing(make(f"unixgram://{path}", format="rfc5424")) as sink,
    ):
        local.bind(os.fspath(path))
        local.setblocking(False)
        sink.open()
        rounds, sent = 0, len(flows)
        while sent == len(flows):
            sent, _ = pass_on(feed, sink, flows, way)
            rounds += 1
        for _ in range(len(flows) * (rounds - 1) + sent):
            received.append(local.recv(1 << 16))
        sink.write([render(sink.template, flows[sent:])])
        received += [local.recv(1 << 16) for _ in flows[sent:]]

    assert list_numbers(received) == [*range(1, rounds * len(flows) + 1)]
    assert len(received) > sent > 0


def test_a_message_that_no_datagram_holds_is_left_to_the_thread_to_refuse(server: socket.socket) -> None:
    long = make_flow(2)
    long.dst_location = Location(city="x" * 70_000)
    sink = make_to(server)
    events = render(sink.template, [*make_flows(2), long, make_flow(3)])
    with closing(sink):
        sink.open()
        sent, _ = sink.try_write(events)
        with pytest.raises(SinkRevised) as caught:
            sink.write([events.split(sent)[1]])

    assert (sent, caught.value.written, caught.value.refused) == (2, 0, 1)


def test_whether_the_server_has_moved_is_found_out_by_the_thread(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = (*(socket.AF_INET, socket.SOCK_DGRAM, 17, ""), server.getsockname())
    answers, now = threading.Event(), [1000.0]
    answers.set()
    monkeypatch.setattr(
        "conntrackd.sinks.syslog.socket.getaddrinfo", lambda *_, **__: answers.wait(10) and [address]
    )
    sink = make(f"udp://some.name:{server.getsockname()[1]}")
    monkeypatch.setattr(sink._addresses, "_clock", lambda: now[0])
    with closing(sink):
        sink.open()
        events = render(sink.template, make_flows(1))
        found = [sink.lend() is not None]
        now[0] += ASK_SECONDS
        found.append(sink.lend() is not None)
        answers.clear()
        sink.write([events])  # asks, in a thread
        asking = sink._addresses._asking
        answers.set()
        assert asking is not None
        asking.join()
        found.append(sink.lend() is not None)
        sink.write([events])  # has the answer
        found.append(sink.lend() is not None)

    assert found == [True, False, False, True]


def test_a_stream_and_a_sink_that_is_closed_are_not_lent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = make(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        before = sink.lend()
        sink.open()
        found = (before, sink.lend(), sink.try_write(render(sink.template, make_flows(1))))
        sink.close()

    assert isinstance(sink, DirectSink)
    assert found == (None, None, (0, 0))


@pytest.mark.privileged
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_what_a_firewall_refuses_is_not_said_to_be_delivered(segments: str, way: str) -> None:
    """By another word than a port that nobody has (RFC 1812, 5.2.7.1)."""
    name = f"bb-refuse-{os.getpid()}"
    rules = "type filter hook input priority 0; udp dport 514 reject with icmp type admin-prohibited;"

    def send_two() -> list[int]:
        with pair() as (one, other), closing(make("udp://127.0.0.1", segments=segments)) as sink:
            sink.open()
            sent, _ = pass_on(Feed(8, one, other), sink, make_flows(2), way)
            sink.close()
            sink.open()
            with pytest.raises(SinkUnavailable, match="No route to host") as caught:
                sink.write([render(sink.template, make_flows(2))])
            return [sent, caught.value.written]

    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        inside(name, "nft", "-f", "-", text=f"table inet firewall {{ chain in {{\n{rules}\n}}\n}}\n")
        assert call_inside(name, send_two) == [0, 0]
    finally:
        ip("netns", "del", name)


def test_what_a_socket_had_to_say_is_nothing_about_the_next_one(feed: Feed) -> None:
    """A sink that is switched off and on again says nothing of the outage before."""
    away = get_free_port()
    sink = make(f"udp://127.0.0.1:{away}")
    with closing(sink), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        sink.open()
        pass_on(feed, sink, make_flows(1), "loan")
        sink.close()
        receiver.bind(("127.0.0.1", away))
        sink.open()

        assert pass_on(feed, sink, make_flows(1), "loan")[0] == 1
