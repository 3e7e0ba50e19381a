"""Bytes of a server -> one HTTP/1.1 reply (RFC 9112), or the reason why they are none. Pure: no socket here.

Stricter than a browser: where two readers could find the end of a reply in different places, the connection
is not used again, and what does not look like HTTP is an error. A push that is taken for delivered is gone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

MAX_REPLY: Final = 64 << 10  # bytes of a body, and of all headers, that are read: more was not written for us
MAX_INTERIM: Final = 16  # replies of 1xx before the one that counts
MAX_TEXT: Final = 300  # characters of a reply that are repeated to people
HIDDEN: Final = b"(hidden)"

STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
LENGTH: Final = re.compile(rb"[0-9]{1,18}")
CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
SWITCHING: Final = 101  # which nobody asked for: what follows would not be HTTP


class ReplyError(ValueError):
    """The reply cannot be trusted. The text says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said: at most MAX_REPLY bytes of it."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def text(self) -> str:
        """The body in one harmless line; nothing for a page, which people are to see in a browser."""
        if self.body.lstrip().startswith(b"<"):
            return ""
        text = self.body.decode(errors="replace")[:MAX_TEXT]
        return " ".join("".join(char if char.isprintable() else " " for char in text).split())

    def hide(self, secrets: Sequence[str]) -> "Reply":
        """The same without what it was sent in confidence, and may repeat."""
        body = self.body
        for secret in secrets:
            body = body.replace(secret.encode(), HIDDEN)
        return replace(self, body=body)

    @property
    def reason(self) -> str:
        """What it says, for people."""
        return f"the server replied {self.status}" + (f": {self.text}" if self.text else "")


class ReplyReader:
    """Reads the reply to one request from bytes as they come: feed() until it gives one, eof() at the end."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._interim = 0
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._left = 0  # bytes of the body, or of the chunk, that are still to come
        self._in = "head"
        self.can_stay = False
        """Whether the connection can be used again, once there is a reply."""
        self.has_rest = False
        """Whether more came than the reply: nobody knows what that belongs to."""

    @property
    def has_begun(self) -> bool:
        """Whether anything came but interim replies."""
        return bool(self._data or self._status)

    def feed(self, data: bytes) -> Reply | None:
        """More bytes. The reply when it is whole, or when as much of it came as is of interest."""
        self._data += data
        while self._in != "end":
            before = (self._in, len(self._data))
            {
                "head": self._read_head,
                "length": self._read_length,
                "chunk": self._read_chunk,
                "data": self._read_chunk_data,
                "trailer": self._read_trailer,
                "close": self._read_until_close,
            }[self._in]()
            if (self._in, len(self._data)) == before:
                return None
            if len(self._body) > MAX_REPLY:
                self.can_stay = False
                return self._make_reply()
        self.has_rest = bool(self._data)
        self.can_stay = self.can_stay and not self.has_rest
        return self._make_reply()

    def eof(self) -> Reply:
        """The connection has ended. Of a reply that breaks off in its body the status holds."""
        self.can_stay = False
        if self._in == "head":
            raise ReplyError("the connection ended before the reply was complete")
        return self._make_reply()

    def _make_reply(self) -> Reply:
        return Reply(self._status, self._headers, bytes(self._body[:MAX_REPLY]))

    # ---- the head -------------------------------------------------------------------------------------

    def _read_head(self) -> None:
        end = HEAD_END.search(self._data)
        if end is None:
            if len(self._data) > MAX_REPLY:
                raise ReplyError("not an HTTP/1.1 reply")
            if not b"HTTP/1.".startswith(self._data[:7]):
                raise ReplyError("not an HTTP/1.1 reply")
            return
        lines = re.split(rb"\r?\n", bytes(self._data[: end.start()]))
        del self._data[: end.end()]
        line = STATUS_LINE.fullmatch(lines[0])
        if line is None:
            raise ReplyError("not an HTTP/1.1 reply")
        status = int(line[2])
        if status == SWITCHING:
            raise ReplyError("the server switched to another protocol unasked")
        if status < 200:  # 100, 102, 103: the reply is still to come
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise ReplyError("the server sends nothing but interim replies")
            return
        self._status = status
        self._choose_frame(_read_headers(lines[1:]), is_old=line[1] == b"0")

    def _choose_frame(self, headers: list[tuple[str, bytes]], *, is_old: bool) -> None:
        """Where the body ends (RFC 9112, section 6.3)."""
        self._headers = {name: value.decode("latin-1") for name, value in reversed(headers)}
        coding = b",".join(value for name, value in headers if name == "transfer-encoding").lower().strip()
        lengths = {value for name, value in headers if name == "content-length"}
        options = b",".join(value for name, value in headers if name == "connection").lower()
        self.can_stay = not is_old and b"close" not in options
        if self._status in (204, 304):
            # Should one have a body all the same, its bytes are taken for no reply: see has_rest.
            self.can_stay = self.can_stay and not coding and lengths <= {b"0"}
            self._in = "end"
        elif coding:
            self.can_stay = self.can_stay and not lengths and coding == b"chunked"
            self._in = "chunk" if coding == b"chunked" and not is_old else "close"
        elif lengths:
            (length, *others) = lengths
            if others or not LENGTH.fullmatch(length):
                raise ReplyError("the reply's length is missing or ambiguous")
            self._left = int(length)
            self._in = "length"
        else:
            self._in = "close"

    # ---- the body -------------------------------------------------------------------------------------

    def _take(self, count: int) -> None:
        """To the body. What is over its bound is only counted, so that it cannot fill the memory."""
        self._body += self._data[: min(count, MAX_REPLY + 1 - len(self._body))]
        del self._data[:count]

    def _read_length(self) -> None:
        count = min(self._left, len(self._data))
        self._take(count)
        self._left -= count
        if not self._left:
            self._in = "end"

    def _read_line(self) -> bytes | None:
        end = self._data.find(b"\n")
        if end < 0:
            if len(self._data) > MAX_REPLY:
                raise ReplyError("a line of the reply is too long")
            return None
        line = bytes(self._data[:end]).removesuffix(b"\r")
        del self._data[: end + 1]
        return line

    def _read_chunk(self) -> None:
        line = self._read_line()
        if line is None:
            return
        size = CHUNK.fullmatch(line)
        if size is None:
            raise ReplyError("the reply's chunks cannot be read")
        self._left = int(size[1], 16)
        self._in = "data" if self._left else "trailer"

    def _read_chunk_data(self) -> None:
        if self._left:
            count = min(self._left, len(self._data))
            self._take(count)
            self._left -= count
        elif (line := self._read_line()) is not None:
            if line:
                raise ReplyError("the reply's chunks cannot be read")
            self._in = "chunk"

    def _read_trailer(self) -> None:
        if self._read_line() == b"":
            self._in = "end"

    def _read_until_close(self) -> None:
        self.can_stay = False
        self._take(len(self._data))


def _read_headers(lines: list[bytes]) -> list[tuple[str, bytes]]:
    """Names in lower case. A line that is not a header could hide one, so it is an error."""
    found = []
    for line in lines:
        header = HEADER.fullmatch(line)
        if header is None:
            raise ReplyError("a header of the reply cannot be read")
        found.append((header[1].decode().lower(), header[2]))
    return found
