"""What is a reply of HTTP and what is none: bytes in, a reply or an error out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.sinks.http_reply import MAX_REPLY, Reply, ReplyError, ReplyReader

DONE = b"HTTP/1.1 204 No Content\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


def read(data: bytes, piece: int = 1 << 16) -> tuple[Reply, ReplyReader]:
    """The reply to these bytes, which come in pieces of that size, and then the end."""
    reader = ReplyReader()
    for start in range(0, len(data), piece):
        reply = reader.feed(data[start : start + piece])
        if reply is not None:
            reader.has_rest |= start + piece < len(data)
            return reply, reader
    return reader.eof(), reader


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 16])
@pytest.mark.parametrize(
    ("data", "status", "body", "stays"),
    [
        (DONE, 204, b"", True),
        (b"HTTP/1.1 204\nServer: x\n\n", 204, b"", True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b"", False),
        (b"HTTP/1.1 204 No Content\r\nConnection: keep-alive, Close\r\n\r\n", 204, b"", False),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 204, b"", False),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno", 400, b"no", True),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nno", 400, b"no", True),
        (b"HTTP/1.1 400 Bad\r\n\r\nno", 400, b"no", False),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 9\r\n\r\nno", 400, b"no", False),
        (
            b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2;a=b\r\nno\r\n1 \r\n!\r\n0\r\nTrail: er\r\n\r\n",
            400,
            b"no!",
            True,
        ),
        (
            b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
            b"",
            False,
        ),
        (b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: gzip\r\n\r\nno", 400, b"no", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY * 3 + DONE, 204, b"", True),
    ],
)
def test_a_reply_ends_where_its_head_says(
    data: bytes, status: int, body: bytes, stays: bool, piece: int
) -> None:
    reply, reader = read(data, piece)

    assert (reply.status, reply.body, reader.can_stay, reader.has_rest) == (status, body, stays, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n" + DONE,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 204\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 2040 No\r\n\r\n",
        b"HTTP/1.1 -04 No\r\n\r\n",
        b"HTTP/1.1  204 No\r\n\r\n",
        b"HTTP/1.1 204 No\r\nX : y\r\n\r\n",
        b"HTTP/1.1 204 No\r\nX: y\r\n folded\r\n\r\n",
        b"HTTP/1.1 204 No\r\nno colon\r\n\r\n",
        b"HTTP/1.1 204 No\r\nX: never ends",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nno",
        b"HTTP/1.1 400 Bad\r\nContent-Length: -2\r\n\r\nno",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 0x2\r\n\r\nno",
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n",
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nno\r\n",
        EARLY,
        EARLY * 20 + DONE,
        b"HTTP/1.1 204 No Content\r\nX: " + b"x" * 2 * MAX_REPLY,
    ],
)
def test_what_cannot_be_trusted_is_no_reply(data: bytes) -> None:
    with pytest.raises(ReplyError):
        read(data)


@pytest.mark.parametrize("rest", [DONE, b"x", b"\r\n", EARLY])
def test_what_comes_behind_a_reply_is_noticed(rest: bytes) -> None:
    reply, reader = read(DONE + rest)

    assert (reply.status, reader.has_rest, reader.can_stay) == (204, True, False)


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\nContent-Length: 999999999\r\n\r\n"])
def test_of_a_body_without_end_only_so_much_is_kept(end: bytes) -> None:
    reader = ReplyReader()
    reply = reader.feed(b"HTTP/1.1 500 No" + end + b"x" * 10 * MAX_REPLY)

    assert reply is not None
    assert (reply.status, len(reply.body), reader.can_stay) == (500, MAX_REPLY, False)


PARTS = [
    b"HTTP/1.1 ",
    b"204",
    b"200 OK",
    b"100",
    b"\r\n",
    b"\n",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
]


@given(st.lists(st.sampled_from(PARTS) | st.binary(max_size=4), max_size=12).map(b"".join), st.integers(1, 9))
def test_whatever_comes_is_a_reply_or_an_error_and_the_pieces_change_nothing(data: bytes, piece: int) -> None:
    def outcome(size: int) -> object:
        try:
            reply, reader = read(data, size)
        except ReplyError:
            return None
        return reply.status, reply.body, reader.has_rest

    whole = outcome(1 << 16)
    assert whole == outcome(piece)
    if isinstance(whole, tuple) and whole[0] == 204:
        assert b"204" in data


def test_a_page_is_not_shown_in_a_line() -> None:
    page = b"\n<!DOCTYPE HTML><html><h1>Not found</h1></html>"

    assert Reply(404, body=page).reason == "the server replied 404"
    assert Reply(404, body=b"no such tenant").reason == "the server replied 404: no such tenant"
