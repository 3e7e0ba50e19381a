"""The wheel and the source distribution, for pipx, containers and the packages of distributions."""

import subprocess
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What only a checkout has.
OF_GIT = {".gitignore", "debian/.gitignore"}


def list_tree(*folders: str) -> set[str]:
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    """Contents by name."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_source_has_every_file_of_the_tree(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as tape:
        modes = {member.name.partition("/")[2]: member.mode for member in tape if member.isfile()}

    assert list_tree() - modes.keys() - OF_GIT == set()
    assert [name for name in modes if name.endswith((".so", ".pyc", ".o"))] == []
    assert all(modes[name] & 0o100 for name in ("debian/rules", "debian/tests/service"))


def test_the_wheel_has_every_module_both_commands_and_the_core(built: Path, wheel: dict[str, bytes]) -> None:
    modules = {name for name in list_tree("conntrackd") if not name.endswith((".c", ".h"))}
    (entries,) = (name for name in wheel if name.endswith("entry_points.txt"))
    parser = ConfigParser()
    parser.read_string(wheel[entries].decode())

    assert modules - wheel.keys() == set()
    assert [name for name in wheel if name.endswith((".c", ".h")) or name.startswith("tests")] == []
    assert set(parser["console_scripts"]) == {"conntrackd", "conntrackctl"}
    assert wheel["conntrackd/core/_core.abi3.so"].startswith(b"\x7fELF")


def test_one_wheel_is_for_all_python_from_3_11_on(built: Path) -> None:
    (path,) = built.glob("*.whl")

    assert path.name.split("-")[2:4] == ["cp311", "abi3"]


def test_the_wheel_has_what_a_service_needs(wheel: dict[str, bytes]) -> None:
    installed = {name.partition(".data/data/")[2] for name in wheel}

    assert {f"share/man/man{page[-1]}/{Path(page).name}" for page in list_tree("man")} <= installed
    assert {
        "lib/systemd/system/conntrackd.service",
        "lib/systemd/system/conntrackd-metrics.socket",
        "lib/sysusers.d/conntrackd.conf",
        "share/dbus-1/system.d/org.conntrackd1.conf",
        "share/polkit-1/actions/org.conntrackd1.policy",
        "share/bash-completion/completions/conntrackctl",
        "share/fish/vendor_completions.d/conntrackd.fish",
        "share/zsh/site-functions/_conntrackd",
        "share/conntrackd/conntrackd.yaml",
    } <= installed


def test_the_licence_is_named_in_spdx(wheel: dict[str, bytes]) -> None:
    (name,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    reported = Parser().parsestr(wheel[name].decode())

    assert reported["License-Expression"] == "MIT"
    assert not [text for text in reported.get_all("Classifier", []) if text.startswith("License")]
    assert [name for name in wheel if name.endswith("/LICENSE")] != []
