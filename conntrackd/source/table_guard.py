"""Reliable DESTROY, and the process that ends it before the connection table is full.

Once the kernel is asked for reliable DESTROY events, a flow whose event had no room in the socket's buffer
stays in the table until it has. A reader that stands still then fills the table, and the kernel refuses every
new connection of the host. A process that stands still cannot watch itself, so that another one does: it goes
back to the kernel's usual way above LIMIT, and when the first one ends in whatever way.
"""

import mmap
import os
import select
import signal
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from conntrackd import resources
from conntrackd.errors import UnavailableError
from conntrackd.netlink.socket import EventSocket
from conntrackd.netlink.table import ConntrackTable

LIMIT: Final = 0.8
"""Of the table's entries."""
# How often the table is looked at, and how often when it is half as full as the limit. The kernel takes 0.1 s
# and more to let go of what it kept: 50,000 new flows a second are 2 % of a table of 262,144 in that time.
LOOK_SECONDS: Final = 0.1
CLOSE_LOOK_SECONDS: Final = 0.01

# What the two processes share: a state, and the kernel's counter of drops when it was reached.
WORDS: Final = struct.Struct("=II")
RELIABLE, RELEASING, RELEASED = range(3)


class Guard:
    """Asks for reliable DESTROY as long as it lives. Belongs to the process that made it."""

    def __init__(self, events: EventSocket, table: ConntrackTable) -> None:
        """`table` is of the events' network namespace. To be called before threads are started.

        Raises ResourceError where there may be no second process.
        """
        self._events = events
        self._words = mmap.mmap(-1, WORDS.size)
        end, self._alive = os.pipe()
        try:
            self._child = os.fork()
        except OSError as error:
            os.close(end)
            os.close(self._alive)
            raise resources.explain_guard(error) from error
        if self._child == 0:
            _be_guard(events, table, self._words, end)
        os.close(end)
        # Not before somebody watches: the socket may be in systemd's store, where it outlives this process.
        # And not if the guard has let go by now; where it does so later, it has the last word.
        events.set_reliable(True)
        if self.read_release()[0] != RELIABLE:
            events.set_reliable(False)

    def read_release(self) -> tuple[int, int]:
        """State and, when RELEASED, the drops up to then: they are not losses, all after them are.

        To be called after the counter was read. RELEASING: read it again before it is understood.
        """
        state, drops = WORDS.unpack(self._words)
        return state, drops

    def has_ended(self) -> bool:
        """Whether the other process is gone. Then the kernel's usual way is back."""
        if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
            self._child = 0
            _release(self._events, self._words)
        return self._child == 0

    def close(self) -> None:
        """Goes back to the kernel's usual way: nobody may have to read the socket from now on."""
        _release(self._events, self._words)
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
        os.close(self._alive)


def _release(events: EventSocket, words: mmap.mmap) -> None:
    if WORDS.unpack(words)[0] == RELEASED:
        return
    # In this order: who finds RELIABLE after the counter was read knows that it counted no loss. A repeat of
    # the kernel's between the next two lines is reported as a loss, which is better than the other way round.
    words[:] = WORDS.pack(RELEASING, 0)
    before = events.measure().drops
    events.set_reliable(False)
    words[:] = WORDS.pack(RELEASED, before)


def _be_guard(events: EventSocket, table: ConntrackTable, words: mmap.mmap, end: int) -> NoReturn:
    """All that the child ever does."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(
                number, signal.SIG_IGN
            )  # meant for the other one, whose end is the sign for this one
        _keep_only({0, 1, 2, events.fileno(), table.fileno(), end})
        with suppress(OSError):
            Path("/proc/self/comm").write_text("conntrack-guard")  # what ps and top show
        _watch(events, table, words, end)
    finally:
        os._exit(0)


def _keep_only(wanted: set[int]) -> None:
    """Nothing else is to stay open because of this process: no lock, no pipe, no file that was removed."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in wanted:
            with suppress(OSError):  # the one that listdir itself had open
                os.close(descriptor)


def _watch(events: EventSocket, table: ConntrackTable, words: mmap.mmap, end: int) -> None:
    poll = select.poll()
    poll.register(end, select.POLLIN)  # it ends, too, with POLLHUP
    pause = 0.0
    while not poll.poll(pause * 1000):
        try:
            fill = table.measure()
        except UnavailableError:  # who cannot see the danger does not stay in it
            break
        share = fill.entries / fill.limit if fill.limit else 0.0
        if share > LIMIT:
            break
        pause = LOOK_SECONDS if share < LIMIT / 2 else CLOSE_LOOK_SECONDS
    _release(events, words)
