"""A private bus that conntrackctl finds, with a service on it whose tails a test fills."""

import os
from collections.abc import Iterator

import pytest

from tests.bus.private import PrivateBus, Served, serve
from tests.cli.teller import Teller


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBus]:
    with PrivateBus() as made:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
        monkeypatch.delenv("COLUMNS", raising=False)  # which processes of pytest-xdist have
        yield made


@pytest.fixture
def served(bus: PrivateBus) -> Iterator[Served]:
    with serve(bus.address, Teller()) as made:
        yield made
    for pipe in made.control.pipes:
        os.close(pipe)
