"""Template -> the steps that the core's render.c takes for each event: integers, constants and names."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from conntrackd.core import _core as core
from conntrackd.flow import Location
from conntrackd.render.fields import IS_TEXT, NETWORK, PLACE, PROTOCOL_NAMES, TYPE_NAMES, Kind, OutputField
from conntrackd.render.template import WORD, Syntax, Template

MARK: Final = "VALUE"
# struct step and struct slice of core/render.h
STEP: Final = struct.Struct("=QHHHHIIII")
SLICE: Final = struct.Struct("=II")


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
    AMOUNT = 10
    COMMUNITY_ID = 11


class TimeStyle(IntEnum):
    """enum time_style of core/text.h."""

    NANOS = 0
    MICROS = 1
    BSD = 2


class DurationStyle(IntEnum):
    """enum duration_style of core/render.h."""

    SECONDS = 0
    SHORT = 1
    NANOSECONDS = 2


STEP_KINDS: Final = {
    Kind.NUMBER: StepKind.NUMBER,
    Kind.NAME: StepKind.NAME,
    Kind.ADDRESS: StepKind.ADDRESS,
    Kind.TIME: StepKind.TIME,
    Kind.DURATION: StepKind.DURATION,
    Kind.OWN_TEXT: StepKind.OWN_TEXT,
    Kind.LABELS: StepKind.LABELS,
    Kind.NANOSECONDS: StepKind.DURATION,
    Kind.LIST: StepKind.NAME,
    Kind.TRUTH: StepKind.NAME,
}
PACKETS, SIZE = 0, 1  # styles of an amount
# What stands before each amount in a message.
AMOUNTS: Final = (
    (", sent ", "orig_bytes", SIZE),
    (" in ", "orig_packets", PACKETS),
    (", received ", "reply_bytes", SIZE),
    (" in ", "reply_packets", PACKETS),
)
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
    _before: bytes = b""

    def add_text(self, text: str) -> None:
        """A constant for each event: it goes with the next step."""
        self._before += text.encode()

    def add(
        self,
        kind: StepKind,
        name: str = "type",
        *,
        needs: int = 0,
        around: tuple[str, str] = ("", ""),
        table: tuple[int, int] = (0, 0),
    ) -> None:
        """One step: a field by its name, with constants around, for events that have the bits `needs`."""
        before, after = around[0].encode(), around[1].encode()
        if self._before and needs:
            self.flush()
        before, self._before = self._before + before, b""
        self.steps.append(
            STEP.pack(needs, kind, FIELD_NUMBERS[name], len(before), len(after), len(self.pool), *table, 0)
        )
        self.pool += before + after

    def flush(self) -> None:
        """What has been added as text is a step of its own."""
        if self._before:
            self.add(StepKind.TEXT)

    def keep_names(self, names: Mapping[int, str]) -> tuple[int, int]:
        """Where the names by number are, and how many. The same names are kept once."""
        key = tuple(names.items())
        if key not in self._tables:
            self._tables[key] = (len(self.names), max(names, default=-1) + 1)
            for number in range(self._tables[key][1]):
                text = names.get(number, "").encode()
                self.names.append(SLICE.pack(len(self.pool), len(text)))
                self.pool += text
        return self._tables[key]


def compile_template(
    template: Template, label_names: Mapping[int, str], community_seed: int | None = None
) -> "core.Template":
    """What the core renders."""
    return core.Template(*write_steps(template, label_names, community_seed), template.by_stream)


def write_steps(
    template: Template, label_names: Mapping[int, str], community_seed: int | None = None
) -> tuple[bytes, bytes, bytes]:
    """Steps, names, and the pool of both, as the core has them. Without a seed there is no Community ID."""
    steps = Steps()
    for position, text in enumerate(WORD.split(template.text)):
        if position % 2 == 0:
            steps.add_text(text)
        else:
            _add_word(steps, template, text, label_names, community_seed)
    steps.flush()
    return b"".join(steps.steps), b"".join(steps.names), bytes(steps.pool)


def _add_word(
    steps: Steps, template: Template, word: str, label_names: Mapping[int, str], community_seed: int | None
) -> None:
    match word:
        case "fields":
            is_first = template.is_bare
            for output in template.list_outputs():
                if output.kind is not Kind.COMMUNITY_ID:
                    was_written = _add_field(steps, template.syntax, output, label_names, is_first=is_first)
                    is_first = is_first and not was_written
                elif community_seed is not None:
                    around = split_syntax(template.syntax, output.name, is_text=True)
                    steps.add(StepKind.COMMUNITY_ID, around=around, table=(community_seed, 0))
            for number, (_, end) in enumerate(PLACES):
                name = f"{end}_location"
                steps.add(StepKind.PLACE, name, needs=core.HAS[name], table=(number, 0))
        case "message":
            _add_message(steps)
        case "type":
            steps.add(StepKind.NAME, "type", table=steps.keep_names(TYPE_NAMES))
        case "time" | "micros" | "bsd":
            steps.add(StepKind.TIME, "time", table=(0, TIMES[word]))
        case "moment":
            steps.add(StepKind.NUMBER, "moment")
        case _:
            steps.add_text(template.event[word])


def _add_message(steps: Steps) -> None:
    """`NEW TCP connection from 10.0.0.1:1024 to 10.0.0.2:80`, and behind that what a flow comes to."""
    steps.add(StepKind.NAME, "type", table=steps.keep_names(TYPE_NAMES))
    steps.add_text(" ")
    steps.add(StepKind.NAME, "protocol", table=steps.keep_names(PROTOCOL_NAMES))
    for text, address, port in ((" connection from ", "src", "sport"), (" to ", "dst", "dport")):
        steps.add_text(text)
        steps.add(StepKind.ENDPOINT, address, table=(FIELD_NUMBERS[port], 0))
    for text, name, style in AMOUNTS:
        needs = core.HAS["whole"] | core.HAS[name]
        steps.add(StepKind.AMOUNT, name, needs=needs, around=(text, ""), table=(0, style))
    needs = core.HAS["whole"] | core.HAS["duration"]
    steps.add(
        StepKind.DURATION, "duration", needs=needs, around=(", lasted ", " s"), table=(0, DurationStyle.SHORT)
    )


def _add_field(
    steps: Steps, syntax: Syntax, output: OutputField, label_names: Mapping[int, str], *, is_first: bool
) -> bool:
    """Whether the form has it at all. The first one may stand without what separates it from others."""
    opening, closing = around = split_syntax(syntax, output.name, is_text=output.kind in IS_TEXT)
    if around == ("", ""):
        return False
    if is_first:
        around = (opening[1:], closing)
    table = (0, 0)
    if output.kind in (Kind.NAME, Kind.LABELS, Kind.TRUTH):
        table = steps.keep_names(label_names if output.kind is Kind.LABELS else output.names)
    elif output.kind is Kind.LIST:
        table = steps.keep_names({key: syntax.write_list(name) for key, name in output.names.items()})
    elif output.kind is Kind.NANOSECONDS:
        table = (0, DurationStyle.NANOSECONDS)
    needs = core.HAS[output.attribute]
    for name in output.needs:
        needs |= core.HAS[name]
    steps.add(STEP_KINDS[output.kind], output.attribute, needs=needs, around=around, table=table)
    return True


def split_syntax(syntax: Syntax, name: str, *, is_text: bool) -> tuple[str, str]:
    """What stands before and behind a field's value; nothing where the syntax leaves the field out."""
    text = syntax.text(name, MARK) if is_text else f"{syntax.open_number(name)}{MARK}{syntax.close_number}"
    opening, _, closing = text.partition(MARK)
    return opening, closing


def render_location(template: Template, location: Location) -> Iterator[bytes]:
    """A Location's texts in the order of PLACES."""
    for fields, end in PLACES:
        yield template.render_places(fields, location, "src_" if end == "src" else "").encode()
