"""Notifications to systemd, and the descriptors that it passes: sd_notify(3), sd_listen_fds(3)."""

import array
import os
import re
import socket
import struct
import time
from collections.abc import Mapping
from typing import Final

# sd_listen_fds(3)
FIRST_DESCRIPTOR: Final = 3
# sd_pid_notify_with_fds(3): names of descriptors are at most this long, without colons and control characters
MAX_NAME: Final = 255
SEND_TIMEOUT: Final = struct.pack("@ll", 1, 0)  # struct timeval: a second
# More than any manager keeps for a service; a number that is none may be as large as it likes.
MAX_DESCRIPTORS: Final = 4096
Address = str | bytes | tuple[int, int]


def find_address(environ: Mapping[str, str]) -> Address | None:
    """Where the service manager listens; None where there is none, or where no datagram can reach it."""
    text = environ.get("NOTIFY_SOCKET", "")
    if text.startswith("/"):
        return text
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    match = re.fullmatch(r"vsock:(\d+):(\d+)", text)  # a virtual machine's manager, on the host
    return (int(match[1]), int(match[2])) if match else None


class Notifier:
    """Messages to the service manager. Never raises, never waits long: the service goes on without it.

    What comes again soon does not wait at all, for a manager that does not read or for a queue that is full.

    May be used by several threads: one message is one datagram.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = find_address(environ)

    def ready(self) -> bool:
        """The start, or a reload, is complete."""
        return self.send("READY=1")

    def reloading(self) -> bool:
        """A reload begins; ready() has to follow."""
        return self.send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        return self.send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(f"STATUS={' '.join(text.splitlines())}", waits=False)

    def watchdog(self) -> bool:
        """Alive. To be sent by, or for, the thread whose standstill should restart the service."""
        return self.send("WATCHDOG=1", waits=False)

    def extend_timeout(self, seconds: float) -> bool:
        """More time for the start or the stop that is under way."""
        return self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def store(self, name: str, descriptor: int) -> bool:
        """Keep this descriptor through a restart.

        FDPOLL=0: a socket of which an error is waiting to be read would be thrown out of the store.
        """
        return self.send(f"FDSTORE=1\nFDNAME={check_name(name)}\nFDPOLL=0", descriptor)

    def remove(self, name: str) -> bool:
        """Forget what was stored under this name."""
        return self.send(f"FDSTOREREMOVE=1\nFDNAME={check_name(name)}")

    def send(self, text: str, *descriptors: int, waits: bool = True) -> bool:
        """One datagram. False when nobody listens or it could not be sent."""
        if self._address is None:
            return False
        family = socket.AF_VSOCK if isinstance(self._address, tuple) else socket.AF_UNIX
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                # In the kernel, which wakes the sender when there is room. Of a socket that is not connected
                # poll() says at once that there is, and Python, with a timeout, would ask again and again.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)
                flags = 0 if waits else socket.MSG_DONTWAIT
                sock.sendmsg([text.encode()], ancillary if descriptors else [], flags, self._address)
        except OSError:
            return False
        return True


def check_name(name: str) -> str:
    """The name, which is one of ours. Raises ValueError where systemd would take it for something else."""
    if not name or len(name) > MAX_NAME or not name.isascii() or not name.isprintable() or ":" in name:
        raise ValueError(f"{name!r} cannot be the name of a descriptor")
    return name


def read_watchdog(environ: Mapping[str, str], pid: int | None = None) -> float:
    """Seconds within which the service manager wants a sign of life, 0 for never (sd_watchdog_enabled(3))."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        wanted = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return 0.0
    if wanted not in {0, os.getpid() if pid is None else pid}:
        return 0.0
    return max(0, microseconds) / 1_000_000


def take_descriptors(environ: dict[str, str], pid: int | None = None) -> dict[str, list[int]]:
    """The descriptors that the service manager passed, by name, closed on exec from now on.

    The variables are removed, so that no child takes them for its own. A name that was stored twice has two.
    """
    texts = [environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    try:
        wanted, number = int(texts[0]), int(texts[1])
    except ValueError:
        return {}
    if wanted != (os.getpid() if pid is None else pid):
        return {}
    names = texts[2].split(":") if texts[2] else []
    found: dict[str, list[int]] = {}
    for index in range(min(number, MAX_DESCRIPTORS)):
        descriptor = FIRST_DESCRIPTOR + index
        try:
            os.set_inheritable(descriptor, False)
        except OSError:  # closed by whoever started us
            continue
        found.setdefault(names[index] if index < len(names) else "unknown", []).append(descriptor)
    return found
