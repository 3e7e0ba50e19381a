"""Reads the metrics until standard input is closed: python -m bench.scraper PORT SCRAPES_PER_SECOND."""

import select
import socket
import sys
import time
from typing import Final

REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK: Final = b"HTTP/1.1 200 "
PATIENCE_S: Final = 10.0


def scrape(port: int) -> bytes:
    """The answer. Raises OSError."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        client.sendall(REQUEST)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def repeat(port: int, rate: int) -> int:
    """How often the page came, one after the other."""
    asked, came, begin = 0, 0, time.monotonic()
    while not select.select([0], [], [], max(0.0, begin + asked / rate - time.monotonic()))[0]:
        came += scrape(port).startswith(OK)
        asked += 1
    return came


def main() -> None:
    port, rate = int(sys.argv[1]), int(sys.argv[2])
    end = time.monotonic() + PATIENCE_S
    while True:  # until the daemon listens
        try:
            scrape(port)
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    print("ready", flush=True)
    print(repeat(port, rate), flush=True)


if __name__ == "__main__":
    main()
