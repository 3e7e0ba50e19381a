"""The README's two commands on a Debian that has nothing: what they install, and that they pass.

The one part of these tests that needs the network each time: Debian's mirror, and pip's index.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.debian import MIRROR, Distribution, copy, make_source, nspawn, pip_settings, run

pytestmark = [pytest.mark.privileged, pytest.mark.slow]


class Fresh:
    """Debian's base and the source distribution in /src."""

    def __init__(self, distribution: Distribution, root: Path) -> None:
        self.distribution = distribution
        self.root = root

    def sh(self, script: str, *, network: bool = True, seconds: int = 600) -> str:
        """A script in /src; without a network it has a private one, which it may change."""
        way = ["--resolv-conf=bind-host", "--bind-ro=/etc/hosts"] if network else ["--private-network"]
        command = ["sh", "-c", f"cd /src && {script}"]
        return run(*nspawn(self.root, *way, *pip_settings()), *command, seconds=seconds)

    def list_packages(self) -> dict[str, str]:
        """Name -> version."""
        listed = self.sh("dpkg-query -W -f '${Package} ${Version}\\n'")
        return dict(re.findall(r"(?m)^(\S+) (\S+)$", listed))


def read_list(name: str) -> set[str]:
    """Of the Makefile."""
    text = (Path(__file__).parents[2] / "Makefile").read_text().replace("\\\n", " ")
    (words,) = re.findall(rf"(?m)^{name} := (.*)", text)
    return {word for word in words.split() if not word.startswith("$")}


@pytest.fixture(scope="module")
def fresh(distribution: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """With `make` and nothing else, as the README says."""
    folder = tmp_path_factory.mktemp("fresh")
    root = folder / "root"
    copy(distribution.base, root)
    (root / "etc/apt/sources.list").write_text(f"deb {MIRROR} {distribution.suite} main\n")
    make_source(folder)
    (source,) = folder.glob("*.tar.gz")
    (root / "src").mkdir()
    run("tar", "-xzf", source, "--strip-components=1", "--no-same-owner", "-C", root / "src")
    made = Fresh(distribution, root)
    made.sh("apt-get -q update && apt-get -q --yes install make")
    yield made
    run("rm", "-rf", root)


def test_make_run_installs_what_running_needs_and_nothing_else(fresh: Fresh) -> None:
    before = fresh.list_packages()

    fresh.sh("make .venv/run conntrackd/core/_core.abi3.so")

    after = fresh.list_packages()
    assert {name: version for name, version in after.items() if name in before} == before  # no upgrade
    assert read_list("RUN_PACKAGES") <= after.keys()
    only_for_tests = read_list("TEST_PACKAGES") - before.keys() - {"openssl"}  # certificates need that
    assert only_for_tests & after.keys() == set()
    assert "conntrackd: listening to NEW" in fresh.sh(
        "{ timeout --signal=INT 15 make run 2>&1 || [ $? = 124 ]; }", network=False
    )
    assert fresh.list_packages() == after


def test_a_change_of_the_core_is_compiled_by_the_next_make(fresh: Fresh) -> None:
    built = "conntrackd/core/_core.abi3.so"
    assert "build_ext" not in fresh.sh(f"make -n {built}")
    for name in ("*.c", "*.h"):
        sources = sorted((fresh.root / "src/conntrackd/core").glob(name))
        for path in sources[:1]:
            path.touch()
            assert "build_ext" in fresh.sh(f"make {built}", network=False)
            assert "build_ext" not in fresh.sh(f"make -n {built}")


def test_the_quick_part_of_the_tests_passes(fresh: Fresh) -> None:
    """All of `make test` that needs no privileges; `make test` itself runs the rest where CI runs."""
    # The wheel is compared with git, which nobody needs here; the sanitizers take minutes of what is C alone.
    left_out = "--ignore=tests/packages/test_wheel.py --ignore=tests/core/test_sanitizers.py"
    said = fresh.sh(
        "make .venv/ready lint && "
        ".venv/bin/python -m pytest -q --color=no --numprocesses auto --dist loadfile "
        f"-o faulthandler_timeout=900 -m 'not privileged and not slow' {left_out}",
        seconds=1500,
    )
    assert re.search(r"\d{4} passed", said)
    assert not re.search(r"\d failed|\d error", said)
