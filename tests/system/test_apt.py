"""The package as apt sees it: taken, kept, upgraded, removed without a trace."""

import re
import shutil
from pathlib import Path

import pytest

from tests.system.conftest import Suite
from tests.system.debian import PREVIOUS, ROOT, run
from tests.system.machine import Machine
from tests.system.traffic import compute_address

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
    reported = sorted(event["EVENT_DST"] for event in machine.events("EVENT_TYPE=NEW"))
    assert reported == sorted(map(compute_address, range(GAP)))
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

    changed = {path for path in machine.list_files() ^ before if not path.startswith(("/run/", "/proc/"))}
    assert changed - {"/etc/nftables.conf"} == set()
    assert machine.sh("find /run /etc /var/lib -iname '*conntrackd*' -not -path '/var/lib/apt/*'") == ""


def get_package(suite: Suite) -> Path:
    (package,) = suite.current.glob("conntrackd_*.deb")
    return package


def test_it_ships_what_it_should(suite: Suite) -> None:
    listed = run("dpkg-deb", "-c", get_package(suite))

    for path in (
        *("usr/bin/conntrackd", "usr/bin/conntrackctl", "lib/systemd/system/conntrackd.service"),
        *("share/bash-completion/completions/conntrackctl", "share/zsh/vendor-completions/_conntrackctl"),
        *("share/fish/vendor_completions.d/conntrackctl.fish", "share/man/man8/conntrackd.8.gz"),
        *("share/polkit-1/actions/org.conntrackd1.policy", "share/dbus-1/system.d/org.conntrackd1.conf"),
        *("etc/conntrackd/conntrackd.yaml", "etc/logrotate.d/conntrackd-events"),
        *("lib/systemd/system/conntrackd-metrics.socket", "share/man/man7/conntrackd-metrics.7.gz"),
        *(
            "doc/conntrackd/examples/prometheus/conntrackd.rules.yml",
            "doc/conntrackd/examples/recipes/README.md",
        ),
        *("lib/sysusers.d/conntrackd.conf", "doc/conntrackd/README.Debian"),
        "usr/lib/python3/dist-packages/conntrackd/core/_core.abi3.so",
    ):
        assert f"{path}\n" in listed
    assert not re.search(r"\.[ch]\n|/tests/", listed)


def test_the_core_is_built_for_this_machine_and_its_symbols_are_apart(suite: Suite) -> None:
    architecture = run("dpkg", "--print-architecture").strip()
    assert run("dpkg-deb", "-f", get_package(suite), "Architecture").strip() == architecture
    assert len(list(suite.current.glob("conntrackd-dbgsym_*.deb"))) == 1


def test_the_checkers_of_the_distribution_have_nothing_to_say(suite: Suite) -> None:
    """lintian: no error and no warning; blhc: each call of gcc has all flags of hardening=+all."""
    for name in ("lintian", "blhc"):
        said = (suite.current / f"{name}.log").read_text()
        assert said.startswith("status 0\n"), said
    build = (suite.current / "build.log").read_text()
    assert "SetuptoolsDeprecationWarning" not in build
    assert "gcc" in build


# What Debian's gcc and glibc do not give to a library, or what shows only where a length is not known to the
# compiler: the flags for these are what blhc has looked at.
NOT_SEEN = ("Position Independent Executable", "Fortify Source functions", "Control flow integrity", "Branch")


def test_the_core_is_hardened(suite: Suite) -> None:
    said = (suite.current / "hardening-check.log").read_text()
    rows = dict(re.findall(r"^ ([A-Z][^:]*): (.*)", said, re.MULTILINE))

    wanted = {name: answer for name, answer in rows.items() if not name.startswith(NOT_SEEN)}
    assert {"Stack protected", "Read-only relocations", "Immediate binding"} <= wanted.keys()
    assert [name for name, answer in wanted.items() if answer.startswith("no")] == []


def test_what_an_administrator_put_beside_the_configuration_stays_and_purge_says_so(
    machine: Machine, suite: Suite
) -> None:
    machine.offer(suite.current)
    machine.install("conntrackd")
    machine.configure("log: {level: debug}\n")

    said = machine.run("apt-get", "-q", "--yes", "purge", "conntrackd")

    assert "/etc/conntrackd is left" in said
    assert (machine.root / "etc/conntrackd/conntrackd.d/test.yaml").exists()
    assert not (machine.root / "etc/conntrackd/conntrackd.yaml").exists()
    assert "conntrackd:" in machine.run("getent", "passwd", "conntrackd")


def test_its_own_tests_pass_on_the_installed_package(machine: Machine, suite: Suite) -> None:
    """debian/tests, as autopkgtest runs them: as root, in the source tree, with a folder of their own."""
    machine.offer(suite.current)
    machine.install("conntrackd")
    shutil.copytree(ROOT / "debian/tests", machine.root / "srv/source/debian/tests")
    names = re.findall(r"(?m)^Tests: (.*)", (ROOT / "debian/tests/control").read_text())
    assert names
    for name in names:
        machine.sh(f"cd /srv/source && AUTOPKGTEST_TMP=$(mktemp -d) debian/tests/{name}")
