"""The head of an HTTP request -> what is asked for, and the bytes of an answer. No I/O here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from conntrackd.metrics.exposition import OPENMETRICS, TEXT

# The request line and all headers; Prometheus sends some 300 bytes, a browser below 2,000.
MAX_HEAD: Final = 8192
METHODS: Final = ("GET", "HEAD")
PLAIN: Final = "text/plain; charset=utf-8"
END: Final = b"\r\n\r\n"


class RefusedError(Exception):
    """What is answered with an error: `status` says which."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is whole."""

    method: str
    path: str
    accept: str = ""


def parse_head(head: bytes) -> Request:
    """From the request line to the empty line (RFC 9112). Raises RefusedError."""
    line, *headers = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"([A-Z]{1,32}) (\S+) HTTP/1\.[01]", line)
    if match is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    accept = []
    for header in headers:
        name, colon, value = header.partition(":")
        if header and (not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)):
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        if name.lower() == "accept":
            accept.append(value.strip())
    try:
        path = urlsplit(match[2]).path  # a proxy may send the whole address
    except ValueError as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST) from error
    return Request(match[1], path, ",".join(accept))


def choose_format(accept: str) -> str:
    """The one that the client likes better (RFC 9110, 12.5.1); the text format where it says nothing."""
    weights: dict[str, float] = {}
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        weights[kind] = max(weights.get(kind, 0.0), _read_weight(parameters))
    text = max(weights.get(kind, 0.0) for kind in ("text/plain", "text/*", "*/*"))
    return OPENMETRICS if weights.get("application/openmetrics-text", 0.0) > text else TEXT


def _read_weight(parameters: Sequence[str]) -> float:
    """Of one kind in Accept; 1 where none is given that can be read."""
    for parameter in parameters:
        if match := re.fullmatch(r"q=([01](?:\.\d{0,3})?)", parameter, re.ASCII):
            return float(match[1])
    return 1.0


def render_answer(status: HTTPStatus, content_type: str, body: bytes, method: str = "GET") -> bytes:
    """Head and body; of HEAD the head alone. The connection ends with it."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *([f"Allow: {', '.join(METHODS)}"] if status is HTTPStatus.METHOD_NOT_ALLOWED else []),
    ]
    return "\r\n".join(lines).encode() + END + (b"" if method == "HEAD" else body)


def render_refusal(status: HTTPStatus, method: str = "GET") -> bytes:
    return render_answer(status, PLAIN, f"{status.value} {status.phrase}\n".encode(), method)
