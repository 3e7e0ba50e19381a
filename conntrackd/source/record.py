"""Writes what the kernel sends to a file, as it came: for a replay, or a report of a fault."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from conntrackd.engine import load_engine
from conntrackd.files import name_standard
from conntrackd.flow import ALL_EVENTS
from conntrackd.netlink import tracking
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.recording import write_batch
from conntrackd.netlink.socket import EventSocket

BUFFER: Final = 64 << 20
PATIENCE_MS: Final = 250
STANDARD: Final = Path("-")


def record(path: Path, limit: int | None, namespace: str | None, report: Callable[[str], None]) -> int:
    """Until `limit` messages are written, or SIGINT or SIGTERM. Returns their number. `-` is standard output.

    `report` gets what a person should know meanwhile. Raises OSError for the file, ConntrackdError for the
    socket.
    """
    count = 0
    with ExitStack() as stack:
        with enter(namespace, "--netns"):
            if tracking.is_tracking() is False:
                report(
                    f"warning: {tracking.NOT_TRACKED}\n"
                    "hint: 'conntrackd run --conntrack.activate', or a firewall rule with 'ct state'"
                )
            events = EventSocket.open(groups=ALL_EVENTS, buffer=BUFFER)
        stack.callback(events.close)
        file = stack.enter_context(_open(path))
        asked = stack.enter_context(_notice_signals())
        batch = load_engine().open_batch()
        report(f"recording to {name_output(path)}" + ("" if limit else ", until ^C"))
        while not asked and (limit is None or count < limit):
            datagrams, *_ = batch.receive(events.fileno(), PATIENCE_MS, 0)
            if datagrams:
                count += write_batch(file, batch, datagrams if limit is None else limit - count)
                file.flush()  # who reads a pipe has them when they come
    return count


def name_output(path: Path) -> str:
    """What is written to, for people."""
    return name_standard(1) if path == STANDARD else str(path)


def _open(path: Path) -> BinaryIO:
    return open(1, "wb", closefd=False) if path == STANDARD else path.open("wb")


@contextmanager
def _notice_signals() -> Iterator[list[int]]:
    """A list that is no longer empty when somebody wants an end."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
