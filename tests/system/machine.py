"""A booted Debian without a network, and what a user types there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.debian import ENVIRONMENT, ROOT, Distribution, copy, run

TRACKING = "table inet fw { chain c { ct state new accept; }; }\n"
SERVICE = "conntrackd.service"
# Of one version, of the other, and of both at once.
HIERARCHIES = [Path("/sys/fs/cgroup", name) for name in (".", "systemd", "unified")]
ENTER = 'for group in $GROUPS; do echo $$ >$group/cgroup.procs; done; exec "$@"'


class Machine:
    """Commands run as root in all namespaces of the container's first process."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def enter(self, *command: str, spaces: str = "muinp") -> list[str]:
        """The command line that runs it inside; with `n` alone: our program, its network."""
        return ["nsenter", "-t", str(self.leader), *(f"-{space}" for space in spaces), "--", *command]

    def run(self, *command: str, **settings: str) -> str:
        """What it prints, on both streams; fails the test where it fails."""
        return run(*self.enter(*command), seconds=300, **settings).rstrip("\n")

    def sh(self, script: str) -> str:
        return self.run("sh", "-c", script)

    def refuse(self, *command: str, **settings: str) -> str:
        """What it says, failing as it must."""
        done = subprocess.run(
            self.enter(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**ENVIRONMENT, **settings},
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode != 0, f"{command} did not fail: {done.stdout}"
        return done.stdout.rstrip("\n")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: not in {seconds} s\n{self._read_log()}"
            threading.Event().wait(0.1)

    def _read_log(self) -> str:
        """The end of the journal without events, of which there may be thousands, but with losses."""
        return self.sh("journalctl -q -o short-precise | grep -v ' connection from ' | tail -n 60")

    def offer(self, *repositories: Path) -> None:
        """Debian's packages, and those of the repositories."""
        lines = ["deb [trusted=yes] file:/srv/debian ./"]
        for repository in repositories:
            target = self.root / "srv" / repository.name
            shutil.copytree(repository, target, dirs_exist_ok=True)
            lines.append(f"deb [trusted=yes] file:/srv/{repository.name} ./")
        (self.root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
        self.run("apt-get", "-q", "update")

    def install(self, *words: str, **settings: str) -> str:
        """As a user does, who answers no questions."""
        return self.run("apt-get", "-q", "--yes", "install", *words, **settings)

    @property
    def version(self) -> str:
        """Of the package."""
        return self.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", "conntrackd")

    def show(self, what: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "--value", "-p", what, SERVICE)

    def configure(self, text: str) -> None:
        folder = self.root / "etc/conntrackd/conntrackd.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.yaml").write_text(text)

    def unconfigure(self) -> None:
        shutil.rmtree(self.root / "etc/conntrackd/conntrackd.d")

    def start(self) -> None:
        """The service, on a machine whose firewall tracks connections."""
        self.run("ip", "link", "set", "lo", "up")
        (self.root / "etc/nftables.conf").write_text(TRACKING)
        self.run("nft", "-f", "/etc/nftables.conf")
        self.run("systemctl", "enable", "--now", SERVICE)

    def events(self, *match: str) -> list[dict[str, Any]]:
        """Records of the journal."""
        matches = ("SYSLOG_IDENTIFIER=conntrackd", *match)
        lines = self.run("journalctl", "-o", "json", "--all", *matches).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def count(self, *match: str) -> int:
        """How many records."""
        shell = f"journalctl -q -o cat SYSLOG_IDENTIFIER=conntrackd {' '.join(match)} | wc -l"
        return int(self.sh(shell))

    def send(self, first: int, count: int) -> None:
        """That many flows of one datagram each, told apart by number."""
        self.python("-m", "tests.system.traffic", str(first), str(count))

    def python(self, *words: str) -> str:
        """This tree's Python, with the network of the machine."""
        return run(*self.enter(sys.executable, *words, spaces="n"), PYTHONPATH=str(ROOT))

    @contextmanager
    def background(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        """The same, until the end of the block; it ends when its input does."""
        with subprocess.Popen(
            self.enter(sys.executable, *words, spaces="n"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            text=True,
        ) as process:
            try:
                yield process
            finally:
                if process.stdin and not process.stdin.closed:
                    process.stdin.close()
                process.wait(30)

    def list_files(self) -> set[str]:
        """All of it, but what the system itself writes while it runs."""
        left_out = " ".join(
            f"-not -path '{item}'"
            for item in (
                *("/srv/*", "/var/log/*", "/var/cache/*", "/var/lib/apt/*", "/var/lib/dpkg/*", "/var/tmp/*"),
                *("/tmp/*", "/var/lib/systemd/*", "/root/*", "/etc/*.cache", "/var/lib/polkit-1/*"),
            )
        )
        return set(self.sh(f"find / -xdev {left_out}").splitlines())


def read_leader(nspawn: int) -> int:
    """The first process of the container; 0 while there is none."""
    children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
    return int(children[0]) if children else 0


@contextmanager
def control_groups(name: str) -> Iterator[list[Path]]:
    """One in each hierarchy. In those that two machines share, `systemctl kill` of one is for both."""
    made = [root / name for root in HIERARCHIES if (root / "cgroup.procs").exists()]
    try:
        for group in made:
            group.mkdir()
        yield made
    finally:
        for group in made:
            run("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";")


@contextmanager
def boot(distribution: Distribution, root: Path) -> Iterator[Machine]:
    """A machine of its own in the folder, until the end of the block."""
    copy(distribution.base, root)
    (root / "etc/machine-id").write_text("")
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "-b", "-D"]
    said = root.with_name(f"{root.name}.boot")
    with control_groups(f"{root.parent.name}-{os.getpid()}") as groups, said.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", ENTER, "sh", *command, str(root), f"--bind-ro={distribution.pool}:/srv/debian"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, "GROUPS": " ".join(map(str, groups))},
        )
        try:
            yield _wait_for_boot(process, root, said)
        finally:
            _stop(process)
            shutil.rmtree(root, ignore_errors=True)


def _wait_for_boot(process: "subprocess.Popen[bytes]", root: Path, said: Path) -> Machine:
    end = time.monotonic() + 60
    up: Sequence[str] = ("systemctl", "is-system-running", "--wait")
    while True:
        assert process.poll() is None, f"no boot: {said.read_text()[-2000:]}"
        assert time.monotonic() < end, f"no boot in 60 s: {said.read_text()[-2000:]}"
        leader = read_leader(process.pid)
        if leader and Path(f"/proc/{leader}/root/run/dbus/system_bus_socket").exists():
            machine = Machine(root, leader)
            subprocess.run(machine.enter(*up), env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
            return machine
        threading.Event().wait(0.1)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    leader = read_leader(process.pid) if process.poll() is None else 0
    if leader:
        os.kill(leader, signal.SIGKILL)  # PID 1 of its namespace: everything in it goes
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
