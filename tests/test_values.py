"""Texts become values, and values texts; what does not fit is told, never raised as anything else."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd import values
from conntrackd.flow import EventType
from conntrackd.values import BadValueError, Kind

SIZE = values.size(0, 1 << 40)
DURATION = values.duration(0, 86_400)
URL = values.url("udp", "tcp", "unix")
HTTP = values.url("http", "https")


def parse(kind: Kind[Any], text: str) -> Any:
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
        (values.LABELS, "env=prod, team=a=b", (("env", "prod"), ("team", "a=b"))),
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
def test_a_text_becomes_a_value(kind: Kind[Any], text: str, value: Any) -> None:
    assert parse(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text", "shown", "message"),
    [
        (SIZE, "64Q", "64Q", "is no size"),
        (SIZE, "-1", "-1", "is no size"),
        (SIZE, "1e99", "1e99", "is no size"),
        (SIZE, "nan", "nan", "is no size"),
        (SIZE, "٣", "٣", "is no size"),
        (values.size(4096, 1 << 30), "1", "1", "is not from 4K to 1G"),
        (DURATION, "5 minutes", "5 minutes", "is no duration"),
        (DURATION, "99h", "99h", "is not from 0s to 24h"),
        (values.FLAG, "maybe", "maybe", "is neither true nor false"),
        (values.EVENTS, "new, old", "old", "is none of new, update, destroy"),
        (values.EVENTS, "", "", "names no event type"),
        (values.PROTOCOLS, "tcp, TPC", "TPC", "is no protocol"),
        (values.PROTOCOLS, "256", "256", "is no protocol"),
        (values.PROTOCOLS, ",", "", "names no protocol"),
        (values.PATH, "", "", "is empty"),
        (values.PATH, "a\0b", "a\0b", "has control characters"),
        (values.PATH, "a" * 4097, "a" * 4097, "has more than 4096 characters"),
        (values.NAME, "../x", "../x", "is no name of a network namespace"),
        (values.NAME, "..", "..", "is no name of a network namespace"),
        (values.LOCALE, "english", "english", "is no language"),
        (values.WRITER, "stdot", "stdot", "is none of stdout, stderr, discard, file:///PATH"),
        (values.WRITER, "file:///", "file:///", "is none of stdout, stderr, discard, file:///PATH"),
        (values.LABELS, "env", "env", "is no label"),
        (values.LABELS, "1a=b", "1a", "is no name of a label"),
        (values.LABELS, "__a=b", "__a", "is no name of a label"),
        (values.LABELS, "src=b", "src", "would make one stream of each connection"),
        (values.LABELS, "host=b", "host", "is a label that conntrackd sets itself"),
        (values.LABELS, "a=b,a=c", "a", "is given twice"),
        (values.LABELS, "a=x\x1b", "a=x\x1b", "has a value that is too long or has control characters"),
        (values.LABELS, ",".join(f"a{n}=b" for n in range(12)), "", "has 12 labels, 10 are possible"),
        (values.count(1, 10), "11", "11", "is not from 1 to 10"),
        (values.count(1, 10), "1.0", "1.0", "is no whole number"),
        (values.RULES, "x" * 4097, "x" * 4097, "has more than 4096 characters"),
        (URL, "ftp://host", "ftp://host", "does not begin with udp:// or tcp:// or unix://"),
        (URL, "localhost:514", "localhost:514", "does not begin with udp:// or tcp:// or unix://"),
        (URL, "udp://", "udp://", "has no host"),
        (URL, "udp://host:99999", "udp://host:99999", "is no address"),
        (URL, "udp://host:0", "udp://host:0", "has port 0"),
        (URL, "udp://[::1", "udp://[::1", "is no address"),
        (URL, "udp://host/path", "udp://host/path", "has a path after the host"),
        (URL, "unix://host/path", "unix://host/path", "has no path: write unix:///PATH"),
        (HTTP, "http://host?a=b", "http://host?a=b", "has a space, query or fragment"),
    ],
)
def test_what_does_not_fit_is_told(kind: Kind[Any], text: str, shown: str, message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse(kind, text)

    assert (caught.value.text, caught.value.message) == (shown, message)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(BadValueError) as caught:
        parse(HTTP, "http://user:hunter2@host")

    assert "hunter2" not in f"{caught.value.text}{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        (values.PROTOCOLS, "TPC", "did you mean tcp?"),
        (values.WRITER, "stdot", "did you mean stdout?"),
        (URL, "udpp://host", "did you mean udp?"),
    ],
)
def test_a_near_miss_gets_a_hint(kind: Kind[Any], text: str, hint: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse(kind, text)

    assert caught.value.hint == hint


KINDS: list[Kind[Any]] = [
    SIZE,
    DURATION,
    URL,
    HTTP,
    values.FLAG,
    values.TEXT,
    values.NAME,
    values.LOCALE,
    values.PATH,
    values.PATHS,
    values.WRITER,
    values.PROTOCOLS,
    values.EVENTS,
    values.LABELS,
    values.RULES,
    values.count(0, 9),
    values.one_of("a", "b"),
]


@given(st.sampled_from(KINDS), st.text() | st.from_regex(r"[a-z0-9:/=,.\[\]?#@ -]{0,30}", fullmatch=True))
def test_any_text_is_a_value_that_renders_back_or_a_mistake(kind: Kind[Any], text: str) -> None:
    try:
        value = parse(kind, text)
    except BadValueError:
        return

    # A path or label with a comma comes from a list in a file and has no form as one text.
    if "," not in text:
        assert parse(kind, kind.render(value)) == value


@given(st.integers(0, 1 << 40))
def test_a_rendered_size_is_the_same_size(number: int) -> None:
    assert parse(SIZE, values.render_size(number)) == number


@given(st.text())
def test_a_quoted_text_is_short_and_acts_on_no_terminal(text: str) -> None:
    quoted = values.quote(text)

    assert quoted.isprintable()
    assert values.quote("x" * 1000) == f"'{'x' * 60}...'"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("stauts", "status"),
        ("stast", "stats"),
        ("stat", "stats"),
        ("satus", "status"),
        ("STATS", "stats"),
        ("reload-fliter", "reload-filter"),
        ("zzz", None),
    ],
)
def test_the_nearest_word_is_that_of_the_fewest_slips_of_the_fingers(word: str, meant: str | None) -> None:
    assert values.find_near(word, ["stats", "status", "reload", "reload-filter", "tail"]) == meant


@pytest.mark.parametrize(
    ("word", "other", "edits"),
    [("", "", 0), ("", "ab", 2), ("ab", "ba", 1), ("ca", "abc", 3), ("abc", "abd", 1)],
)
def test_edits_are_counted_with_neighbours_that_change_places(word: str, other: str, edits: int) -> None:
    assert values.count_edits(word, other) == values.count_edits(other, word) == edits
