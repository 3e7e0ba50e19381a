"""Template: how a sink writes a record, and the plain rendering of a loss. No I/O."""

import json
import re
import string
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from conntrackd.flow import NANO, Location, Lost
from conntrackd.render.anonymize import Anonymizer
from conntrackd.render.fields import FIELDS, OutputField, list_place_values
from conntrackd.render.rendered import HELD, Rendered, Stream
from conntrackd.render.schema import NATIVE, Schema

WORD: Final = re.compile(r"\$([a-z]+)")
"""In the text of a template; what is between them stays as it is."""
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
    write_list: Callable[[str], str] = str
    """`a,b` as a list; it stands where numbers do."""
    write_point: Callable[[float, float], str] = "{},{}".format
    """Latitude and longitude, which stand there too."""

    def text(self, name: str, value: str) -> str:
        """One field whose value is text."""
        return f"{self.open_text(name)}{self.escape(value)}{self.close_text}"

    def number(self, name: str, value: float | str) -> str:
        """One field whose value is a number, or a list or a point that was written."""
        return f"{self.open_number(name)}{value}{self.close_number}"


def make_visible(value: str) -> str:
    """Text that ends no line and that no terminal obeys; what is printable is as it was."""
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)


def escape_json(value: str) -> str:
    """Text -> what stands between the quotes of a JSON string, in UTF-8, unless a terminal would obey it."""
    return json.dumps(value, ensure_ascii=not value.isprintable())[1:-1]


def _write_json_list(words: str) -> str:
    return json.dumps(words.split(","), separators=(",", ":"))


JSON_SYNTAX: Final = Syntax(
    *(',"{}":"'.format, '"', ',"{}":'.format, "", escape_json, _write_json_list),
    '{{"lat":{},"lon":{}}}'.format,
)


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
    schema: Schema = NATIVE
    """Whose names the fields have; `fields` has our own all the same."""
    anonymizer: Anonymizer | None = None
    """What stands in place of addresses; None where they are written."""

    def anonymize(self, anonymizer: Anonymizer | None) -> "Template":
        """The same with this in place of addresses."""
        return self if anonymizer is None else replace(self, anonymizer=anonymizer)

    def conceal(self, lost: Lost) -> Lost:
        """Without the text of the rule, which may name addresses, where these are not written."""
        return replace(lost, reason="") if lost.rule and self.anonymizer is not None else lost

    def list_outputs(self) -> Iterator[OutputField]:
        """Those of FIELDS that it has, by the names of its schema."""
        for output in FIELDS:
            if self.fields is None or output.name in self.fields:
                yield from self.schema.list_outputs(output)

    def render_places(self, names: Sequence[str], location: Location | None, prefix: str) -> str:
        """What is known of a Location, as far as it is written."""
        known = dict(list_place_values(names, location, prefix))
        chosen = {name: value for name, value in known.items() if self.fields is None or name in self.fields}
        texts, lat, lon = [], f"{prefix}lat", f"{prefix}lon"
        for name, value in chosen.items():
            shown = self.schema.rename_place(name)
            if shown:
                texts.append(self._render_value(shown, value))
            elif name == lon and lat in chosen:  # a point has both
                point = self.syntax.write_point(float(chosen[lat]), float(chosen[lon]))
                texts.append(self.syntax.number(self.schema.rename(name), point))
        return "".join(texts)

    def _render_value(self, name: str, value: str | float) -> str:
        if isinstance(value, str):
            return self.syntax.text(name, value)
        return self.syntax.number(name, value)

    def render_loss(self, lost: Lost) -> Rendered:
        """A loss as the sink writes it: one text with one end, and no events."""
        lost = self.conceal(lost)  # what was spooled for another template, too
        when = render_time(lost.until)
        words = {**self.event, **(self.held or {})} if lost.rule else self.loss
        own = {
            "message": describe_loss(lost),
            "fields": self._render_loss_fields(lost),
            "type": lost.type,
            "time": when,
            "micros": when[:26] + when[29:],
            "bsd": render_bsd_time(lost.until),
            "moment": str(lost.until),
        }
        text = string.Template(self.loss_text or self.text).substitute({**words, **own}).encode()
        streams = (Stream(HELD, 0, 1),) if lost.rule and self.by_stream else ()
        return Rendered(text, array("I", (len(text),)).tobytes(), 0, lost.until, streams)

    def _render_loss_fields(self, lost: Lost) -> str:
        type_text = self.schema.name_type(lost.type)
        return self._render_value(self.schema.rename_loss("type"), type_text) + "".join(
            self._render_value(self.schema.rename_loss(name), value) for name, value in list_loss_values(lost)
        )


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


def list_loss_values(lost: Lost) -> Iterator[tuple[str, str | int]]:
    """By our own names, but for the type."""
    if lost.count >= 0:
        yield "suppressed" if lost.rule else "lost", lost.count
    if lost.rule:
        yield "rule", lost.rule
    yield "since", render_time(lost.since)
    yield "until", render_time(lost.until)
    yield "where", lost.where
    if lost.reason:
        yield "reason", lost.reason


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
