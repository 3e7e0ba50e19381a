"""Forms -> the Python source of one loop over events, in which each form is one f-string.

Text of other people's (a host's name, labels) is quoted by repr() and can be nothing but text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from conntrackd.flow import Flow
from conntrackd.sinks.encode import PORTS, SECTIONS, Field, Form, Syntax

WORD: Final = re.compile(r"\$([a-z]+)")
# Words of a template -> what an f-string of the loop says for them; `fields` is written apart.
EXPRESSIONS: Final = {
    "message": "{message}",
    "type": "{type_name}",
    "time": "{time}",
    "micros": "{micros}",
    "bsd": "{bsd}",
    "moment": "{moment}",
}
# How the loop makes these: anew only where an event has another time than the one before. Without
# nf_conntrack_timestamp all events of a batch have the time at which they were read.
TIMES: Final = {
    "time": "time = f'{before}{when[-9:]}{after}'",
    "micros": "micros = f'{before}{when[-9:-3]}{after}'",
    "moment": "moment = last",
}
LOOP: Final = """\
def compose(flows):
    last = -1
    {lines}
    for flow in flows:
        if flow.time != last:
            last = flow.time
            when = render_number(last)
            before, after, bsd = seconds[when[:-9]]
            {times}
        {next_moment}
        src, dst, sport, dport = flow.src, flow.dst, flow.sport, flow.dport
        start, type_name, stream, {heads} = known[flow.type, flow.protocol, flow.state, flow.reason]
        is_nat = (
            flow.reply_src != dst
            or flow.reply_dst != src
            or flow.reply_sport != dport
            or flow.reply_dport != sport
        )
        if (
            is_nat
            or flow.mark
            or flow.zone
            or flow.orig_packets >= 0
            or flow.start
            or flow.icmp_type >= 0
            or flow.dst_location is not None
            or flow.src_location is not None
        ):
            {ends}, {reasons} = apart[flow.state, flow.reason]
            {sections}
            {add_reasons}
            if flow.dst_location is not None or flow.src_location is not None:
                {places} = find_places(flow.dst_location, flow.src_location)
                {add_places}
        here, there = addresses[src], addresses[dst]
        flow_id = str(flow.id)
        if sport < 0:
            message = f'{{start}}{{here}} to {{there}}'
            {without_ports}
            continue
        here_port, there_port = str(sport), str(dport)
        if len(src) == 4:
            message = f'{{start}}{{here}}:{{here_port}} to {{there}}:{{there_port}}'
        else:
            message = f'{{start}}[{{here}}]:{{here_port}} to [{{there}}]:{{there_port}}'
        {with_ports}
    return {results}
"""


Lines = list[str] | dict[int, list[str]]
"""The text of each event; for a form that keeps them apart, by stream."""
Loop = Callable[[Sequence[Flow]], tuple[Lines, ...]]
"""What write_loop() writes."""


def write_loop(forms: Sequence[Form]) -> str:
    """The source of compose(flows) -> Lines for each form.

    It needs, by these names: `known` (type, protocol, state, reason -> the message's start, the type, the
    stream, and for each form what stands before the flow's number, before the first address, and behind the
    ports), `apart` (state, reason -> the fields of all forms), find_places(), and what encode.SECTIONS uses.
    """

    def each(template: str, separator: str = ", ") -> str:
        return separator.join(template.format(n) for n in range(len(forms)))

    used = {word for form in forms for word in WORD.findall(form.template)}
    return LOOP.format(
        lines=_indent(1, (f"lines{n} = {_begin(form)}" for n, form in enumerate(forms))),
        times=_indent(3, (line for word, line in TIMES.items() if word in used)),
        next_moment="else:\n            moment += 1" if "moment" in used else "",
        heads=each("before{0}, between{0}, end{0}"),
        ends=each("end{}"),
        reasons=each("reason{}"),
        sections=_indent(3, _write_sections(forms)),
        add_reasons=each("end{0} += reason{0}", "; "),
        places=each("place{},", " "),
        add_places=each("end{0} += place{0}", "; "),
        without_ports=_indent(3, _write_appends(forms, ())),
        with_ports=_indent(2, _write_appends(forms, PORTS)),
        results=each("lines{},", " "),
    )


def _indent(depth: int, lines: Iterable[str]) -> str:
    return ("\n" + " " * 4 * depth).join(lines)


def _begin(form: Form) -> str:
    return "defaultdict(list)" if form.by_stream else "[]"


def _write_sections(forms: Sequence[Form]) -> list[str]:
    lines = []
    for section in SECTIONS:
        lines.append(f"if {section.condition}:")
        lines += [f"    {section.words}"] if section.words else []
        for n, form in enumerate(forms):
            fields = "".join(_write_field(form.syntax, field) for field in section.fields)
            lines.append(f"    end{n} += f{fields!r}")
    return lines


def _write_appends(forms: Sequence[Form], ports: tuple[Field, ...]) -> list[str]:
    lines = []
    for n, form in enumerate(forms):
        target = f"lines{n}[stream]" if form.by_stream else f"lines{n}"
        lines.append(f"{target}.append({_write_text(n, form, ports)})")
    return lines


def _write_text(number: int, form: Form, ports: tuple[Field, ...]) -> str:
    """The f-string that is one form's text of an event."""
    text = ""
    for position, part in enumerate(WORD.split(form.template)):
        if position % 2 == 0:
            text += _quote(part)
        elif part == "fields":
            text += _write_fields(number, form.syntax, ports)
        else:
            text += EXPRESSIONS.get(part) or _quote(form.event[part])
    return f"f{text!r}"


def _write_fields(number: int, syntax: Syntax, ports: tuple[Field, ...]) -> str:
    addresses = (
        f"{{here}}{_quote(syntax.close_text)}{_write_field(syntax, Field('dst', 'there', is_text=True))}"
    )
    rest = "".join(_write_field(syntax, field) for field in ports)
    return f"{{before{number}}}{{flow_id}}{{between{number}}}{addresses}{rest}{{end{number}}}"


def _write_field(syntax: Syntax, field: Field) -> str:
    opening, closing = (
        (syntax.open_text, syntax.close_text) if field.is_text else (syntax.open_number, syntax.close_number)
    )
    return f"{_quote(opening(field.name))}{{{field.word}}}{_quote(closing)}"


def _quote(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
