"""Times as people type them."""

from datetime import UTC, datetime

import pytest

from conntrackd.errors import UsageError
from conntrackd.history.times import FORMS, Span, parse_span, parse_time

ZONE = "CET-1CEST,M3.5.0,M10.5.0/3"  # of Berlin
NANO = 10**9
# 12:26:40 UTC, 13:26:40 in Berlin, a Thursday.
NOW = int(datetime(2026, 11, 26, 12, 26, 40, tzinfo=UTC).timestamp()) * NANO + 5


def render(nanoseconds: int) -> str:
    """In UTC."""
    seconds, rest = divmod(nanoseconds, NANO)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" + (f".{rest:09}" if rest else "")


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("now", "2026-11-26 12:26:40.000000005"),
        ("-1h", "2026-11-26 11:26:40.000000005"),
        ("1h", "2026-11-26 11:26:40.000000005"),
        ("1h ago", "2026-11-26 11:26:40.000000005"),
        ("-1h 30min", "2026-11-26 10:56:40.000000005"),
        ("2 days ago", "2026-11-24 12:26:40.000000005"),
        ("+10s", "2026-11-26 12:26:50.000000005"),
        ("-30000d", "1970-01-01 00:00:00"),
        ("today", "2026-11-25 23:00:00"),
        ("Yesterday  14:00", "2026-11-25 13:00:00"),
        ("yesterday 14:00 UTC", "2026-11-25 14:00:00"),
        ("tomorrow", "2026-11-26 23:00:00"),
        ("14:00", "2026-11-26 13:00:00"),
        ("14:00:05.25", "2026-11-26 13:00:05.250000000"),
        ("3:00", "2026-11-26 02:00:00"),
        ("yesterday 9:05:07", "2026-11-25 08:05:07"),
        ("2026-11-27", "2026-11-26 23:00:00"),
        ("2026-11-27 14:00", "2026-11-27 13:00:00"),
        ("2026-11-27 14:00:05", "2026-11-27 13:00:05"),
        ("2026-11-27T14:00:05Z", "2026-11-27 14:00:05"),
        ("2026-11-27T14:00:05.123456789+01:00", "2026-11-27 13:00:05.123456789"),
        ("2026-11-27 14:00:05 -0530", "2026-11-27 19:30:05"),
        ("2026-07-01 14:00", "2026-07-01 12:00:00"),  # summer time
        ("@1764252005.5", "2025-11-27 14:00:05.500000000"),
    ],
)
def test_a_time_is_local_unless_it_says_otherwise(text: str, utc: str) -> None:
    assert render(parse_time(text, NOW, "--since")) == utc


@pytest.mark.parametrize(
    "text",
    ["", "-", "soon", "1x", "h", "25:00", "14:60", "2026-02-30", "2026-11-2714:00", "yesterday14:00",
     "9999-12-31", "0001-01-01", "UTC", "2026-11-27 14:00 MEZ", "@", "+99999999w", "-999999999w", "\x1b[31m",
     "\u0661\u0664:00", "2026-11-273:00"],
)  # fmt: skip
def test_what_is_no_time_is_refused_with_the_forms_that_there_are(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_time(text, NOW, "--until")

    assert caught.value.message.startswith("--until: ")
    assert caught.value.message.isprintable()
    assert caught.value.hint == FORMS


def test_every_form_that_the_hint_names_is_one() -> None:
    named = FORMS.removeprefix("such as ").partition("; ")[0].replace(" or ", ", ").split(", ")

    assert len(named) == 9
    assert all(parse_time(text, NOW, "--since") > 0 for text in named)


def test_both_ends_belong_to_a_span() -> None:
    span = parse_span("@1", "@2", NOW)

    assert [time for time in (NANO - 1, NANO, 2 * NANO, 2 * NANO + 1) if span.holds(time)] == [NANO, 2 * NANO]
    assert Span().holds(0)
    with pytest.raises(UsageError, match="--since is later than --until"):
        parse_span("now", "-1h", NOW)
