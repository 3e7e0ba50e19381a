"""A Loki of the test's own."""

from collections.abc import Iterator

import pytest

from tests.sinks.loki_server import Server, Store, run_server


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with run_server(store) as server:
        yield server
