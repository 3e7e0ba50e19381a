"""rpm/conntrackd.spec: built by Debian's rpmbuild of the source distribution, and asked what is in it.

Its %check runs tests, too.
"""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACROS = Path(__file__).parent / "macros.debian"
# As redhat-rpm-config did it, before rpm 4.20 did it itself: the debug package begins with the installation.
BEFORE_4_20 = "%install %{?debug_package}\\\n%%install\\\n%{nil}\n"


def run(*command: str) -> str:
    done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def packages(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the built packages."""
    top = tmp_path_factory.mktemp("rpmbuild")
    # What Fedora has in its folder of macros.
    (top / "home").mkdir()
    major, minor = run("rpm", "--version").split()[-1].split(".")[:2]
    older = BEFORE_4_20 if (int(major), int(minor)) < (4, 20) else ""
    (top / "home/.rpmmacros").write_text(
        f"{MACROS.read_text()}{older}%_topdir {top}\n%interpreter {sys.executable}\n%_sourcedir {built}\n"
    )
    run(*("env", f"HOME={top}/home", "rpmbuild", "-bb", "--nodeps"), str(ROOT / "rpm" / "conntrackd.spec"))
    return top / "RPMS" / platform.machine()


@pytest.fixture(scope="module")
def package(packages: Path) -> Path:
    """That of the daemon."""
    (found,) = packages.glob("conntrackd-2*.rpm")
    return found


def query(package: Path, *what: str) -> list[str]:
    return run("rpm", "-qp", "--nosignature", *what, str(package)).splitlines()


def test_the_payload_is_complete_and_belongs_to_root(package: Path) -> None:
    listed = query(package, "--qf", "[%{FILENAMES} %{FILEUSERNAME} %{FILEMODES:perms}\n]")
    files = {line.split()[0]: line.split()[1:] for line in listed}

    for path in (
        *("/usr/bin/conntrackd", "/usr/bin/conntrackctl", "/usr/lib/systemd/system/conntrackd.service"),
        *("/usr/lib/sysusers.d/conntrackd.conf", "/etc/conntrackd/conntrackd.yaml"),
        "/usr/lib/systemd/system/conntrackd-metrics.socket",
        "/usr/share/dbus-1/system.d/org.conntrackd1.conf",
        "/usr/share/polkit-1/actions/org.conntrackd1.policy",
        *(f"/usr/share/bash-completion/completions/{item}" for item in ("conntrackd", "conntrackctl")),
        *(f"/usr/share/fish/vendor_completions.d/{item}.fish" for item in ("conntrackd", "conntrackctl")),
        *(f"/usr/share/zsh/site-functions/_{item}" for item in ("conntrackd", "conntrackctl")),
    ):
        assert path in files
    assert any(path.endswith("/conntrackd/bus/org.conntrackd1.xml") for path in files)
    assert sum("/man/man" in path for path in files) == len(list((ROOT / "man").glob("*.[1-8]")))
    assert not any("/tests/" in path or "/bench/" in path for path in files)
    assert {owner for owner, _ in files.values()} == {"root"}
    assert not any(mode[8] == "w" for _, mode in files.values() if mode[0] != "l")


def test_the_core_is_for_this_machine_and_its_symbols_are_apart(packages: Path, package: Path) -> None:
    (debug,) = packages.glob("conntrackd-debuginfo-*.rpm")
    (core,) = (path for path in query(package, "-l") if path.endswith("_core.abi3.so"))

    assert query(package, "--qf", "%{ARCH}") == [platform.machine()]
    assert [path for path in query(debug, "-l") if path.startswith(f"/usr/lib/debug{core}")] != []


def test_the_configuration_is_kept_by_an_upgrade(package: Path) -> None:
    assert query(package, "-c") == ["/etc/conntrackd/conntrackd.yaml", "/etc/logrotate.d/conntrackd-events"]


def test_what_it_needs_and_what_it_excludes(package: Path) -> None:
    assert "conntrack-tools" in query(package, "--conflicts")
    assert query(package, "--qf", "%{EPOCH}:%{VERSION}") == ["(none):2.0.0"]


def test_scriptlets_handle_the_service_and_leave_the_user_to_rpm(package: Path) -> None:
    scripts = "\n".join(query(package, "--scripts"))

    assert scripts.count("conntrackd.service") == 3
    assert "useradd" not in scripts
