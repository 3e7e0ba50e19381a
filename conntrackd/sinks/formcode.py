"""Forms -> the Python source of one loop over events, in which each form is one f-string.

An f-string costs by its parts. So what changes only with the time, or with type, protocol, state and reason,
is put together with the constants around it once for each of these, and stands in the f-string as one part.
Text of other people's (a host's name) is quoted by repr() and can be nothing but text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from conntrackd.flow import Flow
from conntrackd.sinks.encode import PORTS, SECTIONS, Field, Form, Syntax


class Change(Enum):
    """What a part of a text changes with."""

    NOTHING = 0
    TIME = 1
    HEAD = 2
    """Type, protocol, state or reason."""
    EVENT = 3


class Part(NamedTuple):
    """Some of an f-string."""

    change: Change
    source: str


WORD: Final = re.compile(r"\$([a-z]+)")
# Words of a template -> what the loop has for them; `fields` are many parts.
WORDS: Final = {
    "message": Part(Change.EVENT, "{message}"),
    "type": Part(Change.HEAD, "{type_name}"),
    "time": Part(Change.TIME, "{before}{when[-9:]}{after}"),
    "micros": Part(Change.TIME, "{before}{when[-9:-3]}{after}"),
    "bsd": Part(Change.TIME, "{bsd}"),
    "moment": Part(Change.EVENT, "{moment}"),
}
# Without nf_conntrack_timestamp all events of a batch have the time at which they were read.
LOOP: Final = """\
def compose(flows):
    last = -1
    {lines}
    for flow in flows:
        if flow.time != last:
            last = moment = flow.time
            when = render_number(last)
            before, after, bsd = seconds[when[:-9]]
            {times}
        else:
            moment += 1
        src, dst, sport, dport = flow.src, flow.dst, flow.sport, flow.dport
        is_nat = (
            flow.reply_src != dst
            or flow.reply_dst != src
            or flow.reply_sport != dport
            or flow.reply_dport != sport
        )
        has_more = (
            is_nat
            or flow.mark
            or flow.zone
            or flow.orig_packets >= 0
            or flow.start
            or flow.icmp_type >= 0
            or flow.dst_location is not None
            or flow.src_location is not None
        )
        if has_more:
            {ends}, {reasons} = apart[flow.state, flow.reason]
            {sections}
            {add_reasons}
            if flow.dst_location is not None or flow.src_location is not None:
                {places} = find_places(flow.dst_location, flow.src_location)
                {add_places}
        here, there = addresses[src], addresses[dst]
        flow_id = str(flow.id)
        if sport < 0:
            start, stream, {plain_heads} = plain[flow.type, flow.protocol, flow.state, flow.reason]
            if has_more:
                {plain_ends}
            message = f'{{start}}{{here}} to {{there}}'
            {plain_appends}
            continue
        start, stream, {heads} = known[flow.type, flow.protocol, flow.state, flow.reason]
        if has_more:
            {new_ends}
        here_port, there_port = str(sport), str(dport)
        if len(src) == 4:
            message = f'{{start}}{{here}}:{{here_port}} to {{there}}:{{there_port}}'
        else:
            message = f'{{start}}[{{here}}]:{{here_port}} to [{{there}}]:{{there_port}}'
        {appends}
    return {results}
"""
Lines = list[str] | dict[int, list[str]]
"""The text of each event; for a form that keeps them apart, by stream."""
Loop = Callable[[Sequence[Flow]], tuple[Lines, ...]]


class Source(NamedTuple):
    """The text of a module with compose(flows), which gives Lines for each form.

    It has to know, by these names: `known`, `plain` (type, protocol, state, reason -> the message's start,
    the stream, and the heads of events with and without ports), `apart` (state, reason -> these fields in
    each form), find_places(), and what encode.SECTIONS uses. A head is a format: of `type_name`, and for each
    form by its number of `before` (the flow), `between` (it and the addresses) and `end` (state and reason).
    """

    text: str
    heads: list[str]
    plain_heads: list[str]


def write_loop(forms: Sequence[Form]) -> Source:
    """One loop for all of them."""

    def each(template: str, separator: str = ", ") -> str:
        return separator.join(template.format(n) for n in range(len(forms)))

    texts = [_Text(n, "", form, PORTS) for n, form in enumerate(forms)]
    plain = [_Text(n, "plain", form, ()) for n, form in enumerate(forms)]
    text = LOOP.format(
        lines=_indent(1, (f"lines{n} = {_begin(form)}" for n, form in enumerate(forms))),
        times=_indent(3, (line for text in (*texts, *plain) for line in text.times)),
        ends=each("end{}"),
        reasons=each("reason{}"),
        sections=_indent(3, _write_sections(forms)),
        add_reasons=each("end{0} += reason{0}", "; "),
        places=each("place{},", " "),
        add_places=each("end{0} += place{0}", "; "),
        plain_heads=", ".join(name for text in plain for name in text.heads),
        plain_ends=_indent(4, (text.end for text in plain)),
        plain_appends=_indent(3, (text.append for text in plain)),
        heads=", ".join(name for text in texts for name in text.heads),
        new_ends=_indent(3, (text.end for text in texts)),
        appends=_indent(2, (text.append for text in texts)),
        results=each("lines{},", " "),
    )
    return Source(text, _list_heads(texts), _list_heads(plain))


def _list_heads(texts: Sequence["_Text"]) -> list[str]:
    return [source for text in texts for source in text.heads.values()]


class _Text:
    """One form's text of an event with these ports."""

    def __init__(self, number: int, prefix: str, form: Form, ports: tuple[Field, ...]) -> None:
        self.times: list[str] = []
        """Statements that make the parts that change with the time."""
        self.heads: dict[str, str] = {}
        """Names of the parts that change with the head -> their formats."""
        self.end = ""
        """The statement that makes the part with the last fields anew."""
        text = ""
        for position, (change, source) in enumerate(_merge(_list_parts(number, form, ports))):
            name = f"{prefix}{change.name.lower()}{number}_{position}"
            if change is Change.TIME:
                self.times.append(f"{name} = f{source!r}")
            elif change is Change.HEAD:
                self.heads[name] = source
                if f"{{end{number}}}" in source:
                    self.end = f"{name} = f{source!r}"
            text += source if change in (Change.EVENT, Change.NOTHING) else f"{{{name}}}"
        target = f"lines{number}[stream]" if form.by_stream else f"lines{number}"
        self.append = f"{target}.append(f{text!r})"


def _merge(parts: Iterable[Part]) -> list[Part]:
    """Constants joined with what stands beside them, unless that changes with each event."""
    merged: list[Part] = []
    for part in parts:
        changes = {part.change, merged[-1].change if merged else Change.EVENT} - {Change.NOTHING}
        if Change.EVENT in changes or len(changes) > 1:
            merged.append(part)
        else:
            merged[-1] = Part(changes.pop() if changes else Change.NOTHING, merged[-1].source + part.source)
    return merged


def _list_parts(number: int, form: Form, ports: tuple[Field, ...]) -> list[Part]:
    parts = []
    for position, text in enumerate(WORD.split(form.template)):
        if position % 2 == 0:
            parts.append(Part(Change.NOTHING, _quote(text)))
        elif text == "fields":
            parts += _list_fields(number, form.syntax, ports)
        else:
            parts.append(WORDS.get(text) or Part(Change.NOTHING, _quote(form.event[text])))
    return [part for part in parts if part.source]


def _list_fields(number: int, syntax: Syntax, ports: tuple[Field, ...]) -> list[Part]:
    return [
        Part(Change.HEAD, f"{{before{number}}}"),
        Part(Change.EVENT, "{flow_id}"),
        Part(Change.HEAD, f"{{between{number}}}"),
        Part(Change.EVENT, "{here}"),
        Part(Change.NOTHING, _quote(syntax.close_text)),
        *[
            part
            for field in (Field("dst", "there", is_text=True), *ports)
            for part in _list_field(syntax, field)
        ],
        Part(Change.HEAD, f"{{end{number}}}"),
    ]


def _list_field(syntax: Syntax, field: Field) -> list[Part]:
    opening, closing = (
        (syntax.open_text, syntax.close_text) if field.is_text else (syntax.open_number, syntax.close_number)
    )
    return [
        Part(Change.NOTHING, _quote(opening(field.name))),
        Part(Change.EVENT, f"{{{field.word}}}"),
        Part(Change.NOTHING, _quote(closing)),
    ]


def _write_sections(forms: Sequence[Form]) -> list[str]:
    lines = []
    for section in SECTIONS:
        lines.append(f"if {section.condition}:")
        lines += [f"    {section.words}"] if section.words else []
        for n, form in enumerate(forms):
            parts = [part for field in section.fields for part in _list_field(form.syntax, field)]
            lines.append(f"    end{n} += f{''.join(part.source for part in parts)!r}")
    return lines


def _indent(depth: int, lines: Iterable[str]) -> str:
    return ("\n" + " " * 4 * depth).join(lines)


def _begin(form: Form) -> str:
    return "defaultdict(list)" if form.by_stream else "[]"


def _quote(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
