"""Texts become values, and values texts; what does not fit is reported, never raised as anything else."""

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.config import values
from conntrackd.config.labels import LABELS, list_joined_labels
from conntrackd.config.options import LOKI_PATHS
from conntrackd.config.values import BadValueError, ValueType
from conntrackd.flow import EventType
from conntrackd.units import render_size

SIZE = values.size(0, 1 << 40)
DURATION = values.duration(0, 86_400)
URL = values.url("udp", "tcp", "unix")
HTTP = values.url("http", "https")
LOKI = values.url("http", "https", endpoints=LOKI_PATHS)


def parse(kind: ValueType[Any], text: str) -> Any:
    return kind.parse(kind.split(text))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (SIZE, "0", 0),
        (SIZE, "4096", 4096),
        (SIZE, "64M", 64 << 20),
        (SIZE, "64m", 64 << 20),
        (SIZE, "64MiB", 64 << 20),
        (SIZE, "1.5K", 1536),
        (SIZE, "2 GB", 2 << 30),
        (DURATION, "10", 10.0),
        (DURATION, "10s", 10.0),
        (DURATION, "5m", 300.0),
        (DURATION, "500ms", 0.5),
        (DURATION, "1.5h", 5400.0),
        (values.FLAG, "true", True),
        (values.FLAG, "Yes", True),
        (values.FLAG, "1", True),
        (values.FLAG, "off", False),
        (values.FLAG, "0", False),
        (values.EVENTS, "new, DESTROY", EventType.NEW | EventType.DESTROY),
        (values.EVENTS, "all", EventType.NEW | EventType.UPDATE | EventType.DESTROY),
        (values.PROTOCOLS, "tcp,UDP,89", frozenset({6, 17, 89})),
        (values.PROTOCOLS, "all", frozenset(range(256))),
        (values.PATHS, "/a, /b", (Path("/a"), Path("/b"))),
        (values.PATHS, "", ()),
        (LABELS, "env=prod, team=a=b", (("env", "prod"), ("team", "a=b"))),
        (values.RULES, "log any\n\n  drop any  ", ("log any", "drop any")),
        (values.WRITER, "stdout", "stdout"),
        (values.WRITER, "file:///var/log/x y", "file:///var/log/x y"),
        (values.LOCALE, "pt-BR", "pt-BR"),
        (values.one_of("off", "snapshot"), "OFF", "off"),
        (values.count(1, 10), "10", 10),
        (URL, "udp://localhost:514", "udp://localhost:514"),
        (URL, "tcp://[::1]:514", "tcp://[::1]:514"),
        (URL, "unix:///dev/log", "unix:///dev/log"),
        (HTTP, "https://loki.example/base/", "https://loki.example/base"),
    ],
)
def test_a_text_becomes_a_value(kind: ValueType[Any], text: str, value: Any) -> None:
    assert parse(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text", "shown", "message"),
    [
        (SIZE, "64Q", "64Q", "is not a valid size"),
        (SIZE, "-1", "-1", "is not a valid size"),
        (SIZE, "1e99", "1e99", "is not a valid size"),
        (SIZE, "nan", "nan", "is not a valid size"),
        (SIZE, "٣", "٣", "is not a valid size"),
        (values.size(4096, 1 << 30), "1", "1", "is not from 4K to 1G"),
        (DURATION, "5 minutes", "5 minutes", "is not a valid duration"),
        (DURATION, "99h", "99h", "is not from 0s to 24h"),
        (values.FLAG, "maybe", "maybe", "is neither true nor false"),
        (values.EVENTS, "new, old", "old", "is not one of new, update, destroy"),
        (values.EVENTS, "", "", "names no event type"),
        (values.PROTOCOLS, "tcp, TPC", "TPC", "is not a valid protocol"),
        (values.PROTOCOLS, "256", "256", "is not a valid protocol"),
        (values.PROTOCOLS, ",", "", "names no protocol"),
        (values.PATH, "", "", "is empty"),
        (values.PATH, "a\0b", "a\0b", "has control characters"),
        (values.PATH, "a" * 4097, "a" * 4097, "has more than 4096 characters"),
        (values.NAMESPACE, "../x", "../x", "is not a valid name of a network namespace"),
        (values.NAMESPACE, "..", "..", "is not a valid name of a network namespace"),
        (values.LOCALE, "english", "english", "is not a valid language"),
        (values.WRITER, "stdot", "stdot", "is not one of stdout, stderr, discard, file:///PATH"),
        (values.WRITER, "file:///", "file:///", "is not one of stdout, stderr, discard, file:///PATH"),
        (LABELS, "env", "env", "is not a valid label"),
        (LABELS, "1a=b", "1a", "is not a valid label name"),
        (LABELS, "__a=b", "__a", "is not a valid label name"),
        (LABELS, "src=b", "src", "would hide the field of that name"),
        (LABELS, "prot=b", "prot", "is a label that conntrackd sets itself"),
        (LABELS, "a=b,a=c", "a", "is given twice"),
        (LABELS, "a=x\x1b", "a=x\x1b", "has a value that is too long or has control characters"),
        (LABELS, ",".join(f"a{n}=b" for n in range(12)), "", "has 12 labels, the maximum is 10"),
        (values.count(1, 10), "11", "11", "is not from 1 to 10"),
        (values.count(1, 10), "1.0", "1.0", "is not a whole number"),
        (values.RULES, "x" * 4097, "x" * 4097, "has more than 4096 characters"),
        (URL, "ftp://host", "ftp://host", "does not begin with udp:// or tcp:// or unix://"),
        (URL, "localhost:514", "localhost:514", "does not begin with udp:// or tcp:// or unix://"),
        (URL, "udp://", "udp://", "has no host"),
        (URL, "udp://host:99999", "udp://host:99999", "is not a valid address"),
        (URL, "udp://host:0", "udp://host:0", "has port 0"),
        (URL, "udp://[::1", "udp://[::1", "is not a valid address"),
        (URL, "udp://host/path", "udp://host/path", "has a path after the host"),
        (URL, "unix://host/path", "unix://host/path", "has no path: write unix:///PATH"),
        (HTTP, "http://host?a=b", "http://host?a=b", "has a space, query or fragment"),
    ],
)
def test_what_does_not_fit_is_reported(kind: ValueType[Any], text: str, shown: str, message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse(kind, text)

    assert (caught.value.text, caught.value.message) == (shown, message)


def test_a_path_that_lacks_its_scheme_is_recognized() -> None:
    with pytest.raises(BadValueError) as caught:
        parse(values.WRITER, "/var/log/events.json")

    assert caught.value.hint == "did you mean file:///var/log/events.json?"


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(BadValueError) as caught:
        parse(HTTP, "http://user:hunter2@host")

    assert "hunter2" not in f"{caught.value.text}{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        (values.PROTOCOLS, "TPC", "did you mean tcp?"),
        (values.WRITER, "stdot", "did you mean stdout?"),
        (values.WRITER, "events.json", "a file is file:// with its absolute path behind it"),
        (values.WRITER, "file://events", "a file is file:// with its absolute path behind it"),
        (URL, "udpp://host", "did you mean udp?"),
        (URL, "/dev/log", "did you mean unix:///dev/log?"),
        (URL, "localhost:514", "did you mean udp://localhost:514?"),
        (URL, "[::1]:514", "did you mean udp://[::1]:514?"),
        (URL, "loghost", "did you mean udp://loghost?"),
        (HTTP, "localhost:3100/", "did you mean http://localhost:3100/?"),
        (HTTP, "/run/loki", ""),
    ],
)
def test_a_near_miss_gets_a_hint(kind: ValueType[Any], text: str, hint: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse(kind, text)

    assert caught.value.hint == hint


KINDS: list[ValueType[Any]] = [
    SIZE,
    DURATION,
    URL,
    HTTP,
    values.FLAG,
    LOKI,
    values.NAMESPACE,
    values.HOSTNAME,
    values.TENANT,
    values.USER,
    values.BUS,
    values.SPOOL,
    values.LOCALE,
    values.PATH,
    values.PATHS,
    values.WRITER,
    values.PROTOCOLS,
    values.EVENTS,
    LABELS,
    values.RULES,
    values.count(0, 9),
    values.one_of("a", "b"),
]


@given(st.sampled_from(KINDS), st.text() | st.from_regex(r"[a-z0-9:/=,.\[\]?#@ -]{0,30}", fullmatch=True))
def test_any_text_is_a_value_that_renders_back_or_a_mistake(kind: ValueType[Any], text: str) -> None:
    try:
        value = parse(kind, text)
    except BadValueError:
        return

    # A path or label with a comma comes from a list in a file and has no form as one text.
    if "," not in text:
        assert parse(kind, kind.render(value)) == value


@given(st.integers(0, 1 << 40))
def test_a_rendered_size_is_the_same_size(number: int) -> None:
    assert parse(SIZE, render_size(number)) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("http://loki:3100/loki/api/v1/push", "http://loki:3100"),
        ("http://loki:3100/loki/api/v1/push/", "http://loki:3100"),
        ("https://gateway/tenant/loki/api/v1/push", "https://gateway/tenant"),
        ("https://gateway/loki", "https://gateway/loki"),
        ("http://loki:3100/loki/api/v1", "http://loki:3100"),
        ("http://loki:3100/api/prom/push", "http://loki:3100"),
        ("http://loki:3100/ready", "http://loki:3100"),
        ("http://loki:3100/ready/loki/api/v1/push//", "http://loki:3100"),
        ("http://ready", "http://ready"),
        ("HTTPS://[fe80::1%25eth0]/ready", "https://[fe80::1%eth0]"),
        ("http://loki-loki/api/v1/push.example", "http://loki-loki/api/v1/push.example"),
    ],
)
def test_the_path_of_an_endpoint_belongs_to_the_base_address(text: str, value: str) -> None:
    assert parse(LOKI, text) == value


@pytest.mark.parametrize("text", ["http://[fe80::1%25eth0]:3100", "http://[fe80::1%eth0]:3100"])
def test_a_zone_is_written_with_or_without_its_escape(text: str) -> None:
    value = parse(HTTP, text)

    assert (urlsplit(value).hostname, urlsplit(value).port) == ("fe80::1%eth0", 3100)
    assert parse(HTTP, value) == value


@pytest.mark.parametrize("scheme", ["udp", "tcp"])
def test_an_address_with_a_zone_is_one_for_the_system(scheme: str) -> None:
    host = urlsplit(parse(URL, f"{scheme}://[fe80::1%25lo]:514")).hostname

    assert socket.getaddrinfo(host, 514)[0][4] == ("fe80::1", 514, 0, socket.if_nametoindex("lo"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://[fe80::1%]", "is not a valid address"),
        ("http://[fe80::1%25a/b]", "is not a valid address"),
        ("http://[fe80::1%25a b]", "has a space, query or fragment"),
        ("http://[fe80::1%25averyveryverylongname]", "has no interface name after the %"),
        ("http://host%eth0", "has no interface name after the %"),
        ("http://a..b", "has a host that cannot be looked up"),
        (f"http://{'a' * 64}", "has a host that cannot be looked up"),
    ],
)
def test_a_host_that_nobody_can_reach_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse(HTTP, text)

    assert caught.value.message == message


@pytest.mark.parametrize("text", ["東京", "münchen", " a", "..", "a/b", "a\\b"])
def test_a_tenant_that_cannot_be_sent_is_refused(text: str) -> None:
    with pytest.raises(BadValueError):
        parse(values.TENANT, text)


@pytest.mark.parametrize("text", ["a", "team-1", "a b", "a|b", "x@y"])
def test_a_tenant_may_be_what_loki_takes(text: str) -> None:
    assert parse(values.TENANT, text) == text


@pytest.mark.parametrize(
    "text", ["unix:path=/run/a", "tcp:host=::1,port=5;unix:abstract=b", "unix:path=/x,guid=1"]
)
def test_an_address_of_a_bus_is_as_dbus_writes_it(text: str) -> None:
    assert parse(values.BUS, text) == text


@pytest.mark.parametrize(
    "text", ["/run/dbus/socket", "unix:", "unix:path", "unix:path=", "unix://run/a", "a b"]
)
def test_what_no_bus_has_for_an_address_is_refused(text: str) -> None:
    with pytest.raises(BadValueError, match="is not a valid bus address"):
        parse(values.BUS, text)


def test_a_user_has_no_colon() -> None:
    with pytest.raises(BadValueError):
        parse(values.USER, "a:b")


@pytest.mark.parametrize("text", ["/proc/1/ns/net", "/run/docker/netns/default", "office"])
def test_a_namespace_has_a_name_or_a_path(text: str) -> None:
    assert parse(values.NAMESPACE, text) == text


def test_labels_of_ones_own_replace_those_of_the_daemon_and_leave_their_room() -> None:
    own = "host=edge1,service_name=fw"
    many = ",".join(f"a{n}=b" for n in range(10))

    assert parse(LABELS, f"{own},{many}")[:2] == (("host", "edge1"), ("service_name", "fw"))
    with pytest.raises(BadValueError, match="has 11 labels, the maximum is 10"):
        parse(LABELS, f"{many},b=c")


@pytest.mark.parametrize(
    ("text", "names"),
    [("a=1 b=2", "a"), ("x=y,site=Hall 3", ""), ("c=1 d=2,x=y,a=1 b2=3", "c a"), ("a=b=c", "")],
)
def test_a_label_that_holds_another_is_noticed(text: str, names: str) -> None:
    assert list_joined_labels(parse(LABELS, text)) == names.split()
