"""netlink/shares.py: the program that gives each socket its share of the flows, tried in the kernel."""

import socket

import pytest

from conntrackd import bpf
from conntrackd.netlink.shares import compile_share, list_shares
from conntrackd.netlink.socket import attach_program
from tests.messages import build_message
from tests.sinks.flows import make_flow

MESSAGES = [build_message(make_flow(number * 0x9E3779B1 % (1 << 32))) for number in range(60)]


def test_a_program_of_rules_leaves_room_for_what_cuts_the_shares() -> None:
    """ROOM is what the compiler of rules may fill."""
    for share in list_shares(3):
        rules = bpf.assemble([bpf.Instruction(bpf.RET, 0, 0, bpf.ALL_BYTES)] * bpf.ROOM)
        program = compile_share(share, rules)

        assert program is not None
        assert len(program) == 8 * bpf.BPF_MAXINSNS


def list_passed(program: bytes | None) -> list[bool]:
    """Which of the messages the kernel lets through to a socket with this program."""
    assert program is not None
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.setblocking(False)
        attach_program(receiver, program)
        found = []
        for message in MESSAGES:
            sender.send(message)
            try:
                found.append(receiver.recv(1 << 16) == message)
            except BlockingIOError:
                found.append(False)
        return found


@pytest.mark.parametrize("total", [2, 3, 7])
def test_every_event_is_in_one_share(total: int) -> None:
    found = [list_passed(compile_share(share, None)) for share in list_shares(total)]

    assert [sum(shares) for shares in zip(*found, strict=True)] == [1] * len(MESSAGES)
    assert all(any(share) for share in found)
