"""The package as apt sees it: taken, kept, upgraded, removed without a trace."""

import pytest

from tests.system.conftest import Suite
from tests.system.debian import PREVIOUS, run
from tests.system.machine import Machine
from tests.system.traffic import find_address

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

GAP = 3000


def test_apt_takes_ours_and_keeps_it(machine: Machine, suite: Suite) -> None:
    machine.offer(suite.current)
    offered = machine.run("apt-cache", "madison", "conntrackd")
    assert " 1:1.4." in offered

    machine.install("conntrackd")
    taken = machine.version
    machine.run("apt-get", "-q", "--yes", "upgrade")
    machine.run("apt-get", "-q", "--yes", "dist-upgrade")

    assert taken.startswith("ii 2:")
    assert machine.version == taken
    assert machine.show("ActiveState") == "inactive"
    assert machine.refuse("systemctl", "is-enabled", "conntrackd") == "disabled"


def test_an_upgrade_keeps_the_configuration_and_loses_no_event(machine: Machine, suite: Suite) -> None:
    machine.offer(suite.previous)
    machine.install("conntrackd")
    assert machine.version == f"ii {PREVIOUS}"
    path = machine.root / "etc/conntrackd/conntrackd.yaml"
    path.write_text(path.read_text() + "\nfilter:\n  - drop destination port 53\n  - log any\n")
    edited = path.read_bytes()
    machine.start()
    process = machine.show("MainPID")
    machine.offer(suite.current)

    # While dpkg works, and the service is restarted, connections go on.
    with machine.background("-m", "tests.system.traffic", "0", str(GAP), "slowly") as sender:
        machine.install("conntrackd")
        assert sender.wait(120) == 0

    assert machine.version.startswith("ii 2:")
    assert machine.version != f"ii {PREVIOUS}"
    assert machine.show("MainPID") != process
    assert path.read_bytes() == edited
    assert "1 rule" in machine.run("conntrackctl", "filter", "check", "--filter", "drop destination port 53")
    assert "2 rules" in machine.run("conntrackctl", "status")
    machine.wait(lambda: machine.count("EVENT_TYPE=NEW") >= GAP, f"{GAP} events")
    told = sorted(each["EVENT_DST"] for each in machine.events("EVENT_TYPE=NEW"))
    assert told == sorted(map(find_address, range(GAP)))
    assert "took over the socket of the last process" in machine.run("journalctl", "-u", "conntrackd")


def test_remove_stops_it_and_purge_leaves_no_file(machine: Machine, suite: Suite) -> None:
    machine.offer(suite.current)
    machine.install("conntrackd")
    machine.run("apt-get", "-q", "--yes", "purge", "conntrackd")  # what it needs stays
    before = machine.list_files()
    machine.install("conntrackd")
    machine.start()
    machine.send(0, 10)

    machine.run("apt-get", "-q", "--yes", "remove", "conntrackd")
    assert machine.show("ActiveState") == "inactive"
    assert (machine.root / "etc/conntrackd/conntrackd.yaml").exists()
    machine.run("apt-get", "-q", "--yes", "purge", "conntrackd")

    changed = {each for each in machine.list_files() ^ before if not each.startswith(("/run/", "/proc/"))}
    assert changed - {"/etc/nftables.conf"} == set()
    assert machine.sh("find /run /etc /var/lib -iname '*conntrackd*' -not -path '/var/lib/apt/*'") == ""


def test_it_ships_what_it_should(suite: Suite) -> None:
    (package,) = suite.current.glob("*.deb")
    listed = run("dpkg-deb", "-c", package)

    for path in (
        *("usr/bin/conntrackd", "usr/bin/conntrackctl", "lib/systemd/system/conntrackd.service"),
        *("share/bash-completion/completions/conntrackctl", "share/zsh/vendor-completions/_conntrackctl"),
        *("share/fish/vendor_completions.d/conntrackctl.fish", "share/man/man8/conntrackd.8.gz"),
        *("share/polkit-1/actions/org.conntrackd1.policy", "share/dbus-1/system.d/org.conntrackd1.conf"),
    ):
        assert f"{path}\n" in listed
