"""metrics/request.py: what a client may write, and what is made of it."""

from email.utils import parsedate_to_datetime
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.metrics.exposition import OPENMETRICS, TEXT
from conntrackd.metrics.request import (
    RefusedError,
    Request,
    choose_format,
    parse_head,
    render_answer,
    render_refusal,
)

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,/;q=0.1"
)


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x", Request("GET", "/metrics")),
        (b"GET /metrics HTTP/1.0", Request("GET", "/metrics")),
        (b"HEAD /metrics?name[]=up HTTP/1.1", Request("HEAD", "/metrics")),
        (b"GET http://host:9477/metrics HTTP/1.1", Request("GET", "/metrics")),
        (b"GET /m HTTP/1.1\r\nACCEPT: a \r\nX-Y:z\r\nAccept: b", Request("GET", "/m", "a,b")),
        (b"GET /\xff HTTP/1.1", Request("GET", "/\xff")),
        (b"OPTIONS * HTTP/1.1", Request("OPTIONS", "*")),
    ],
)
def test_a_request_is_read(head: bytes, request_: Request) -> None:
    assert parse_head(head) == request_


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET",
        b"GET /metrics",
        b"get /metrics HTTP/1.1",
        b"GET  /metrics HTTP/1.1",
        b"GET /metrics HTTP/2.0",
        b"GET /metrics HTTP/1.1 ",
        b" GET /metrics HTTP/1.1",
        b"GET http://[::1/metrics HTTP/1.1",
        b"GET /metrics HTTP/1.1\r\nno colon",
        b"GET /metrics HTTP/1.1\r\nHost : x",
        b"GET /metrics HTTP/1.1\r\n folded: x",
        b"\x16\x03\x01\x02\x00\x01\x00",  # who speaks TLS
    ],
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_head(head)

    assert caught.value.status is HTTPStatus.BAD_REQUEST


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_request_or_refused(head: bytes) -> None:
    try:
        request = parse_head(b"GET / HTTP/1.1\r\nAccept: " + head)
    except RefusedError:
        return
    assert choose_format(request.accept) in {TEXT, OPENMETRICS}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xml;q=0.9,*/*;q=0.8", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; q=1, text/plain; q=0.9", OPENMETRICS),
        ("application/openmetrics-text;q=0.5,text/plain", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.5,text/*;q=0.5", TEXT),
        ("application/openmetrics-text;q=nonsense", OPENMETRICS),
        (";,;;q=,", TEXT),
    ],
)
def test_the_format_is_the_one_that_the_client_likes_better(accept: str, content_type: str) -> None:
    assert choose_format(accept) == content_type


def test_an_answer_has_a_head_and_a_body() -> None:
    head, _, body = render_answer(HTTPStatus.OK, TEXT, b"a page\n").partition(b"\r\n\r\n")

    first, date, *rest = head.decode().split("\r\n")
    assert first == "HTTP/1.1 200 OK"
    assert parsedate_to_datetime(date.removeprefix("Date: ")).tzinfo is not None
    assert rest == [
        "Content-Type: text/plain; version=0.0.4; charset=utf-8",
        "Content-Length: 7",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    assert body == b"a page\n"


def test_an_impossible_method_is_answered_with_those_that_are_possible() -> None:
    answer = render_refusal(HTTPStatus.METHOD_NOT_ALLOWED)

    assert b"\r\nAllow: GET, HEAD\r\n" in answer
    assert answer.endswith(b"\r\n\r\n405 Method Not Allowed\n")
