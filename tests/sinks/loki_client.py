"""The sink for a server on loopback, as the tests of it set it up."""

from typing import Any

from conntrackd.flow import Batch
from conntrackd.sinks.loki import Loki, Settings


def make_settings(port: int = 0, **changes: Any) -> Settings:
    return Settings(**{"address": f"http://127.0.0.1:{port}", "timeout": 5.0, **changes})


def push(settings: Settings, flows: Batch) -> int:
    """One batch through a sink of its own."""
    loki = Loki(settings)
    try:
        loki.open()
        return loki.write(loki.encode(flows))
    finally:
        loki.close()
