"""Row 35: a daemon under load, and what can be done to it and to its receivers while events flow."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.bus.private import PrivateBus
from tests.faults.receivers import Pushes
from tests.faults.rig import Rig, wait_until
from tests.faults.test_sinks import LOKI, make_database, read_memory
from tests.faults.verdict import Verdict, evaluate
from tests.live.daemon import Running
from tests.live.service import Store
from tests.sinks.loki_server import hang, run_server

RATE: Final = 2000  # events a second
ROUND_SECONDS: Final = 2
# 3,276 events, or 1.6 s: more than a restart takes, less than a stop.
BUFFER: Final = "2M"
STOP_SECONDS: Final = 1.9
READ_SECONDS: Final = 0.1
SETTINGS: Final = "filter: [log any]\nsink.loki.labels: [round={}]\n"
MISTAKE: Final = "filter: [log protocol TPC]\n"


class Held(NamedTuple):
    """What a daemon holds when nothing waits in it."""

    process: int
    memory: int
    descriptors: int


@dataclass
class Soak:
    """Everything that a fault needs. Each fault breaks something, lets events flow, and mends it."""

    rig: Rig
    store: Store
    bus: PrivateBus
    seed: int
    held: list[Held] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chooser = random.Random(self.seed)
        self.loki = Pushes()
        self.configuration = self.rig.directory / "conntrackd.yaml"
        self.database = self.rig.directory / "a.mmdb"
        self._life, self._loki_life = ExitStack(), ExitStack()
        self._reloads = 0

    # ---- what it consists of --------------------------------------------------------------------------

    @contextmanager
    def run(self) -> Iterator[None]:
        """All of it, until the end of the block."""
        make_database(self.database, "Nuremberg")
        self.configuration.write_text(SETTINGS.format(0))
        with self._life, self._loki_life, self.bus.connect() as self.client:
            server = self._loki_life.enter_context(run_server(self.loki))
            self.rig.receivers = replace(self.rig.receivers, loki=self.loki, loki_port=server.port)
            self.start(None)
            yield
            assert self.running.stop() == 0

    def start(self, descriptor: int | None) -> None:
        """A daemon, with the socket of the last one."""
        settings = {
            "config": self.configuration,
            "conntrack.buffer": BUFFER,
            "geoip.database": self.database,
            "state_directory": self.rig.directory / "state",
            "sink.loki.spool": self.rig.directory / "loki",
            "sink.syslog.spool": self.rig.directory / "syslog",
            "bus.address": self.bus.address,
        }
        arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        extra = {"NOTIFY_SOCKET": os.fspath(self.store.path), "CONNTRACKD_BUS_ENABLE": "true"}
        daemon = self.rig.daemon(*arguments, descriptor=descriptor, extra=extra)
        self.running: Running = self._life.enter_context(daemon)
        self.store.wait("READY=1")
        self.running.wait(lambda: self.running.has_said("org.conntrackd1 is on"), "bus")
        self._reloads = 0

    def start_again(self) -> None:
        """As systemd does, with the socket that it has kept."""
        self._life.close()
        self.start(self.store.kept)

    # ---- what faults are made of ----------------------------------------------------------------------

    def send(self, seconds: float) -> None:
        """Events of so many seconds; returns when they are sent."""
        with self.sending(seconds):
            pass

    @contextmanager
    def sending(self, seconds: float) -> Iterator[None]:
        """Events of so many seconds while the block does something. What arrives is read meanwhile."""
        producer = self.rig.producer
        producer.start(round(seconds * RATE), RATE)
        yield
        while producer.is_sending(READ_SECONDS):
            self.rig.read()
        producer.wait()

    def call(self, member: str, signature: str = "", *values: Any, sink: str | None = None) -> list[Any]:
        return self.client.call(member, signature, *values, sink=sink)

    def reload(self) -> None:
        """SIGHUP, until the daemon says what came of it."""
        self._reloads += 1
        self.running.process.send_signal(signal.SIGHUP)
        self.running.wait(lambda: self._count_reloads() >= self._reloads, "the reload")

    def _count_reloads(self) -> int:
        return sum("reload: " in line for line in self.running.said)

    def stop_loki(self) -> None:
        self._loki_life.close()

    def start_loki(self) -> None:
        self._loki_life.enter_context(run_server(self.loki, port=self.rig.receivers.loki_port))
        self.loki.let_go.clear()

    # ---- a round --------------------------------------------------------------------------------------

    def play(self, name: str) -> None:
        """One fault, a fresh flow after it, and the law for all that was sent since the last one."""
        first = self.rig.producer.sent
        self.rig.choose(*self.rig.sinks)
        FAULTS[name](self)
        self.loki.faults.clear()
        wait_until(self._is_empty, 30, self.rig.describe)
        delay = self.rig.delay
        self.rig.send_fresh()
        self.rig.delay = max(delay, self.rig.delay)
        wait_until(self._is_empty, 30, self.rig.describe)
        self.rig.wait_for_law(settled=first)
        sent = self.rig.producer.sent - first
        # At least once: a push whose reply does not come is sent again.
        twice = 10 * sent if name.startswith("Loki") else 0
        tallies = list(self.rig.tallies.values())
        kills = 1 if name == "killed" else 0
        self.verdicts.append(evaluate(sent, tallies, first=first, duplicates=twice, kills=kills))
        self.loki.forget()
        self.store.drain()
        self._measure()

    def _is_empty(self) -> bool:
        """Whether all that waited in the sinks has left; they are asked to wait no longer."""
        self.rig.read()
        return all(self.call("Flush", sink=name)[0] for name in self.rig.sinks)

    def _measure(self) -> None:
        process = self.running.process.pid
        descriptors = len(os.listdir(f"/proc/{process}/fd"))
        self.rig.measure(self.running)
        self.held.append(Held(process, read_memory(process), descriptors))


# ---- the faults -------------------------------------------------------------------------------------------


def do_nothing(soak: Soak) -> None:
    soak.send(ROUND_SECONDS)


def stop_reader(soak: Soak) -> None:
    """Longer than the buffer lasts."""
    soak.running.process.send_signal(signal.SIGSTOP)
    soak.send(STOP_SECONDS)
    soak.running.process.send_signal(signal.SIGCONT)
    soak.send(ROUND_SECONDS - STOP_SECONDS)


def answer_badly(soak: Soak) -> None:
    faults, _ = LOKI[soak.chooser.choice(sorted(LOKI))]
    soak.loki.faults.extend(faults)
    soak.send(ROUND_SECONDS)


def hang_loki(soak: Soak) -> None:
    soak.loki.faults.extend([hang] * 2)
    soak.send(ROUND_SECONDS)


def refuse_connections(soak: Soak) -> None:
    with soak.sending(1):
        soak.stop_loki()
    soak.send(1)
    soak.start_loki()
    soak.send(1)


def reset_syslog(soak: Soak) -> None:
    """When nothing is under way: what its kernel has acknowledged and it has not read would be lost."""
    soak.rig.receivers.syslog.reset()
    soak.send(ROUND_SECONDS)


def leave_syslog(soak: Soak) -> None:
    soak.rig.receivers.syslog.leave()
    soak.send(ROUND_SECONDS / 2)
    soak.rig.receivers.syslog.come_back()
    soak.send(ROUND_SECONDS / 2)


def stall_syslog(soak: Soak) -> None:
    soak.rig.receivers.syslog.pause()
    soak.send(ROUND_SECONDS / 2)
    soak.rig.receivers.syslog.go_on()
    soak.send(ROUND_SECONDS / 2)


def stall_journald(soak: Soak) -> None:
    soak.rig.receivers.journal.pause()
    soak.send(ROUND_SECONDS / 2)
    soak.rig.receivers.journal.go_on()
    soak.send(ROUND_SECONDS / 2)


def rotate_file(soak: Soak) -> None:
    with soak.sending(ROUND_SECONDS):
        soak.rig.receivers.stream.rotate()
        soak.reload()


def reload(soak: Soak) -> None:
    soak.configuration.write_text(SETTINGS.format(soak.chooser.randrange(1000)))
    with soak.sending(ROUND_SECONDS):
        soak.reload()


def reload_mistake(soak: Soak) -> None:
    before = soak.configuration.read_text()
    soak.configuration.write_text(MISTAKE)
    with soak.sending(ROUND_SECONDS):
        soak.reload()
    soak.configuration.write_text(before)


def change_filter(soak: Soak) -> None:
    with soak.sending(ROUND_SECONDS / 2):
        soak.call("SetFilter", "asu", ["drop protocol TCP", "drop destination port 1-1023"], 0)
    with soak.sending(ROUND_SECONDS / 2):
        soak.call("ResetFilter")


def switch_off(soak: Soak) -> None:
    sink = soak.chooser.choice(soak.rig.sinks)
    with soak.sending(ROUND_SECONDS / 2):
        soak.call("Disable", sink=sink)
    with soak.sending(ROUND_SECONDS / 2):
        soak.call("Enable", sink=sink)


def replace_database(soak: Soak) -> None:
    fresh = soak.database.with_suffix(".new")
    make_database(fresh, soak.chooser.choice(["Lyon", "Nuremberg", "Porto"]))
    with soak.sending(ROUND_SECONDS):
        fresh.rename(soak.database)


def damage_database(soak: Soak) -> None:
    """In place, which the daemon notices and refuses; it goes on with the old one."""
    whole = soak.database.read_bytes()
    with soak.sending(ROUND_SECONDS):
        soak.database.write_bytes(soak.chooser.randbytes(4096))
    soak.database.write_bytes(whole)


def kill(soak: Soak) -> None:
    """When nothing is in its memory alone, of which nobody would know how much it was. What comes waits."""
    process = soak.running.process
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: _is_stopped(process.pid), 5, lambda: "not stopped")
    with soak.sending(ROUND_SECONDS):
        process.kill()
        process.wait()
        soak.start_again()


def restart(soak: Soak) -> None:
    with soak.sending(ROUND_SECONDS):
        assert soak.running.stop() == 0
        soak.start_again()


def _is_stopped(process: int) -> bool:
    tasks = Path(f"/proc/{process}/task").glob("*/stat")
    return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


# What one process lives through.
LIVED: Final[dict[str, Callable[[Soak], None]]] = {
    "reader stopped": stop_reader,
    "Loki answers badly": answer_badly,
    "Loki hangs": hang_loki,
    "Loki refuses connections": refuse_connections,
    "syslog resets": reset_syslog,
    "syslog goes and comes back": leave_syslog,
    "syslog stands still": stall_syslog,
    "journald stands still": stall_journald,
    "file rotated": rotate_file,
    "reload": reload,
    "reload of a mistake": reload_mistake,
    "filter changed": change_filter,
    "sink switched off and on": switch_off,
    "GeoIP database replaced": replace_database,
    "GeoIP database damaged": damage_database,
}
ENDED: Final[dict[str, Callable[[Soak], None]]] = {"killed": kill, "restarted": restart}
FAULTS: Final = {"nothing": do_nothing, **LIVED, **ENDED}


def plan(seed: int, rounds: int) -> list[str]:
    """Names of faults, at random: each of them before one comes again.

    One process lives through most of it, so that it can be seen whether it grows: it is not ended before the
    last quarter. The first round is without a fault, to compare with.
    """
    chooser = random.Random(seed)
    found = ["nothing"]
    for end, known in ((rounds * 3 // 4, [*LIVED]), (rounds, [*LIVED, *ENDED])):
        while len(found) < end:
            found += chooser.sample(known, len(known))
        del found[end:]
    return found
