"""rpm/conntrackd.spec: built by Debian's rpmbuild, and asked what is in it. Its %check runs tests, too."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACROS = Path(__file__).parent / "macros.debian"
NAME = "conntrackd-2.0.0"
LEFT_OUT = {".git", ".venv", "build", "dist", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def run(*command: str) -> str:
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def choose(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = set(Path(member.name).parts)
    return None if parts & LEFT_OUT or "__pycache__" in parts else member


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built package."""
    top = tmp_path_factory.mktemp("rpmbuild")
    (top / "SOURCES").mkdir()
    with tarfile.open(top / "SOURCES" / f"{NAME}.tar.gz", "w:gz") as archive:
        archive.add(ROOT, NAME, filter=choose)
    defaults = run("rpm", "--eval", "%{_rpmmacrodir}").strip()
    assert shutil.which("rpmbuild"), f"rpmbuild is missing, macros would be in {defaults}"
    run(
        *("rpmbuild", "-bb", "--nodeps", f"--load={MACROS}", "--define", f"_topdir {top}"),
        *("--define", f"interpreter {sys.executable}", str(ROOT / "rpm" / "conntrackd.spec")),
    )
    (built,) = top.glob("RPMS/noarch/*.rpm")
    return built


def query(package: Path, *what: str) -> list[str]:
    return run("rpm", "-qp", "--nosignature", *what, str(package)).splitlines()


def test_the_payload_is_complete_and_belongs_to_root(package: Path) -> None:
    listed = query(package, "--qf", "[%{FILENAMES} %{FILEUSERNAME} %{FILEMODES:perms}\n]")
    files = {line.split()[0]: line.split()[1:] for line in listed}

    for path in (
        *("/usr/bin/conntrackd", "/usr/bin/conntrackctl", "/usr/lib/systemd/system/conntrackd.service"),
        *("/usr/lib/sysusers.d/conntrackd.conf", "/etc/conntrackd/conntrackd.yaml"),
        "/usr/share/dbus-1/system.d/org.conntrackd1.conf",
        "/usr/share/polkit-1/actions/org.conntrackd1.policy",
        *(f"/usr/share/bash-completion/completions/{each}" for each in ("conntrackd", "conntrackctl")),
        *(f"/usr/share/fish/vendor_completions.d/{each}.fish" for each in ("conntrackd", "conntrackctl")),
        *(f"/usr/share/zsh/site-functions/_{each}" for each in ("conntrackd", "conntrackctl")),
    ):
        assert path in files
    assert any(path.endswith("/conntrackd/bus/org.conntrackd1.xml") for path in files)
    assert sum("/man/man" in path for path in files) == len(list((ROOT / "man").glob("*.[1-8]")))
    assert not any("/tests/" in path or "/bench/" in path for path in files)
    assert {owner for owner, _ in files.values()} == {"root"}
    assert not any(mode[8] == "w" for _, mode in files.values() if mode[0] != "l")


def test_the_configuration_is_kept_by_an_upgrade(package: Path) -> None:
    assert query(package, "-c") == ["/etc/conntrackd/conntrackd.yaml"]


def test_what_it_needs_and_what_it_excludes(package: Path) -> None:
    assert "conntrack-tools" in query(package, "--conflicts")
    assert query(package, "--qf", "%{EPOCH}:%{VERSION}") == ["2:2.0.0"]


def test_scriptlets_make_the_user_before_and_handle_the_service(package: Path) -> None:
    scripts = "\n".join(query(package, "--scripts"))

    assert "useradd" in scripts.partition("postinstall")[0]
    assert scripts.count("conntrackd.service") == 3
