"""Flows of one datagram each, to an address for each number: FIRST COUNT [slowly]."""

import ipaddress
import socket
import sys
import threading

FIRST = int(ipaddress.ip_address("127.1.0.1"))
PAUSE = 0.003  # 3,000 flows last as long as an upgrade, with its restart


def compute_address(number: int) -> str:
    """Of loopback, one for each number."""
    return str(ipaddress.ip_address(FIRST + number))


def main(first: int, count: int, *, slowly: bool) -> None:
    never = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 40_000))
        for number in range(first, first + count):
            sender.sendto(b"x", (compute_address(number), 9))
            if slowly:
                never.wait(PAUSE)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), slowly="slowly" in sys.argv)
