"""What /proc knows about a process that listens: its netlink socket, its CPU time, its memory."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NETLINK_NETFILTER: Final = 12  # include/uapi/linux/netlink.h
CPUCLOCK_SCHED: Final = 2  # include/linux/posix-timers.h: what a process has run, in nanoseconds


@dataclass(frozen=True, slots=True)
class Listener:
    """A process's part in /proc/net/netlink: which groups, bytes queued, events dropped."""

    inode: int
    groups: int
    queued: int
    drops: int


def parse_listeners(text: str) -> list[Listener]:
    """The sockets of /proc/net/netlink that have joined netfilter groups."""
    listeners = []
    for line in text.splitlines()[1:]:
        _sk, family, _pid, groups, rmem, _wmem, _dump, _locks, drops, inode = line.split()
        if int(family) == NETLINK_NETFILTER and int(groups, 16):
            listeners.append(Listener(int(inode), int(groups, 16), int(rmem), int(drops)))
    return listeners


def list_sockets(pid: int) -> set[int]:
    """The inodes of the sockets that a process holds; empty when it has ended."""
    inodes = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    except FileNotFoundError:  # a descriptor closed while we looked
        pass
    return inodes


def find_listener(pid: int) -> Listener | None:
    """What the process's sockets have together, in this network namespace; None where it has none."""
    sockets = list_sockets(pid)
    listeners = parse_listeners(Path("/proc/net/netlink").read_text())
    return add_listeners([listener for listener in listeners if listener.inode in sockets])


def add_listeners(listeners: Sequence[Listener]) -> Listener | None:
    """Several sockets of one process, which share the events, as one; `inode` is the first's."""
    if not listeners:
        return None
    return Listener(
        listeners[0].inode,
        listeners[0].groups,
        sum(listener.queued for listener in listeners),
        sum(listener.drops for listener in listeners),
    )


def parse_switches(status: str) -> int:
    """How often a thread has left its core, waiting or not: the two counts of /proc/PID/task/TID/status."""
    return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches:" in line)


def count_switches(pid: int) -> int:
    """The same of all threads of a process: as often they were woken."""
    return sum(parse_switches(path.read_text()) for path in Path(f"/proc/{pid}/task").glob("*/status"))


def read_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, user and kernel, those that have ended included."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)


def read_memory_kib(pid: int, name: str) -> int:
    """`VmHWM` (the peak since it was executed) or `VmRSS` of a process.

    Not ru_maxrss: a child's includes what its parent had resident at the time of the fork.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0
