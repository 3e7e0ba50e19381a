"""A daemon between a counting producer and recording sinks, and the judgement at the end."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.figures import make_row, note
from tests.faults.producer import Producer
from tests.faults.receivers import Receivers
from tests.faults.verdict import Tally, Verdict, evaluate
from tests.live.daemon import Running, command, environment, start

ALL: Final = ("stream", "syslog", "loki", "journal")
FRESH_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
# journald's socket is where the receiver's directory is, for this process alone.
MOUNT: Final = (
    'mount --make-rprivate / && mkdir -p /run/systemd && mount --bind "$0" /run/systemd && exec "$@"'
)


def wait_until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> float:
    """A bounded poll; the seconds that it took."""
    begin, pause = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not in {seconds} s: {what()}"
        pause.wait(POLL_SECONDS)
    return time.monotonic() - begin


@dataclass
class Rig:
    """What a test of a fault has in its hands."""

    producer: Producer
    receivers: Receivers
    directory: Path
    sinks: Sequence[str] = ALL
    kind: str = "NEW"
    tallies: dict[str, Tally] = field(default_factory=dict)
    memory_kib: int = 0
    delay: float = 0.0

    def __post_init__(self) -> None:
        self.choose(*self.sinks)

    def choose(self, *sinks: str, kind: str = "NEW") -> None:
        """Only these sinks, and this kind of events."""
        self.sinks, self.kind = sinks, kind
        self.tallies = {name: Tally(name, kind) for name in sinks}

    @contextmanager
    def daemon(
        self,
        *arguments: str,
        descriptor: int | None = None,
        prefix: Sequence[str] = (),
        program: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
    ) -> Iterator[Running]:
        """`conntrackd run` on the router's NEW events of UDP, with the receivers as its sinks."""
        line = [*(program or command()), "run", *arguments]
        line = ["unshare", "-m", "sh", "-c", MOUNT, os.fspath(self.directory / "run"), *prefix, *line]
        env = environment(**self._list_settings(), **(extra or {}))
        if descriptor is not None:
            pass_on = 'exec 3<&"$0"; export LISTEN_PID=$$; exec "$@"'
            line = ["bash", "-c", pass_on, str(descriptor), *line]
            env |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "events"}
        with start(Running, line, env, [] if descriptor is None else [descriptor]) as running:
            yield running
        assert not running.has_said("Traceback"), running.said

    def _list_settings(self) -> dict[str, str]:
        """In the environment, so that a test's own arguments go before them."""
        receivers = self.receivers
        settings = {
            "conntrack.netns": self.producer.network.router,
            "conntrack.events": self.kind.lower(),
            "conntrack.protocols": "udp",
            "sink.stream.writer": f"file://{receivers.stream.path}",
            "sink.syslog.address": receivers.syslog.address,
            "sink.loki.address": f"http://127.0.0.1:{receivers.loki_port}",
            "sink.loki.batch_wait": "100ms",
            "sink.loki.timeout": "2s",
            **{f"sink.{name}.enable": "true" for name in self.sinks},
        }
        return {f"CONNTRACKD_{key.upper().replace('.', '_')}": value for key, value in settings.items()}

    def read(self) -> None:
        """What has arrived by now."""
        for name, receiver in self.receivers.list_all().items():
            if name in self.tallies:
                self.tallies[name].add(receiver.take())

    def wait_for_law(self, seconds: float = 30.0, **uncounted: int) -> None:
        """Until every sink has accounted for all that was sent, less what is known not to come."""
        less = sum(uncounted.values())
        wait_until(lambda: self._is_accounted(less), seconds, self.describe)

    def _is_accounted(self, less: int) -> bool:
        self.read()
        return all(tally.accounted >= self.producer.sent - less for tally in self.tallies.values())

    def describe(self) -> str:
        """For a test that fails."""
        return f"sent {self.producer.sent}: " + ", ".join(
            f"{tally.name} {tally.delivered}+{tally.lost}+{dict(tally.dropped)}"
            for tally in self.tallies.values()
        )

    def send_fresh(self, seconds: float = FRESH_SECONDS) -> None:
        """After the fault one fresh flow arrives everywhere in time."""
        self.producer.send(1)
        self.delay = self.wait_for_number(self.producer.sent - 1, seconds)

    def wait_for_number(self, number: int, seconds: float = 30.0) -> float:
        """Until this flow has arrived everywhere; how long that took."""
        begin = time.monotonic()
        self.wait_for_numbers({number}, seconds=seconds)
        return time.monotonic() - begin

    def wait_for_numbers(self, numbers: set[int], *sinks: str, seconds: float = 30.0) -> None:
        """Until all of these flows have arrived in these sinks, or in all."""

        def are_there() -> bool:
            self.read()
            return all(numbers <= self.tallies[name].seen.keys() for name in sinks or self.sinks)

        wait_until(are_there, seconds, self.describe)

    def measure(self, running: Running) -> None:
        """The most memory that the daemon ever held."""
        for line in Path(f"/proc/{running.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.memory_kib = max(self.memory_kib, int(line.split()[1]))

    def finish(self, running: Running, *, law: float = 30.0, fresh: float = FRESH_SECONDS) -> None:
        """Until all is accounted for and a fresh flow has arrived everywhere; the daemon stops well."""
        self.wait_for_law(law)
        self.send_fresh(fresh)
        self.measure(running)
        assert running.stop() == 0

    def evaluate(
        self, row: int, fault: str, *, filtered: int = 0, duplicates: int = 0, died: int = 0, kills: int = 0
    ) -> Verdict:
        """Reads what came last, judges, and notes the figures."""
        self.read()
        verdict = evaluate(
            self.producer.sent,
            list(self.tallies.values()),
            filtered=filtered,
            duplicates=duplicates,
            died=died,
            kills=kills,
        )
        note(make_row(row, fault, verdict, self.memory_kib, self.delay))
        return verdict
