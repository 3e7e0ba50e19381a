"""Datagrams and frames: by the core where there is one, and by plain Python, with the same result."""

import errno
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from conntrackd.delivery import datagrams
from conntrackd.delivery.datagrams import (
    MAX_SEQUENCE,
    PADDED_TO,
    DatagramSocket,
    Framing,
    frame_plainly,
    send_plainly,
)
from tests.rendering import make_rendered

Frame = Callable[[bytes, bytes, int, int], tuple[bytes, bytes, int]]
Send = Callable[[int, bytes, bytes, int, int, bool], tuple[int, int]]
FRAMES: dict[str, Frame] = {"core": datagrams.frame, "plain": frame_plainly}
SENDS: dict[str, Send] = {"core": datagrams.send, "plain": send_plainly}


def split(text: bytes, ends: bytes) -> list[bytes]:
    found = array("I", ends)
    return [text[begin:end] for begin, end in zip((0, *found), found, strict=False)]


@pytest.fixture(params=FRAMES)
def frame(request: pytest.FixtureRequest) -> Frame:
    name: str = request.param
    return FRAMES[name]


@pytest.fixture(params=SENDS)
def send(request: pytest.FixtureRequest) -> Send:
    name: str = request.param
    return SENDS[name]


@pytest.mark.parametrize(
    ("framing", "framed"),
    [
        (Framing.NONE, [b"abc", b"", b"de"]),
        (Framing.OCTETS, [b"3 abc", b"0 ", b"2 de"]),
        (Framing.LINE, [b"abc\n", b"\n", b"de\n"]),
        (Framing.NUL, [b"abc\0", b"\0", b"de\0"]),
        (Framing.PADDED, [b"abc".ljust(64), b"", b"de".ljust(64)]),
    ],
)
def test_each_message_has_its_frame(frame: Frame, framing: Framing, framed: list[bytes]) -> None:
    messages = make_rendered([b"abc", b"", b"de"], 0)

    assert split(*frame(messages.text, messages.ends, 1, framing)[:2]) == framed


@pytest.mark.parametrize("size", [1, 62, 63, 64, 65, 127, 128, 1000, 65_000])
def test_a_padded_message_is_as_long_as_the_next_multiple_and_its_number_counts(
    frame: Frame, size: int
) -> None:
    messages = make_rendered([b"x" * (size - 1) + b"\0"] * 3, 0)

    found = split(*frame(messages.text, messages.ends, 8, Framing.PADDED)[:2])

    texts = [b"x" * (size - 1) + number for number in (b"8", b"9", b"10")]
    assert found == [text.ljust(-(-len(text) // PADDED_TO) * PADDED_TO) for text in texts]


def test_numbers_stand_in_their_places_and_begin_again_after_the_largest(frame: Frame) -> None:
    messages = make_rendered([b"a\0b", b"none", b"\0", b"c\0d", b"\0\0"], 0)

    found = split(*frame(messages.text, messages.ends, MAX_SEQUENCE - 1, Framing.OCTETS)[:2])

    # A second NUL is no place: a message has one number.
    assert found == [b"12 a2147483646b", b"4 none", b"10 2147483647", b"3 c1d", b"2 2\0"]


def test_the_length_before_a_message_counts_its_number(frame: Frame) -> None:
    messages = make_rendered([b"x" * (10**power - 1) + b"\0" for power in range(1, 5)], 0)

    for message in split(*frame(messages.text, messages.ends, 99_999, Framing.OCTETS)[:2]):
        size, _, text = message.partition(b" ")
        assert int(size) == len(text)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of datagrams that are never lost."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def test_each_message_is_a_datagram_from_the_first_that_is_asked_for(
    send: Send, pair: tuple[socket.socket, socket.socket]
) -> None:
    messages = make_rendered([b"a", b"bc", b"\0", b"def"], 0)

    sent = send(pair[0].fileno(), messages.text, messages.ends, 1, 1000, False)

    assert sent == (3, 0)
    assert [pair[1].recv(100) for _ in range(3)] == [b"bc", b"\0", b"def"]


def test_no_more_than_are_named_by_their_ends_are_sent(
    send: Send, pair: tuple[socket.socket, socket.socket]
) -> None:
    messages = make_rendered([b"a", b"b", b"c"], 0)

    assert send(pair[0].fileno(), messages.text, messages.ends[:8], 0, 1000, False) == (2, 0)


def test_the_first_that_is_not_taken_in_time_is_an_error_behind_those_that_were(
    send: Send, pair: tuple[socket.socket, socket.socket]
) -> None:
    messages = make_rendered([b"x" * 100] * 5000, 0)

    sent, error = send(pair[0].fileno(), messages.text, messages.ends, 0, 1, False)
    again = send(pair[0].fileno(), messages.text, messages.ends, sent, 1, False)

    assert 0 < sent < 5000
    assert error == errno.ETIMEDOUT
    assert again == (0, errno.ETIMEDOUT)


@pytest.fixture
def udp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected socket, and its receiver."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
    ):
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        ours.connect(server.getsockname())
        yield ours, server


def test_one_that_is_too_long_is_an_error_and_those_before_it_are_sent(
    send: Send, udp: tuple[socket.socket, socket.socket]
) -> None:
    messages = make_rendered([b"a", b"x" * 70_000, b"b"], 0)

    assert send(udp[0].fileno(), messages.text, messages.ends, 0, 1000, False) == (1, errno.EMSGSIZE)
    assert send(udp[0].fileno(), messages.text, messages.ends, 1, 1000, False) == (0, errno.EMSGSIZE)
    assert send(udp[0].fileno(), messages.text, messages.ends, 2, 1000, False) == (1, 0)
    assert [udp[1].recv(10) for _ in range(2)] == [b"a", b"b"]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([64] * 10, id="of one length"),
        pytest.param([64] * 150, id="more than fit into one call"),
        pytest.param([64, 64, 10, 64, 64], id="a shorter one between"),
        pytest.param([10, 64, 65, 64, 1, 0, 1], id="of all lengths"),
        pytest.param([9000] * 8, id="longer together than a packet of IP"),
        pytest.param([40_000, 40_000], id="two that are too long together"),
    ],
)
def test_segments_arrive_as_the_messages_that_they_are(
    send: Send, udp: tuple[socket.socket, socket.socket], sizes: list[int]
) -> None:
    ours, server = udp
    texts = [bytes([65 + number % 26]) * size for number, size in enumerate(sizes)]
    messages = make_rendered(texts, 0)

    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(server.recv(1 << 16) for _ in texts))
    reader.start()
    sent = send(ours.fileno(), messages.text, messages.ends, 0, 1000, True)
    reader.join()

    assert sent == (len(texts), 0)
    assert received == texts


SEND_LONG = """
import socket
from array import array
from conntrackd.delivery.datagrams import send

server, ours = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
server.bind(("127.0.0.1", 0))
server.settimeout(10)
ours.connect(server.getsockname())
texts = [bytes([65 + number]) * 2000 for number in range(5)]
ends = array("I", range(2000, 12_000, 2000)).tobytes()
assert send(ours.fileno(), b"".join(texts), ends, 0, 1000, True) == (5, 0)
assert [server.recv(1 << 16) for _ in texts] == texts
"""


@pytest.mark.privileged
def test_messages_longer_than_a_packet_are_sent_where_segments_are_asked_for() -> None:
    """To the kernel such a datagram can be fragments, and such a segment is a mistake."""
    command = 'ip link set lo up mtu 1500 && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command, "sh", sys.executable, "-c", SEND_LONG],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_closing_ends_a_send_that_waits_and_uses_no_descriptor_of_others() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    messages = make_rendered([b"%d" % number for number in range(5000)], 0)
    found: list[tuple[int, OSError | None]] = []
    with closing(DatagramSocket(ours, 600.0)) as sock, theirs:
        thread = threading.Thread(target=lambda: found.append(sock.send(messages.text, messages.ends)))
        thread.start()
        first = theirs.recv(100)
        sock.close()
        thread.join(15)
        others = os.open("/dev/null", os.O_WRONLY)
        again = sock.send(messages.text, messages.ends)
        os.close(others)

    assert (first, thread.is_alive()) == (b"0", False)
    assert 0 < found[0][0] < 5000
    assert found[0][1] is not None
    assert again[0] == 0
    assert again[1] is not None


def test_what_was_sent_is_counted_from_the_first_to_the_one_that_failed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    messages = make_rendered([b"message %d" % number for number in range(5000)], 0)
    with closing(DatagramSocket(ours, 0.001)) as sock, theirs:
        sent, error = sock.send(messages.text, messages.ends)
        theirs.setblocking(False)
        received = [theirs.recv(100) for _ in range(sent)]
        with pytest.raises(BlockingIOError):
            theirs.recv(100)

    assert isinstance(error, TimeoutError)
    assert [int(re.findall(rb"\d+", text)[0]) for text in received] == list(range(sent))


def report_size(sock: socket.socket, size: int) -> bytes:
    """What a router says of a packet of this socket that is longer than so many bytes (RFC 1191)."""
    (source, sport), (target, dport) = sock.getsockname(), sock.getpeername()
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 928, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + addresses
    body = struct.pack("!HH", 0, size) + packet + struct.pack("!HHHH", sport, dport, 908, 0)
    total = sum(struct.unpack(f"!{len(body) // 2}H", body)) + 0x0304
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", 3, 4, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + body


@pytest.mark.privileged
def test_a_router_with_a_smaller_packet_costs_no_message(udp: tuple[socket.socket, socket.socket]) -> None:
    """Its report would be the error of a message that fits."""
    messages = make_rendered([b"x" * 900, b"y"], 0)
    ours, _ = udp
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as router,
        closing(DatagramSocket(ours, 10.0)) as sock,
    ):
        first = sock.send(messages.text, messages.ends)
        router.sendto(report_size(ours, 600), ("127.0.0.1", 0))
        second = sock.send(messages.text, messages.ends)

    assert (first, second) == ((2, None), (2, None))
