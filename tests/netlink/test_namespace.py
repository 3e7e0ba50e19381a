"""A network namespace has a name or a path, and anything else is refused before anything is entered."""

import os
from pathlib import Path

import pytest

from conntrackd.errors import UnavailableError
from conntrackd.netlink.namespace import check, enter
from tests.live.network import network


def get_here() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


@pytest.mark.privileged
def test_a_namespace_is_entered_by_name_and_by_path() -> None:
    with network() as net:
        path = Path("/run/netns", net.router)
        wanted, home = path.stat().st_ino, get_here()
        for name in (net.router, str(path)):
            check(name)
            with enter(name):
                assert get_here() == wanted
            assert get_here() == home


def test_a_file_that_is_no_namespace_is_reported_without_privilege(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()

    with pytest.raises(UnavailableError, match="is not a network namespace"):
        check(str(path))
    with pytest.raises(UnavailableError, match="is not a network namespace"), enter(str(path)):
        pass


@pytest.mark.parametrize("name", ["nowhere-at-all", "/nowhere/at/all", "/"])
def test_a_namespace_that_is_not_there_is_reported_without_privilege(name: str) -> None:
    with pytest.raises(UnavailableError, match="there is no network namespace"):
        check(name)
    with pytest.raises(UnavailableError), enter(name):
        pass
