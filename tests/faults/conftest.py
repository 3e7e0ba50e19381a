"""A network and a rig for the tests of faults."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.private import PrivateBus
from tests.faults.producer import prepare, produce
from tests.faults.receivers import receive
from tests.faults.rig import Rig
from tests.live.network import Network, network


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built:
        prepare(built)
        yield built


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as made:
        yield made


@pytest.fixture
def rig(net: Network, tmp_path: Path) -> Iterator[Rig]:
    with produce(net) as producer, receive(tmp_path) as receivers:
        producer.forget()
        yield Rig(producer, receivers, tmp_path)
