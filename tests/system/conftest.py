"""Machines of Debian 12 and 13. Only `make test-system` runs these tests: all are marked slow."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.debian import Distribution
from tests.system.machine import Machine, boot

SUITES = os.environ.get("SUITES", "bookworm trixie").split()
# There is one image, of Debian 13: the other suite, which may run at the same time, does not build it again.
collect_ignore = [] if "trixie" in SUITES else ["test_image.py"]


@dataclass(frozen=True)
class Suite:
    """A distribution with two repositories of ours."""

    distribution: Distribution
    previous: Path
    current: Path


@pytest.fixture(scope="session", params=SUITES)
def distribution(request: pytest.FixtureRequest) -> Distribution:
    """Prepared."""
    prepared = Distribution(request.param)
    prepared.prepare()
    return prepared


@pytest.fixture(scope="session")
def suite(distribution: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Prepared and built."""
    folder = tmp_path_factory.mktemp(distribution.suite)
    yield Suite(distribution, *distribution.build(folder))
    shutil.rmtree(folder)


@pytest.fixture
def machine(suite: Suite, tmp_path: Path) -> Iterator[Machine]:
    """Booted, with nothing installed and only Debian's packages on offer."""
    with boot(suite.distribution, tmp_path / "root") as booted:
        booted.offer()
        yield booted


@pytest.fixture(scope="module")
def service(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with the service installed by apt, enabled and started; shared by the tests of a module."""
    with boot(suite.distribution, tmp_path_factory.mktemp("service") / "root") as booted:
        booted.offer(suite.current)
        booted.install("conntrackd")
        booted.start()
        yield booted
