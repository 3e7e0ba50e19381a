"""Events -> the texts of all sinks in one pass, in the reader's thread, while the events are in the cache.

For each set of forms a function is generated, as for rules: a loop in which the words that sinks share are
made once, and one f-string for each form. An encoder in the thread of each of four sinks took 11.1 us for an
event, of which JSON took 2.4; this takes 2.6, and 1.5. With NAT, counters and times it was 22 us, and is 8.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from conntrackd.cache import Cache
from conntrackd.flow import Batch, Flow, Location, Lost, Piece, find_nat
from conntrackd.generated import define
from conntrackd.sinks.encode import (
    NAT_NAMES,
    Form,
    Words,
    open_fields,
    render_duration,
    render_locations,
    render_loss,
    render_number,
    render_protocol,
    render_reason,
    render_state,
    render_type,
)
from conntrackd.sinks.formcode import Lines, Loop, write_loop

# Every reload makes new forms, and every sink that goes out or comes back another set of them.
MAX_SETS: Final = 32
# So that a scan of the whole Internet cannot eat the memory.
MAX_HEADS: Final = 4096
MAX_LOCATIONS: Final = 16_384

Streams = dict[int, tuple[int, str]]
"""The text of a form that keeps streams apart: type << 8 | protocol -> how many entries, and the entries."""


class Composer:
    """Batches -> Pieces. Belongs to one thread: its caches have no lock."""

    def __init__(self) -> None:
        self._words = Words()
        self._loops = Cache(self._compile, MAX_SETS)

    def compose(self, forms: tuple[Form, ...], flows: Sequence[Flow]) -> list[Piece]:
        """For each form in its place a piece with all events, in their order: text, or Streams."""
        lines = self._loops[forms](flows)
        time, count = flows[0].time, len(flows)
        return [Piece(time, count, _join(each)) for each in lines]

    def compose_each(self, form: Form, batch: Batch) -> list[Any]:
        """The texts of pieces as they are, of all other records as they are made now, in their order."""
        texts: list[Any] = []
        flows: list[Flow] = []
        for record in [*batch, None]:
            if isinstance(record, Flow):
                flows.append(record)
                continue
            if flows:
                texts.append(self.compose((form,), flows)[0].text)
                flows = []
            if record is not None:
                texts.append(record.text if isinstance(record, Piece) else self._compose_loss(form, record))
        return texts

    def _compose_loss(self, form: Form, lost: Lost) -> str | Streams:
        text = render_loss(form, lost, self._words)
        return {0: (1, text)} if form.by_stream else text

    def _compile(self, forms: tuple[Form, ...]) -> Loop:
        source, tables = write_loop(forms), _Tables(forms)
        return define(
            source.text,
            "compose",
            {
                "known": Cache(partial(tables.make_head, source.heads), MAX_HEADS),
                "plain": Cache(partial(tables.make_head, source.plain_heads), MAX_HEADS),
                "apart": Cache(tables.make_apart, MAX_HEADS),
                "find_places": tables.find_places,
                "addresses": self._words.addresses,
                "seconds": self._words.seconds,
                "render_number": render_number,
                "render_time": self._words.render_time,
                "render_duration": render_duration,
                "defaultdict": defaultdict,
                "find_nat": find_nat,
                "NAT_NAMES": NAT_NAMES,
            },
        )


class _Tables:
    """What the loop over events looks up in each of its forms. See formcode.Source."""

    def __init__(self, forms: Sequence[Form]) -> None:
        self._syntaxes = [form.syntax for form in forms]
        self._places: dict[tuple[int, int], tuple[Location | None, Location | None, list[str]]] = {}

    def make_head(self, heads: Sequence[str], key: tuple[int, int, int, int]) -> tuple[str | int, ...]:
        """Type, protocol, state and reason -> the message's start, the stream, and these heads."""
        event, number, state, reason = key
        type_name, protocol = render_type(event), render_protocol(number)
        words = {"type_name": type_name}
        for n, syntax in enumerate(self._syntaxes):
            words[f"before{n}"], words[f"between{n}"] = open_fields(syntax, type_name, protocol)
            words[f"end{n}"] = render_state(syntax, state) + render_reason(syntax, reason)
        start = f"{type_name} {protocol} connection from "
        return (start, event << 8 | number, *[head.format_map(words) for head in heads])

    def make_apart(self, key: tuple[int, int]) -> tuple[str, ...]:
        """State and reason -> the state in each form, then the reason in each."""
        state, reason = key
        states = [render_state(syntax, state) for syntax in self._syntaxes]
        return (*states, *[render_reason(syntax, reason) for syntax in self._syntaxes])

    def find_places(self, there: Location | None, here: Location | None) -> list[str]:
        """Cached by identity: GeoIP shares its Locations. Entries keep them, and their ids, alive."""
        key = (id(there), id(here))
        entry = self._places.get(key)
        if entry is None:
            if len(self._places) >= MAX_LOCATIONS:
                self._places.clear()
            entry = (there, here, [render_locations(syntax, there, here) for syntax in self._syntaxes])
            self._places[key] = entry
        return entry[2]


def _join(lines: Lines) -> str | Streams:
    if isinstance(lines, dict):
        return {stream: (len(entries), ",".join(entries)) for stream, entries in lines.items()}
    return "".join(lines)
