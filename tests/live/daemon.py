"""The daemon as a user starts it, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
Event = dict[str, Any]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "conntrackd", *arguments]


def ctl_command(*words: str) -> list[str]:
    """`conntrackctl` with these."""
    return [sys.executable, "-c", "from conntrackd.cli.ctl import main; main()", *words]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "CONNTRACKD_BUS_ENABLE": "false", **extra}


class Running:
    """A process whose lines are gathered as they come."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[bytes] = []
        self.said: list[str] = []
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._gather, args=(process.stdout, self.lines.append)),
            threading.Thread(
                target=self._gather, args=(process.stderr, lambda line: self.said.append(line.decode()))
            ),
        ]
        for thread in self._threads:
            thread.start()

    def _gather(self, stream: Any, add: Callable[[bytes], None]) -> None:
        for line in stream:
            with self._news:
                add(line)
                self._news.notify_all()
        stream.close()

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 15) -> None:
        """Until the condition holds, looked at with every new line."""
        with self._news:
            assert self._news.wait_for(condition, seconds), f"{what}: not in {seconds} s: {self.said}"

    def has_said(self, words: str) -> bool:
        return any(words in line for line in self.said)

    def wait_for_words(self, words: str, seconds: float = 15) -> None:
        self.wait(lambda: self.has_said(words), f"{words!r}", seconds)

    def wait_for_start(self) -> None:
        self.wait_for_words("listening")

    def wait_for_events(self, count: int) -> None:
        self.wait(lambda: len(self.lines) >= count, f"{count} events, have {len(self.lines)}")

    @property
    def events(self) -> list[Event]:
        return [json.loads(line) for line in self.lines]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status; nothing is lost by the signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(20)
        for thread in self._threads:
            thread.join(10)
        return status


R = TypeVar("R", bound=Running)


@contextmanager
def start(
    kind: type[R], line: Sequence[str], environ: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> Iterator[R]:
    """A process, stopped at the end in any case."""
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, cwd="/", env=environ, pass_fds=pass_fds) as process:
        running = kind(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            running.stop()


@contextmanager
def daemon(*arguments: str, prefix: Sequence[str] = (), **extra: str) -> Iterator[Running]:
    """`conntrackd run`."""
    with start(Running, [*prefix, *command("run", *arguments)], environment(**extra)) as running:
        yield running


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Any command, to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
        env=environment(**extra),
    )


def settle(running: Running, quiet: float = 0.3) -> None:
    """Until no event has come for a while."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < quiet:
        if len(running.lines) != seen:
            seen, since = len(running.lines), time.monotonic()
        threading.Event().wait(0.05)


def list_steps(events: list[Event]) -> dict[str, list[tuple[str, str]]]:
    """Type and state of each flow's events, in the order in which they were written."""
    steps: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for event in events:
        steps[event["flow"]].append((event["type"], event.get("state", "")))
    return steps
