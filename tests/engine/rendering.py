"""Flows -> Rendered by an engine, as the daemon does it: from messages, located by databases."""

from collections.abc import Mapping, Sequence

from conntrackd.engine import Engine
from conntrackd.flow import Flow, Location
from conntrackd.render.rendered import Rendered
from conntrackd.render.template import Template
from tests.engine.feed import RECEIVED_NS
from tests.messages import build_message


class Databases:
    """What a test says of addresses."""

    generation = 0
    cache = 1000

    def __init__(self, known: Mapping[bytes, Location | None]) -> None:
        self.known = dict(known)
        self.asked: list[bytes] = []

    def look_up(self, address: bytes) -> Location | None:
        self.asked.append(address)
        return self.known.get(address)


def render(
    engine: Engine, template: Template, flows: Sequence[Flow], community_seed: int | None = None
) -> Rendered:
    """All of them as one batch. Their Locations are those of the first flow that has an address."""
    batch = engine.open_batch()
    messages = b"".join(map(build_message, flows))
    assert batch.load(messages, 0, RECEIVED_NS) == (len(messages), len(flows), 0)
    known: dict[bytes, Location | None] = {}
    for flow in flows:
        known.setdefault(flow.src, flow.src_location)
        known.setdefault(flow.dst, flow.dst_location)
    locations = engine.open_locations(Databases(known), 1000)
    locations.locate(batch, None)
    kept = engine.decide(batch, engine.compile_table(()), None, locations)
    for number, flow in enumerate(flows):  # which the kernel never sends
        batch.set_type(kept[2 * number : 2 * number + 2], flow.type)
    return engine.render(batch, engine.compile_template(template, community_seed), kept, locations)
