"""The sink for a server on loopback, as the tests of it set it up."""

from collections.abc import Sequence
from typing import Any

from conntrackd.delivery.outbox import Outbox
from conntrackd.flow import Flow
from conntrackd.render.loki import TEMPLATE
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.loki import Loki, Settings
from tests.delivery.fakes import put
from tests.rendering import render


def make_settings(port: int = 0, **changes: Any) -> Settings:
    return Settings(**{"address": f"http://127.0.0.1:{port}", "timeout": 5.0, **changes})


def render_entries(flows: Sequence[Flow]) -> Rendered:
    return render(TEMPLATE, flows)


def hand_on(outbox: Outbox, flows: Sequence[Flow]) -> None:
    """As the reader does it."""
    put(outbox, flows, render_entries)


def push(settings: Settings, flows: Sequence[Flow]) -> int:
    """One batch through a sink of its own."""
    loki = Loki(settings)
    try:
        loki.open()
        return loki.write([render_entries(flows)])
    finally:
        loki.close()
