"""Template: how a sink writes a record, and the plain rendering of a loss. No I/O."""

import json
import string
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from conntrackd.flow import NANO, Lost
from conntrackd.render.rendered import HELD, Rendered, Stream

UNSURE: Final = frozenset({"tracking", "daemon"})
PLACES: Final = {"kernel": "the kernel's buffer", "tracking": "the kernel", "daemon": "the daemon"}
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Syntax(NamedTuple):
    """What stands around a field's value; an opening is made of the field's name."""

    open_text: Callable[[str], str]
    close_text: str
    open_number: Callable[[str], str]
    close_number: str
    escape: Callable[[str], str]

    def text(self, name: str, value: str) -> str:
        """One field whose value is text."""
        return f"{self.open_text(name)}{self.escape(value)}{self.close_text}"

    def number(self, name: str, value: float) -> str:
        """One field whose value is a number."""
        return f"{self.open_number(name)}{value}{self.close_number}"


def make_visible(value: str) -> str:
    """Text that ends no line and that no terminal obeys; what is printable is as it was."""
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)


def escape_json(value: str) -> str:
    """Text -> what stands between the quotes of a JSON string, in UTF-8, unless a terminal would obey it."""
    return json.dumps(value, ensure_ascii=not value.isprintable())[1:-1]


JSON_SYNTAX: Final = Syntax(',"{}":"'.format, '"', ',"{}":'.format, "", escape_json)


@dataclass(frozen=True, eq=False, slots=True)
class Template:
    """How a sink writes a record: a text with words in it, each behind a `$`.

    Of every record: `$message` (one sentence, without any character that a format would have to escape),
    `$fields` (all others, in the syntax), `$type`, and its time as `$time` (RFC 3339 with nanoseconds and the
    local offset), `$micros` (the same with six digits), `$bsd` (RFC 3164) or `$moment` (nanoseconds since the
    epoch, and no two of a batch with the same message have the same). Further words are the template's own.
    """

    text: str
    syntax: Syntax
    event: Mapping[str, str]
    """The template's own words where the record is an event."""
    loss: Mapping[str, str]
    """And where it is a loss."""
    held: Mapping[str, str] | None = None
    """Where it is what a limit held back, those that are not as of an event."""
    by_stream: bool = False
    """Whether the events of a batch are kept apart by type and protocol."""
    fields: frozenset[str] | None = None
    """Names of those of an event that `$fields` has; None for all. A loss has all of its own."""
    loss_text: str = ""
    """In place of `text` where the record is a loss, and `text` is not for it."""
    is_bare: bool = False
    """Whether the first field of an event stands without the character that separates it from others."""

    def render_loss(self, lost: Lost) -> Rendered:
        """A loss as the sink writes it: one text with one end, and no events."""
        when = render_time(lost.until)
        words = {**self.event, **(self.held or {})} if lost.rule else self.loss
        own = {
            "message": describe_loss(lost),
            "fields": _render_fields(self.syntax, lost),
            "type": lost.type,
            "time": when,
            "micros": when[:26] + when[29:],
            "bsd": render_bsd_time(lost.until),
            "moment": str(lost.until),
        }
        text = string.Template(self.loss_text or self.text).substitute({**words, **own}).encode()
        streams = (Stream(HELD, 0, 1),) if lost.rule and self.by_stream else ()
        return Rendered(text, array("I", (len(text),)).tobytes(), 0, lost.until, streams)


def render_time(nanoseconds: int) -> str:
    """Nanoseconds since the epoch -> RFC 3339 with the local offset."""
    seconds, fraction = divmod(nanoseconds, NANO)
    local = time.localtime(seconds)
    sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
    hours, minutes = divmod(offset // 60, 60)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{fraction:09}{sign}{hours:02d}:{minutes:02d}"


def render_bsd_time(nanoseconds: int) -> str:
    """RFC 3164, 4.1.2: local time without a year, the day in two places."""
    local = time.localtime(nanoseconds // NANO)
    return f"{MONTHS[local.tm_mon - 1]} {local.tm_mday:2} {time.strftime('%H:%M:%S', local)}"


def _render_fields(syntax: Syntax, lost: Lost) -> str:
    text, number = syntax.text, syntax.number
    count = "suppressed" if lost.rule else "lost"
    fields = text("type", lost.type) + (number(count, lost.count) if lost.count >= 0 else "")
    fields += number("rule", lost.rule) if lost.rule else ""
    fields += text("since", render_time(lost.since)) + text("until", render_time(lost.until))
    return fields + text("where", lost.where) + (text("reason", lost.reason) if lost.reason else "")


def describe_loss(lost: Lost) -> str:
    """One sentence."""
    events = "1 event" if lost.count == 1 else f"{lost.count} events"
    if lost.count < 0:  # nobody knows how many
        events = "events"
    if lost.rule:
        return f"SUPPRESSED {events} beyond the limit of rule {lost.rule} of {lost.where}"
    where = PLACES.get(lost.where) or f"sink {lost.where}"
    because = f" ({lost.reason})" if lost.reason else ""
    # Both times are those of a look or a note: some events between them may have been heard.
    window = ": between since and until some may be missing" if lost.where in UNSURE else ""
    return f"LOST {events} in {where}{because}{window}"
