"""Calls the daemon until standard input is closed: python -m bench.caller ADDRESS UID CALLS_PER_SECOND."""

import asyncio
import os
import select
import sys
import time
from typing import Final

from dbus_fast import Message

from conntrackd.bus.names import MANAGER, MANAGER_PATH, NAME
from conntrackd.bus.transport import Transport

SLICES: Final = 100  # in a second


async def flood(bus: Transport, rate: int) -> int:
    """The number of calls that the bus has taken. Nobody looks at the answers."""
    sent, begin = 0, time.monotonic()
    while not select.select([0], [], [], 0)[0]:
        calls = [Message(NAME, MANAGER_PATH, MANAGER, "GetStatistics") for _ in range(rate // SLICES)]
        await asyncio.gather(*map(bus.send, calls))
        sent += len(calls)
        await asyncio.sleep(max(0.0, begin + sent / rate - time.monotonic()))
    return sent


async def run(address: str, rate: int) -> None:
    bus = Transport(address)
    await bus.connect()
    print("ready", flush=True)
    print(await flood(bus, rate), flush=True)
    bus.end()


def main() -> None:
    address, user, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    asyncio.run(run(address, rate))


if __name__ == "__main__":
    main()
