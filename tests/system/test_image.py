"""The image of the Containerfile: what is in it, how large it is, and that it runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import image
from tests.system.debian import CACHE, MIRROR, is_made_of, keep, nspawn, run

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

SUITE = "trixie"  # debian:13-slim
MOST = 150 << 20


def call(root: Path, script: str) -> str:
    """A step of it, with the network."""
    return run(*nspawn(root, "--resolv-conf=bind-host", "--bind-ro=/etc/hosts"), "sh", "-c", script)


@pytest.fixture(scope="module")
def base() -> Path:
    """What debian:13-slim is made by, too."""
    folder = CACHE / f"{SUITE}-slim"
    if not is_made_of(folder, MIRROR):
        shutil.rmtree(folder, ignore_errors=True)
        run("debootstrap", "--variant=minbase", SUITE, folder, MIRROR)
        shutil.rmtree(folder / "var/cache/apt")
        (folder / "etc/apt/apt.conf.d/test").write_text('APT::Sandbox::User "root";\n')
        keep(folder, MIRROR)
    return folder


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[image.Stage]:
    """The last stage."""
    folder = tmp_path_factory.mktemp("image")
    yield image.build(base, folder, call)
    shutil.rmtree(folder)


def test_it_is_small_and_holds_neither_sources_nor_a_compiler(base: Path, built: image.Stage) -> None:
    added = image.measure(built.root) - image.measure(base)

    assert added < MOST, f"{added / 1e6:.0f} MB on top of its base"
    for path in ("src", "usr/bin/gcc", "usr/bin/pip3", "usr/lib/python3/dist-packages/setuptools"):
        assert not (built.root / path).exists()
    assert not list(built.root.rglob("conntrackd/core/*.c"))


def test_only_what_the_wheel_is_made_of_goes_into_the_build() -> None:
    folders = {name.partition("/")[0] for name in image.list_context()}

    assert {"conntrackd", "man", "setup.py"} <= folders
    assert folders & {".git", ".venv", "build", "debian", "fuzz", "tests"} == set()
    assert not [name for name in image.list_context() if name.endswith((".pyc", ".so"))]


def test_it_starts_and_has_the_core(built: image.Stage) -> None:
    command = [*built.command, "--conntrack.replay", "/var/tcp.nl"]
    shutil.copy(image.ROOT / "tests/netlink/corpus/tcp.nl", built.root / "var/tcp.nl")

    said = run(*nspawn(built.root, "--private-network"), *command)

    assert '"type":"NEW"' in said
    assert "reference" not in said  # which the daemon runs on where the core cannot be loaded, and says so
    run(*nspawn(built.root, "--private-network"), "python3", "-c", "import conntrackd.core._core")
