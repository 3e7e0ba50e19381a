"""Points in time as people type them, in the forms that journalctl understands."""

import re
from datetime import UTC, datetime, timedelta, timezone
from datetime import date as date_of
from datetime import time as time_of
from typing import Final, NamedTuple

from conntrackd.errors import UsageError
from conntrackd.flow import NANO
from conntrackd.text import quote
from conntrackd.units import SECOND_UNITS

UNITS: Final = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), SECOND_UNITS["second"]),
    **dict.fromkeys(("m", "min", "minute", "minutes"), SECOND_UNITS["minute"]),
    **dict.fromkeys(("h", "hr", "hour", "hours"), SECOND_UNITS["hour"]),
    **dict.fromkeys(("d", "day", "days"), SECOND_UNITS["day"]),
    **dict.fromkeys(("w", "week", "weeks"), 7 * SECOND_UNITS["day"]),
}
DAYS: Final = {"yesterday": -1, "today": 0, "tomorrow": 1}
PART: Final = re.compile(r"(\d{1,9}) ?([a-z]+) ?")
SPAN: Final = re.compile(rf"([-+]?) ?((?:{PART.pattern})+?)(ago)?")
EPOCH: Final = re.compile(r"@(\d{1,11})(?:\.(\d{1,9}))?")
POINT: Final = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d|yesterday|today|tomorrow)?(?P<gap>[t ](?=\d))?"
    r"(?:(?P<time>\d\d?:\d\d(?::\d\d)?)(?:\.(?P<fraction>\d{1,9}))?)?"
    r" ?(?P<zone>utc|z|[-+]\d\d:?\d\d)?",
    re.ASCII,
)
# Years that the calendar has, with a day on each side for any offset.
EARLIEST, LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
MAX_SECONDS: Final = 100 * 366 * SECOND_UNITS["day"]
FORMS: Final = (
    "such as -1h, 30min ago, now, today, yesterday 14:00, 14:00, 2026-11-27 14:00:05, 2026-11-27T14:00:05Z "
    "or @1764252005; local time, unless UTC or an offset is given"
)


class Span(NamedTuple):
    """From `since` on, and before or at `until`: nanoseconds since the epoch, None for without an end."""

    since: int | None = None
    until: int | None = None

    def holds(self, time: int) -> bool:
        """Whether the time lies in it."""
        return (self.since is None or time >= self.since) and (self.until is None or time <= self.until)


def parse_span(since: str | None, until: str | None, now: int) -> Span:
    """Both ends, as they were typed. Raises UsageError."""
    span = Span(
        None if since is None else parse_time(since, now, "--since"),
        None if until is None else parse_time(until, now, "--until"),
    )
    if span.since is not None and span.until is not None and span.since > span.until:
        raise UsageError("--since is later than --until", hint="nothing can lie between them")
    return span


def parse_time(text: str, now: int, origin: str) -> int:
    """Nanoseconds since the epoch; what is relative counts from `now`. Raises UsageError with `origin`."""
    word = " ".join(text.lower().split())
    try:
        found = _find_time(word, now)
    except (ValueError, OverflowError):  # there is no such day, or it is too far away
        found = None
    if found is None:
        raise UsageError(f"{origin}: {quote(text)} is not a valid time", hint=FORMS)
    return found


def _find_time(word: str, now: int) -> int | None:
    if word == "now":
        return now
    if match := EPOCH.fullmatch(word):
        return int(match[1]) * NANO + _read_fraction(match[2])
    if match := SPAN.fullmatch(word):
        seconds = _add_up(match[2])
        # What has no sign is a time ago, too: nobody asks for events of the future.
        if seconds is None or seconds > MAX_SECONDS:
            return None
        return max(0, now + (seconds if match[1] == "+" else -seconds) * NANO)
    match = POINT.fullmatch(word)
    if match is None or not (match["date"] or match["time"]):
        return None
    if bool(match["gap"]) != bool(match["date"] and match["time"]):
        return None
    return _compute_point(match, now)


def _add_up(text: str) -> int | None:
    """`1h 30min` -> 5400; None where a unit is none."""
    parts = PART.findall(text)
    if any(unit not in UNITS for _, unit in parts):
        return None
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def _compute_point(match: re.Match[str], now: int) -> int:
    zone = _find_zone(match["zone"])
    today = datetime.fromtimestamp(now // NANO, zone)
    date = match["date"] or "today"
    is_word = date in DAYS
    day = (today + timedelta(days=DAYS[date])).date() if is_word else date_of.fromisoformat(date)
    # Without a zone it is local time, of that day: summer's or winter's.
    time = match["time"] or "00:00"
    time = f"0{time}" if time[1] == ":" else time
    point = datetime.combine(day, time_of.fromisoformat(time), zone).astimezone(UTC)
    if not EARLIEST <= point <= LATEST:
        raise OverflowError
    return int(point.timestamp()) * NANO + _read_fraction(match["fraction"])


def _find_zone(text: str | None) -> timezone | None:
    if text is None:
        return None
    if text in {"utc", "z"}:
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)


def _read_fraction(digits: str | None) -> int:
    return int((digits or "0").ljust(9, "0"))
