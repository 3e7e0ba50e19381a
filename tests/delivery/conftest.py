"""A Loki of the test's own."""

from tests.sinks.conftest import server, store

__all__ = ["server", "store"]
