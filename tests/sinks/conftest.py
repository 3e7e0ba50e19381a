"""A Loki of the test's own, and who signs certificates for its module."""

from collections.abc import Iterator

import pytest

from tests.sinks.authority import Authority
from tests.sinks.loki_server import Server, Store, run_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with run_server(store) as server:
        yield server
