"""render/syslog.py: each format byte for byte, and the frames."""

import json
import re
from typing import Any

import pytest

from conntrackd.delivery.datagrams import MAX_SEQUENCE, Framing, frame, frame_plainly
from conntrackd.flow import EventType, Flow, Location, Lost
from conntrackd.render.rendered import Rendered
from conntrackd.render.syslog import clean_name, make_template
from conntrackd.render.template import Template
from tests.rendering import list_texts, make_rendered, render, render_all
from tests.sinks.flows import BASE, make_flow, make_flows

ZONE = "UTC"


def make(form: str, facility: str = "daemon") -> Template:
    return make_template(form, facility, "gw1.example", 42)


def write(template: Template, *records: Flow | Lost) -> list[bytes]:
    """As datagrams, numbered from 1."""
    found = []
    for part in render_all(template, records):
        text, ends, _ = frame(part.text, part.ends, 1, Framing.NONE)
        found += list_texts(Rendered(text, ends, part.events, part.time))
    return found


def test_rfc5424_has_a_complete_header_and_all_fields() -> None:
    assert write(make("rfc5424"), make_flow(1, time=BASE + 123_456_789)) == [
        b"<30>1 2025-11-22T10:34:43.123456+00:00 gw1.example conntrackd 42 NEW "
        b'[meta sequenceId="1"][event@32473 type="NEW" flow="1" prot="TCP" src="10.0.0.1" dst="192.0.2.1" '
        b'sport="40000" dport="443" state="SYN_SENT"] '
        b"NEW TCP connection from 10.0.0.1:40000 to 192.0.2.1:443"
    ]


def test_rfc3164_has_the_day_in_two_places_and_the_fields_behind_the_message() -> None:
    early = 1_764_547_200_000_000_000  # 2025-12-01T00:00:00Z

    assert write(make("rfc3164", "local7"), make_flow(1, EventType.DESTROY, time=early)) == [
        b"<190>Dec  1 00:00:00 gw1.example conntrackd[42]: "
        b"DESTROY TCP connection from 10.0.0.1:40000 to 192.0.2.1:443 "
        b'type="DESTROY" flow="1" prot="TCP" src="10.0.0.1" dst="192.0.2.1" sport="40000" dport="443" '
        b'state="SYN_SENT"'
    ]


def test_cee_is_a_cookie_and_the_object_of_the_stream_sink() -> None:
    (message,) = write(make("cee"), make_flow(1))
    head, _, text = message.partition(b"@cee: ")

    assert head == b"<30>Nov 22 10:34:43 gw1.example conntrackd[42]: "
    assert list(json.loads(text))[:5] == ["time", "level", "msg", "type", "flow"]


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
def test_a_loss_is_a_warning_with_its_number(form: str) -> None:
    (message,) = write(make(form), Lost(7, BASE, BASE + 1, "kernel"))

    assert message.startswith(b"<28>")
    assert b"LOST 7 events in the kernel's buffer" in message


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
def test_no_value_can_end_its_element_its_line_or_the_record(form: str) -> None:
    event = make_flow(1)
    event.dst_location = Location(city='a"] \\evil\n<0>1 - \x1b[31m\u202e')
    (message,) = write(make(form), event)

    assert b"\n" not in message
    assert b"\x1b" not in message
    if form == "rfc5424":
        assert rb'city="a\"\] \\evil\n<0>1 - \x1b[31m\u202e"' in message


@pytest.mark.parametrize("framer", [frame, frame_plainly])
def test_the_sequence_begins_at_1_again_after_its_largest_number(framer: Any) -> None:
    part = render(make("rfc5424"), make_flows(2))
    text, _, following = framer(part.text, part.ends, MAX_SEQUENCE, Framing.NONE)

    assert re.findall(rb'sequenceId="(\d+)"', text) == [b"2147483647", b"1"]
    assert following == 2


@pytest.mark.parametrize("framer", [frame, frame_plainly])
def test_messages_that_wait_while_the_format_changes_have_their_numbers(framer: Any) -> None:
    waiting = [
        *list_texts(render(make("rfc5424"), make_flows(2))),
        *list_texts(render(make("cee"), make_flows(1))),
    ]
    part = make_rendered([waiting[0], waiting[2], waiting[1]], BASE)
    text, ends, following = framer(part.text, part.ends, 5, Framing.NONE)
    found = list_texts(Rendered(text, ends, 3, BASE))

    assert [re.findall(rb'sequenceId="(.*?)"', message) for message in found] == [[b"5"], [], [b"6"]]
    assert following == 7


@pytest.mark.parametrize("framer", [frame, frame_plainly])
@pytest.mark.parametrize(
    ("framing", "expected"),
    [
        (Framing.NONE, b"abc7d"),
        (Framing.OCTETS, b"3 abc2 7d"),
        (Framing.LINE, b"abc\n7d\n"),
        (Framing.NUL, b"abc\x007d\0"),
    ],
)
def test_frames(framer: Any, framing: Framing, expected: bytes) -> None:
    part = make_rendered([b"abc", b"\0d"], BASE)

    text, ends, _ = framer(part.text, part.ends, 7, framing)

    assert text == expected
    assert list_texts(Rendered(text, ends, 2, BASE))[1] in expected


@pytest.mark.parametrize(
    ("host", "clean"),
    [
        ("gw 1\n", "gw?1?"),
        ("", "-"),
        ("gw-büro", "xn--gw-bro-6ya"),
        ("a" * 300, "a" * 255),
        (chr(0xDCFF), "?"),
    ],
)
def test_a_host_name_is_what_the_header_may_hold(host: str, clean: str) -> None:
    assert clean_name(host) == clean
