"""Syslog messages: each format byte for byte, but for the number and the frame."""

import json
import time
from collections.abc import Iterator

import pytest

from conntrackd.flow import EventType, Flow, Location, Lost
from conntrackd.render.syslog import clean_name, make_template
from conntrackd.render.template import Template
from tests.rendering import render
from tests.sinks.flows import BASE, make_flow


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local time that is the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def make(form: str, facility: str = "daemon") -> Template:
    return make_template(form, facility, "gw1.example", 42)


def show(template: Template, flow: Flow) -> bytes:
    return render(template, [flow]).text


def test_rfc5424_has_a_complete_header_and_all_fields() -> None:
    assert show(make("rfc5424"), make_flow(1, time=BASE + 123_456_789)) == (
        b"<30>1 2025-11-22T10:34:43.123456+00:00 gw1.example conntrackd 42 NEW "
        b'[meta sequenceId="\0"][event@32473 type="NEW" flow="1" prot="TCP" src="10.0.0.1" dst="192.0.2.1" '
        b'sport="40000" dport="443" state="SYN_SENT"] '
        b"NEW TCP connection from 10.0.0.1:40000 to 192.0.2.1:443"
    )


def test_rfc3164_has_the_day_in_two_places_and_the_fields_behind_the_message() -> None:
    early = 1_764_547_200_000_000_000  # 2025-12-01T00:00:00Z

    assert show(make("rfc3164", "local7"), make_flow(1, EventType.DESTROY, time=early)) == (
        b"<190>Dec  1 00:00:00 gw1.example conntrackd[42]: "
        b"DESTROY TCP connection from 10.0.0.1:40000 to 192.0.2.1:443 "
        b'type="DESTROY" flow="1" prot="TCP" src="10.0.0.1" dst="192.0.2.1" sport="40000" dport="443" '
        b'state="SYN_SENT"'
    )


def test_cee_is_a_cookie_and_the_object_of_the_stream_sink() -> None:
    head, _, text = show(make("cee"), make_flow(1)).partition(b"@cee: ")

    assert head == b"<30>Nov 22 10:34:43 gw1.example conntrackd[42]: "
    assert list(json.loads(text))[:5] == ["time", "level", "msg", "type", "flow"]


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
def test_a_loss_is_a_warning_with_its_number(form: str) -> None:
    loss = make(form).render_loss(Lost(7, BASE, BASE + 1, "kernel"))

    assert loss.text.startswith(b"<28>")
    assert b"LOST 7 events in the kernel's buffer" in loss.text


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
def test_no_value_can_end_its_element_its_line_or_the_record(form: str) -> None:
    event = make_flow(1)
    event.dst_location = Location(city='a"] \\evil\n<0>1 - \x1b[31m\u202e')
    message = show(make(form), event)

    assert b"\n" not in message
    assert b"\x1b" not in message
    if form == "rfc5424":
        assert rb'city="a\"\] \\evil\n<0>1 - \x1b[31m\u202e"' in message


@pytest.mark.parametrize("form", ["rfc3164", "cee"])
def test_over_a_local_socket_a_message_carries_no_name_of_the_host(form: str) -> None:
    template = make_template(form, "daemon", "gw1.example", 42, is_local=True)

    assert show(template, make_flow(1)).startswith(b"<30>Nov 22 10:34:43 conntrackd[42]: ")


@pytest.mark.parametrize(
    ("host", "clean"), [("gw 1\n", "gw1"), ("", "-"), ("ü", "-"), ("a" * 300, "a" * 255)]
)
def test_a_host_name_is_what_the_header_may_hold(host: str, clean: str) -> None:
    assert clean_name(host) == clean
