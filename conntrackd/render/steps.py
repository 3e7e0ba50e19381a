"""Template -> the steps that the core's render.c takes for each event: integers, constants and names."""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from conntrackd.core import _core as core
from conntrackd.flow import Location
from conntrackd.render.fields import (
    FIELDS,
    IS_TEXT,
    NETWORK,
    PLACE,
    PROTOCOL_NAMES,
    TYPE_NAMES,
    Kind,
    OutputField,
    list_place_values,
)
from conntrackd.render.template import Syntax, Template

WORD: Final = re.compile(r"\$([a-z]+)")
MARK: Final = "VALUE"
# struct step and struct slice of core/render.h
STEP: Final = struct.Struct("=IIQQII")
SLICE: Final = struct.Struct("=II")
assert STEP.size == core.STEP_BYTES, "core/render.h and this file are of two versions"


class StepKind(IntEnum):
    """enum step_kind of core/render.h."""

    TEXT = 0
    NUMBER = 1
    NAME = 2
    ADDRESS = 3
    ENDPOINT = 4
    TIME = 5
    DURATION = 6
    PLACE = 7
    OWN_TEXT = 8
    LABELS = 9
    UNLESS = 10


class TimeStyle(IntEnum):
    """enum time_style of core/text.h."""

    NANOS = 0
    MICROS = 1
    BSD = 2


STEP_KINDS: Final = {
    Kind.NUMBER: StepKind.NUMBER,
    Kind.NAME: StepKind.NAME,
    Kind.ADDRESS: StepKind.ADDRESS,
    Kind.TIME: StepKind.TIME,
    Kind.DURATION: StepKind.DURATION,
    Kind.OWN_TEXT: StepKind.OWN_TEXT,
    Kind.LABELS: StepKind.LABELS,
}
TIMES: Final = {"time": TimeStyle.NANOS, "micros": TimeStyle.MICROS, "bsd": TimeStyle.BSD}
FIELD_NUMBERS: Final = {name: number for number, name in enumerate(core.FIELDS)}
# Texts of a Location, by their number: of what, and for which end.
PLACES: Final = ((PLACE, "dst"), (PLACE, "src"), (NETWORK, "dst"), (NETWORK, "src"))


@dataclass(slots=True)
class Steps:
    """A list of steps while it is written, with the names and bytes that they refer to."""

    steps: list[bytes] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    pool: bytearray = field(default_factory=bytearray)
    _tables: dict[tuple[tuple[int, str], ...], tuple[int, int]] = field(default_factory=dict)

    def add(
        self, kind: StepKind, name: str = "type", *, mask: int = 0, want: int = 0, offset: int = 0, length: int = 0
    ) -> None:
        """One step; `name` is the field's."""
        self.steps.append(STEP.pack(kind, FIELD_NUMBERS[name], mask, want, offset, length))

    def add_text(self, text: str) -> None:
        """A constant."""
        if text:
            self.add(StepKind.TEXT, offset=len(self.pool), length=len(text.encode()))
            self.pool += text.encode()

    def add_name(self, kind: StepKind, name: str, names: Mapping[int, str]) -> None:
        """A number by its name. A table of names is kept once."""
        key = tuple(names.items())
        if key not in self._tables:
            self._tables[key] = (len(self.names), max(names, default=-1) + 1)
            for number in range(self._tables[key][1]):
                text = names.get(number, "").encode()
                self.names.append(SLICE.pack(len(self.pool), len(text)))
                self.pool += text
        offset, length = self._tables[key]
        self.add(kind, name, offset=offset, length=length)

    def add_where(self, bits: int, steps: "Steps") -> None:
        """Steps for events that have all these bits. They share this list's names and pool."""
        if bits:
            self.add(StepKind.UNLESS, mask=bits, want=bits, length=len(steps.steps))
        self.steps += steps.steps

    def branch(self) -> "Steps":
        """An empty list with the same names and pool."""
        return Steps([], self.names, self.pool, self._tables)


def compile_template(template: Template, label_names: Mapping[int, str]) -> "core.Template":
    """What the core renders."""
    steps = Steps()
    for position, text in enumerate(WORD.split(template.text)):
        if position % 2 == 0:
            steps.add_text(text)
        else:
            _add_word(steps, template, text, label_names)
    return core.Template(
        b"".join(steps.steps), b"".join(steps.names), bytes(steps.pool), template.by_stream
    )


def _add_word(steps: Steps, template: Template, word: str, label_names: Mapping[int, str]) -> None:
    match word:
        case "fields":
            for output in FIELDS:
                _add_field(steps, template.syntax, output, label_names)
            for number, (_, end) in enumerate(PLACES):
                steps.add(StepKind.PLACE, f"{end}_location", offset=number)
        case "message":
            _add_message(steps)
        case "type":
            steps.add_name(StepKind.NAME, "type", TYPE_NAMES)
        case "time" | "micros" | "bsd":
            steps.add(StepKind.TIME, "time", length=TIMES[word])
        case "moment":
            steps.add(StepKind.NUMBER, "moment")
        case _:
            steps.add_text(template.event[word])


def _add_message(steps: Steps) -> None:
    """`NEW TCP connection from 10.0.0.1:1024 to 10.0.0.2:80`."""
    steps.add_name(StepKind.NAME, "type", TYPE_NAMES)
    steps.add_text(" ")
    steps.add_name(StepKind.NAME, "protocol", PROTOCOL_NAMES)
    for text, address, port in ((" connection from ", "src", "sport"), (" to ", "dst", "dport")):
        steps.add_text(text)
        steps.add(StepKind.ENDPOINT, address, want=core.HAS[port], offset=FIELD_NUMBERS[port])


def _add_field(steps: Steps, syntax: Syntax, output: OutputField, label_names: Mapping[int, str]) -> None:
    opening, closing = split_syntax(syntax, output.name, is_text=output.kind in IS_TEXT)
    if not opening:
        return
    branch = steps.branch()
    branch.add_text(opening)
    kind = STEP_KINDS[output.kind]
    if output.kind in (Kind.NAME, Kind.LABELS):
        names = label_names if output.kind is Kind.LABELS else output.names
        branch.add_name(kind, output.attribute, names)
    else:
        branch.add(kind, output.attribute)
    branch.add_text(closing)
    bits = core.HAS[output.attribute]
    for name in output.needs:
        bits |= core.HAS[name]
    steps.add_where(bits, branch)


def split_syntax(syntax: Syntax, name: str, *, is_text: bool) -> tuple[str, str]:
    """What stands before and behind a field's value; nothing where the syntax leaves the field out."""
    text = syntax.text(name, MARK) if is_text else f"{syntax.open_number(name)}{MARK}{syntax.close_number}"
    opening, _, closing = text.partition(MARK)
    return opening, closing


def render_places(syntax: Syntax, location: Location) -> Iterator[bytes]:
    """A Location's texts in the order of PLACES."""
    for fields, end in PLACES:
        values = list_place_values(fields, location, "src_" if end == "src" else "")
        yield "".join([render_value(syntax, name, value) for name, value in values]).encode()


def render_value(syntax: Syntax, name: str, value: str | float) -> str:
    """One field of a Location."""
    return syntax.text(name, value) if isinstance(value, str) else syntax.number(name, value)
