"""The clock and the spool of an outbox under test, and a Loki."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from conntrackd.delivery.spool import Spool
from tests.delivery.fakes import Clock
from tests.sinks.conftest import server, store

__all__ = ["clock", "server", "spool", "store"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path, "fake", 64 << 20)
    yield spool
    spool.close()
