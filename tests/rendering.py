"""Flows -> Rendered, in plain Python, for the tests of what comes after."""

from array import array
from collections.abc import Sequence
from itertools import accumulate

from conntrackd.flow import Flow, Lost
from conntrackd.render.plain import render_flows
from conntrackd.render.rendered import Rendered, Stream
from conntrackd.render.template import Template


def render(template: Template, flows: Sequence[Flow]) -> Rendered:
    """As the reference engine does it."""
    moments: list[int] = []
    for number, flow in enumerate(flows):
        is_same = number > 0 and flows[number - 1].time == flow.time
        moments.append(moments[-1] + 1 if is_same else flow.time)
    return render_flows(template, flows, moments, {})


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
