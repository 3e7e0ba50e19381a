"""The daemon with a fault built in: kills itself at a named point, or lets its reader stand still.

    python -m tests.faults.hooked POINT COUNTDOWN DIRECTORY run ...

At the COUNTDOWN-th pass of POINT the process sends itself SIGKILL. In DIRECTORY it notes how many events it
has read (`read`, a number a line) and what its spool has acknowledged (`spooled`, a body a line).
POINT `standstill`: the reader stops going round as soon as there is a file `stand` in DIRECTORY.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conntrackd.cli.daemon import main
from conntrackd.delivery.batch import compress, unpack_batch
from conntrackd.delivery.spool import Spool
from conntrackd.delivery.store import PackedBatch
from conntrackd.engine import EventBatch
from conntrackd.pipeline import Pipeline
from conntrackd.reader import Reader
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.http import HttpConnection
from conntrackd.sinks.loki import PUSH, Loki
from conntrackd.sinks.loki_push import gather_streams, write_streams

POINTS = ("received", "selected", "spooled", "sent", "acknowledged")


class Trap:
    """Counts how often the point is passed."""

    def __init__(self, point: str, countdown: int) -> None:
        self._point = point
        self._left = countdown

    def pass_by(self, name: str) -> None:
        if name == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Puts `around(original, self, ...)` in the place of a method."""
    original = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **named: around(original, self, *args, **named))


def set_trap(trap: Trap, directory: Path) -> None:
    read, spooled = (directory / name for name in ("read", "spooled"))

    def process(original: Callable[..., Any], self: Reader, batch: EventBatch, *numbers: int) -> None:
        with read.open("a") as file:
            file.write(f"{numbers[0]}\n")
        trap.pass_by("received")
        original(self, batch, *numbers)

    def count(original: Callable[..., Any], self: Pipeline, *selected: Any) -> None:
        original(self, *selected)
        trap.pass_by("selected")

    def append(original: Callable[..., Any], self: Spool, batches: list[PackedBatch], **named: Any) -> Any:
        gone = original(self, batches, **named)
        with spooled.open("a") as file:
            for parts in (unpack_batch(packed.payload).parts for packed in batches):
                file.write(f"{compress(write_streams(gather_streams(parts), {})).hex()}\n" if parts else "")
        trap.pass_by("spooled")
        return gone

    def request(
        original: Callable[..., Any], self: HttpConnection, method: str, path: str, *args: Any
    ) -> Any:
        reply = original(self, method, path, *args)
        if path == PUSH and reply.status == 204:
            trap.pass_by("sent")
        return reply

    def write(original: Callable[..., Any], self: Loki, parts: Sequence[Rendered]) -> Any:
        written = original(self, parts)
        trap.pass_by("acknowledged")
        return written

    wrap(Reader, "process", process)
    wrap(Pipeline, "count", count)
    wrap(Spool, "append", append)
    wrap(HttpConnection, "request", request)
    wrap(Loki, "write", write)


def let_stand_still(directory: Path) -> None:
    def turn(original: Callable[..., Any], self: Reader, *arguments: Any, **named: Any) -> Any:
        if (directory / "stand").exists():
            threading.Event().wait()
        return original(self, *arguments, **named)

    wrap(Reader, "_turn", turn)


if __name__ == "__main__":
    chosen, number, where = sys.argv[1:4]
    sys.argv[1:4] = []
    if chosen == "standstill":
        let_stand_still(Path(where))
    else:
        set_trap(Trap(chosen, int(number)), Path(where))
    main()
