"""Debian's other conntrackd, the state synchroniser: what becomes of it when this package comes."""

import pytest

from tests.system.conftest import Suite
from tests.system.machine import Machine

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

CONFIGURATION = "etc/conntrackd/conntrackd.conf"
OF_THE_OTHER = ("etc/init.d/conntrackd", "etc/default/conntrackd", "etc/logrotate.d/conntrackd")


def install_synchroniser(machine: Machine) -> bytes:
    """Debian's own, running with an edited configuration; returns that."""
    machine.install("conntrackd")
    assert machine.version.startswith("ii 1:1.4.")
    path = machine.root / CONFIGURATION
    path.write_text(path.read_text() + "# edited\n")
    machine.run("systemctl", "restart", "conntrackd")
    machine.run("systemctl", "is-active", "conntrackd")
    return path.read_bytes()


def test_a_running_synchroniser_stops_the_installation_and_goes_on(machine: Machine, suite: Suite) -> None:
    configuration = install_synchroniser(machine)
    machine.offer(suite.current)
    version, process, files = machine.version, machine.show("MainPID"), machine.list_files()

    said = machine.refuse("apt-get", "-q", "--yes", "install", "conntrackd")

    assert "the connection state synchroniser of conntrack-tools is running" in said
    assert "CONNTRACKD_REPLACE=1 apt install conntrackd" in said
    assert (machine.version, machine.show("MainPID")) == (version, process)
    assert machine.show("ActiveState") == "active"
    assert files - machine.list_files() == set()  # apt has unpacked what our package needs
    assert (machine.root / CONFIGURATION).read_bytes() == configuration
    machine.wait(lambda: machine.show("RefuseManualStop") == "no", "the service is let go")
    machine.run("systemctl", "restart", "conntrackd")


@pytest.mark.parametrize("how", ["variable", "marker"])
def test_who_says_so_replaces_it_and_its_configuration_stays(
    how: str, machine: Machine, suite: Suite
) -> None:
    configuration = install_synchroniser(machine)
    machine.install("nfct")  # loads helpers of the synchroniser's package, and goes with it
    machine.offer(suite.current)
    if how == "marker":
        (machine.root / "etc/conntrackd/replace").touch()
        machine.install("conntrackd")
    else:
        machine.install("conntrackd", CONNTRACKD_REPLACE="1")

    assert machine.version.startswith("ii 2:")
    assert not (machine.root / "etc/conntrackd/replace").exists(), "it counts once"
    assert machine.show("ActiveState") == "inactive"
    assert machine.refuse("systemctl", "is-enabled", "conntrackd") == "disabled"
    assert not (machine.root / "etc/conntrackd/replace").exists()  # it counts once
    assert not (machine.root / "usr/sbin/nfct").exists()
    assert "nfct" in machine.refuse("apt-get", "-q", "--yes", "install", "nfct")
    assert [path for path in OF_THE_OTHER if (machine.root / path).exists()] == []
    machine.start()
    assert machine.show("ActiveState") == "active"
    machine.run("apt-get", "-q", "--yes", "purge", "conntrackd")
    assert (machine.root / CONFIGURATION).read_bytes() == configuration


def test_one_that_does_not_run_is_replaced(machine: Machine, suite: Suite) -> None:
    configuration = install_synchroniser(machine)
    machine.run("systemctl", "stop", "conntrackd")
    machine.offer(suite.current)

    machine.install("conntrackd")

    assert machine.version.startswith("ii 2:")
    assert (machine.root / CONFIGURATION).read_bytes() == configuration


def test_one_that_was_removed_leaves_its_configuration(machine: Machine, suite: Suite) -> None:
    configuration = install_synchroniser(machine)
    machine.run("apt-get", "-q", "--yes", "remove", "conntrackd")
    machine.offer(suite.current)

    machine.install("conntrackd")
    machine.run("apt-get", "-q", "--yes", "purge", "conntrackd")

    assert (machine.root / CONFIGURATION).read_bytes() == configuration
    assert [path for path in OF_THE_OTHER if (machine.root / path).exists()] == []
