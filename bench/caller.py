"""Calls the daemon until standard input is closed: python -m bench.caller ADDRESS UID CALLS_PER_SECOND."""

import os
import select
import socket
import sys
import time
from typing import Final

from conntrackd.bus import wire
from conntrackd.bus.client import MANAGER, NAME, PATH, Client

SLICES: Final = 100  # in a second


class Caller(Client):
    """Sends without waiting for the answers, which it throws away."""

    def connect(self) -> socket.socket:
        self._connect()
        assert self._socket is not None
        return self._socket


def flood(sock: socket.socket, rate: int) -> int:
    """The number of calls that the bus has taken."""
    header = wire.Header(
        wire.METHOD_CALL, serial=2, path=PATH, interface=MANAGER, member="GetStatistics", destination=NAME
    )
    data = wire.encode_call(header, []) * (rate // SLICES)
    sent, begin = 0, time.monotonic()
    while not select.select([0], [], [], max(0.0, begin + sent / rate - time.monotonic()))[0]:
        sock.sendall(data)
        sent += rate // SLICES
        while select.select([sock], [], [], 0)[0] and sock.recv(1 << 20):
            pass
    return sent


def main() -> None:
    address, user, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    caller = Caller(address, {})
    sock = caller.connect()
    print("ready", flush=True)
    print(flood(sock, rate), flush=True)
    caller.close()


if __name__ == "__main__":
    main()
