"""A network and a rig for the tests of faults."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.conftest import bus
from tests.faults.producer import produce
from tests.faults.receivers import receive
from tests.faults.rig import Rig
from tests.live.conftest import silent as net
from tests.live.conftest import store
from tests.live.network import Network

__all__ = ["bus", "net", "rig", "store"]


@pytest.fixture
def rig(net: Network, tmp_path: Path) -> Iterator[Rig]:
    with produce(net) as producer, receive(tmp_path) as receivers:
        producer.forget()
        yield Rig(producer, receivers, tmp_path)
