"""A Debian to boot, the packages that it can have, and ours, built from this tree. CACHE keeps them."""

import fcntl
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = Path(os.environ.get("CACHE", "/var/cache/conntrackd-test"))
MIRROR: Final = os.environ.get("MIRROR", "http://deb.debian.org/debian")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What the machine has before the package comes: no Python, so that what the package depends on is tested.
BASE: Final = ("dbus", "iproute2", "libpam-systemd", "nftables", "polkitd", "systemd", "systemd-sysv")
# What the package may ask for, and the synchroniser of the same name.
OFFERED: Final = (
    *("conntrackd", "python3-dbus-fast", "python3-maxminddb", "python3-ply", "python3-pyroute2"),
    *("python3-cryptography", "python3-prometheus-client", "python3-yaml", "logrotate", "nfct"),
)
# The web console that the page is part of.
CONSOLE: Final = ("cockpit-bridge", "cockpit-ws")
BUILD: Final = (
    *("build-essential", "debhelper", "dh-python", "pybuild-plugin-pyproject", "python3-all", "python3-dev"),
    *("python3-hypothesis", "python3-pytest", "python3-pytest-mock", "python3-setuptools"),
    # What looks at the result, and what the first stage of the Containerfile installs.
    *("blhc", "devscripts", "lintian", "python3-pip", "python3-wheel"),
)
OF_THE_OTHER: Final = ("conntrackd", "nfct")
# The interpreter and tools of the distribution, whatever else is in front of them.
ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    **{name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ},
}
PREVIOUS: Final = "2:2.0.0~previous-1"
CHECKS: Final = {
    "lintian": "lintian --allow-root --fail-on error,warning --tag-display-limit 0 conntrackd_*.changes",
    "blhc": "blhc --all build.log",
    "hardening-check": "dpkg-deb -x conntrackd_*.deb all && find all -name '*.so' | xargs hardening-check",
}


def run(*command: str | Path, seconds: int = 600, **settings: str) -> str:
    """What it prints; an AssertionError with the end of that where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**ENVIRONMENT, **settings},
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def is_made_of(folder: Path, contents: str) -> bool:
    """Whether the kept folder was made of this, and is whole."""
    made_of = folder.with_name(f"{folder.name}.made-of")
    return folder.is_dir() and made_of.exists() and made_of.read_text() == contents


def keep(folder: Path, contents: str) -> None:
    """Note that the folder is whole, and what of."""
    folder.with_name(f"{folder.name}.made-of").write_text(contents)


class Distribution:
    """One suite: folders of its own below CACHE."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.base = CACHE / f"{suite}-base"
        self.builder = CACHE / f"{suite}-builder"
        self.pool = CACHE / f"{suite}-pool"

    def prepare(self) -> None:
        """Make what is not there yet: needs the network, the rest does not."""
        CACHE.mkdir(parents=True, exist_ok=True)
        self._make_base()
        self._make_pool()
        self._make_builder()

    def _make_base(self) -> None:
        contents = " ".join(BASE)
        if is_made_of(self.base, contents):
            return
        shutil.rmtree(self.base, ignore_errors=True)
        # debootstrap knows no virtual packages: libpam-systemd is named because polkitd wants a `logind`.
        packages = ",".join(BASE)
        run("debootstrap", "--variant=minbase", f"--include={packages}", self.suite, self.base, MIRROR)
        (self.base / "etc/dpkg/dpkg.cfg.d/test").write_text("force-unsafe-io\n")
        (self.base / "etc/apt/apt.conf.d/test").write_text(
            'APT::Install-Recommends "false";\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n'
        )
        (self.base / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/debian ./\n")
        keep(self.base, contents)

    def _make_pool(self) -> None:
        """Debian's packages that are not in the base, as a repository; by the machine's own apt."""
        contents = " ".join((*BASE, *OFFERED, *CONSOLE, *BUILD))
        if is_made_of(self.pool, contents):
            return
        shutil.rmtree(self.pool, ignore_errors=True)
        state = self.pool / "state"
        for folder in (state / "lists/partial", self.pool / "archives/partial"):
            folder.mkdir(parents=True)
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {self.suite} main\n")
        options = {
            "Dir::State": state,
            "Dir::State::status": self.base / "var/lib/dpkg/status",
            "Dir::Cache": self.pool,
            "Dir::Etc::sourcelist": state / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
        }
        apt = ("apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items()))
        run(*apt, "update")
        run(*apt, "install", "--yes", "--download-only", *OFFERED, *CONSOLE, *BUILD)
        shutil.rmtree(state)
        index(self.pool)
        keep(self.pool, contents)

    def _make_builder(self) -> None:
        contents = " ".join((*BASE, *OFFERED, *BUILD))
        if is_made_of(self.builder, contents):
            return
        shutil.rmtree(self.builder, ignore_errors=True)
        copy(self.base, self.builder)
        needed = " ".join(item for item in (*OFFERED, *BUILD) if item not in OF_THE_OTHER)
        self.call(self.builder, f"apt-get -q update && apt-get -q --yes install {needed}")
        keep(self.builder, contents)

    def call(self, root: Path, script: str) -> str:
        """A script in the folder, without a network, not booted."""
        command = nspawn(root, "--private-network", f"--bind-ro={self.pool}:/srv/debian")
        return run(*command, "sh", "-c", script)

    def build(self, folder: Path) -> tuple[Path, Path]:
        """Repositories of a previous build and of the tree's; the tests run in the building of the latter.

        Beside the packages there stands what the build said, and what the checkers of the suite say of it.
        """
        make_source(folder)
        with ThreadPoolExecutor(2) as both:
            previous = both.submit(self._build, folder, "previous", PREVIOUS)
            current = both.submit(self._build, folder, "current", "")
            return previous.result(), current.result()

    def _build(self, folder: Path, name: str, version: str) -> Path:
        """From the source distribution, without git."""
        root = folder / f"{name}-builder"
        copy(self.builder, root)
        (source,) = folder.glob("conntrackd-*.tar.gz")
        upstream = (
            version.partition("-")[0].partition(":")[2] or source.name[len("conntrackd-") : -len(".tar.gz")]
        )
        tree = root / "build/conntrackd"
        tree.mkdir(parents=True)
        shutil.copy2(source, root / f"build/conntrackd_{upstream}.orig.tar.gz")
        run("tar", "-xzf", source, "--strip-components=1", "--no-same-owner", "-C", tree)
        if version:
            changelog = tree / "debian/changelog"
            head, _, rest = changelog.read_text().partition("\n")
            changelog.write_text(f"conntrackd ({version}) {head.partition(') ')[2]}\n{rest}")
        options = "DEB_BUILD_OPTIONS=nocheck" if version else ""
        said = self.call(root, f"cd /build/conntrackd && {options} dpkg-buildpackage -us -uc 2>&1")
        repository = folder / name
        repository.mkdir()
        (repository / "build.log").write_text(said)
        if not version:
            self._check(root, repository)
        for package in (root / "build").glob("*conntrackd*.deb"):
            shutil.copy2(package, repository)
        index(repository)
        shutil.rmtree(root)
        return repository

    def _check(self, root: Path, repository: Path) -> None:
        """What lintian, blhc and hardening-check say: the tests read it."""
        shutil.copy2(repository / "build.log", root / "build/build.log")
        for name, script in CHECKS.items():
            said = self.call(root, f"cd /build && {script} 2>&1; echo status $?")
            (repository / f"{name}.log").write_text(said)


def make_source(folder: Path) -> None:
    """The source distribution of this tree, into which setuptools writes: one at a time."""
    with (CACHE / "source.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = ("--sdist", "--no-isolation", "--skip-dependency-check", "-o", folder)
        run(sys.executable, "-m", "build", *options, ROOT)


def nspawn(root: Path, *options: str) -> list[str]:
    """The beginning of a command line that runs something in the folder, not booted."""
    return [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2", "--pipe"),
        *("-D", str(root), *options),
    ]


def pip_settings() -> list[str]:
    """This machine's certificates, for an index that is reached through a proxy with one of its own."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    return [f"--bind-ro={bundle}:/srv/ca.crt", "--setenv=PIP_CERT=/srv/ca.crt"] if bundle.exists() else []


def index(folder: Path) -> None:
    """Make a repository of a folder with packages."""
    for package in [*folder.glob("archives/*.deb")]:
        package.rename(folder / package.name)
    listed = run("sh", "-c", f"cd {folder} && dpkg-scanpackages --multiversion . 2>/dev/null")
    (folder / "Packages").write_text(listed)


def copy(source: Path, target: Path) -> None:
    """A folder as root sees it: owners, modes, links, devices."""
    run("cp", "-a", "--reflink=auto", source, target)
