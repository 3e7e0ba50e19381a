"""A private bus for each test, with the service on it."""

from collections.abc import Iterator

import pytest

from conntrackd.bus.client import Client
from tests.bus.private import PrivateBus, Served, serve
from tests.bus.raw import Raw


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as made:
        yield made


@pytest.fixture
def strict_bus() -> Iterator[PrivateBus]:
    """With the policy that the packages install."""
    with PrivateBus(strict=True) as made:
        yield made


@pytest.fixture
def served(bus: PrivateBus) -> Iterator[Served]:
    with serve(bus.address) as made:
        yield made


@pytest.fixture
def client(bus: PrivateBus, served: Served) -> Iterator[Client]:
    with bus.connect() as made:
        yield made


@pytest.fixture
def raw(bus: PrivateBus, served: Served) -> Iterator[Raw]:
    with Raw(bus.address, {}) as made:
        yield made
