"""Datagrams and frames: by the core where there is one, and by plain Python, with the same result."""

import errno
import os
import re
import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from conntrackd.delivery import datagrams
from conntrackd.delivery.datagrams import MAX_SEQUENCE, DatagramSocket, Framing, frame_plainly, send_plainly
from tests.rendering import make_rendered

Frame = Callable[[bytes, bytes, int, int], tuple[bytes, bytes]]
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
    ],
)
def test_each_message_has_its_frame(frame: Frame, framing: Framing, framed: list[bytes]) -> None:
    messages = make_rendered([b"abc", b"", b"de"], 0)

    assert split(*frame(messages.text, messages.ends, 1, framing)) == framed


def test_numbers_stand_in_their_places_and_begin_again_after_the_largest(frame: Frame) -> None:
    messages = make_rendered([b"a\0b", b"none", b"\0", b"c\0d"], 0)

    found = split(*frame(messages.text, messages.ends, MAX_SEQUENCE - 1, Framing.OCTETS))

    assert found == [b"12 a2147483646b", b"4 none", b"10 2147483647", b"3 c1d"]


def test_the_length_before_a_message_counts_its_number(frame: Frame) -> None:
    messages = make_rendered([b"x" * (10**power - 1) + b"\0" for power in range(1, 5)], 0)

    for message in split(*frame(messages.text, messages.ends, 99_999, Framing.OCTETS)):
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

    sent, error = send(pair[0].fileno(), messages.text, messages.ends, 1, 1000, False)

    assert error == 0
    assert [pair[1].recv(100) for _ in range(sent)] == [b"bc", b"\0", b"def"]


def test_no_more_than_are_named_by_their_ends_are_sent(
    send: Send, pair: tuple[socket.socket, socket.socket]
) -> None:
    messages = make_rendered([b"a", b"b", b"c"], 0)

    assert send(pair[0].fileno(), messages.text, messages.ends[:8], 0, 1000, False) == (2, 0)


def test_what_is_not_taken_in_time_is_an_error_behind_those_that_were(
    send: Send, pair: tuple[socket.socket, socket.socket]
) -> None:
    messages = make_rendered([b"x" * 100] * 5000, 0)

    sent, error = send(pair[0].fileno(), messages.text, messages.ends, 0, 1, False)
    again = send(pair[0].fileno(), messages.text, messages.ends, sent, 1, False)

    assert 0 < sent < 5000
    assert (error, again) == (errno.ETIMEDOUT, (0, errno.ETIMEDOUT))


def test_one_that_is_too_long_is_an_error_behind_those_before_it(send: Send) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
    ):
        server.bind(("127.0.0.1", 0))
        ours.connect(server.getsockname())
        messages = make_rendered([b"a", b"x" * 70_000, b"b"], 0)

        found = [send(ours.fileno(), messages.text, messages.ends, first, 1000, False) for first in range(3)]

    assert found == [(1, errno.EMSGSIZE), (0, errno.EMSGSIZE), (1, 0)]


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


def test_a_send_that_nobody_waited_for_closes_its_socket_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagrams, "LOCK_SECONDS", 0.0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    messages = make_rendered([b"%d" % number for number in range(5000)], 0)
    sock = DatagramSocket(ours, 600.0)
    with theirs:
        thread = threading.Thread(target=lambda: sock.send(messages.text, messages.ends))
        thread.start()
        theirs.recv(100)
        sock.close()
        thread.join(15)

    assert (thread.is_alive(), ours.fileno()) == (False, -1)


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
