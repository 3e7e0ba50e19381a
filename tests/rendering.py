"""Flows -> Rendered, in plain Python, for the tests of what comes after."""

from array import array
from collections.abc import Sequence
from itertools import accumulate

from conntrackd.flow import Flow, Lost
from conntrackd.render.rendered import Rendered, Stream
from conntrackd.render.template import Template
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import Form


def render(template: Template, flows: Sequence[Flow]) -> Rendered:
    """As the engine does it."""
    form = Form(template.syntax, template.text, template.event, template.loss, template.by_stream)  # type: ignore[arg-type]
    lines = Composer()._loops[(form,)](flows)[0]
    if not isinstance(lines, dict):
        return make_rendered([line.encode() for line in lines], flows[0].time)
    streams, moments = [], array("Q")
    for key, entries in lines.items():
        streams.append(Stream(key >> 8, key & 0xFF, len(entries)))
        moments.extend(int(entry[2 : entry.index('"', 2)]) for entry in entries)
    texts = [entry.encode() for entries in lines.values() for entry in entries]
    return make_rendered(texts, flows[0].time, tuple(streams), moments.tobytes())


def make_rendered(
    texts: Sequence[bytes], time: int, streams: tuple[Stream, ...] = (), moments: bytes = b""
) -> Rendered:
    """Each event's text, one behind the other."""
    ends = array("I", accumulate(map(len, texts))).tobytes()
    return Rendered(b"".join(texts), ends, len(texts), time, streams, moments)


def render_all(template: Template, records: Sequence[Flow | Lost]) -> list[Rendered]:
    """Runs of flows together, each loss alone: what a sink would be given, one write after the other."""
    found: list[Rendered] = []
    flows: list[Flow] = []
    for record in (*records, None):
        if isinstance(record, Flow):
            flows.append(record)
            continue
        if flows:
            found.append(render(template, flows))
            flows = []
        if record is not None:
            found.append(template.render_loss(record))
    return found


def list_texts(rendered: Rendered) -> list[bytes]:
    """The text of each event, or of the loss."""
    ends = array("I", rendered.ends)
    return [rendered.text[begin:end] for begin, end in zip((0, *ends), ends, strict=False)]
