"""Real messages for the measurements of single parts: what the kernel emits for the generator's flows."""

import socket
from dataclasses import dataclass

from bench.arena import Load, finish_generator, start_generator
from bench.proc import NETLINK_NETFILTER
from bench.subject import GENERATOR_CORE

SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
GROUPS = 7  # NEW, UPDATE, DESTROY


@dataclass(frozen=True, slots=True)
class Capture:
    """Datagrams side by side in one buffer, as recvmmsg leaves them in its slots."""

    buffer: bytearray
    positions: list[int]
    lengths: list[int]


def capture(load: Load) -> Capture:
    """All events of this load, in their order. Needs the namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 512 << 20)
        listener.bind((0, GROUPS))
        traffic = finish_generator(start_generator(load, GENERATOR_CORE))
        messages = [listener.recv(4096) for _ in range(traffic.events)]
    buffer, positions = bytearray(), []
    for message in messages:
        positions.append(len(buffer))
        buffer += message
    return Capture(buffer, positions, [len(message) for message in messages])
