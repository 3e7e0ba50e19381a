"""Several sockets, each with a share of the flows: the kernel cuts them by the id of the flow.

All events of a flow come to one socket, and so in their order: each of them has the id.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from conntrackd import bpf
from conntrackd.bpf import Instruction
from conntrackd.netlink.constants import CTA_ID, NFGENMSG_LEN, NLA_HDRLEN, NLMSG_HDRLEN
from conntrackd.netlink.socket import EventSocket, Fill

NAME: Final = "events"
NAME_FORM: Final = re.compile(rf"{NAME}(?:-(\d+)-of-(\d+))?")


class SocketShare(NamedTuple):
    """Part `number`, from 0, of `total`."""

    number: int
    total: int

    @property
    def name(self) -> str:
        """Of its socket in systemd's store of descriptors."""
        return NAME if self.total == 1 else f"{NAME}-{self.number}-of-{self.total}"


def list_shares(total: int) -> list[SocketShare]:
    """All of them."""
    return [SocketShare(number, total) for number in range(total)]


def is_name(name: str) -> bool:
    """Whether a socket of events is stored under it."""
    return NAME_FORM.fullmatch(name) is not None


def is_whole(names: Collection[str]) -> bool:
    """Whether the sockets of these names have all shares of some number of readers."""
    totals = {int(match[2] or 1) for name in names if (match := NAME_FORM.fullmatch(name))}
    return any(all(share.name in names for share in list_shares(total)) for total in totals)


def compile_share(share: SocketShare, program: bytes | None) -> bytes | None:
    """The program that lets through what is in the share and what `program` lets through of it."""
    if share.total == 1:
        return program
    rest = program or bpf.assemble([Instruction(bpf.RET, 0, 0, bpf.ALL_BYTES)])
    # An event without an id belongs to the first share; none is known that has none.
    without_id = 5 if share.number == 0 else 4
    head = [
        Instruction(bpf.LD_IMM, 0, 0, NLMSG_HDRLEN + NFGENMSG_LEN),
        Instruction(bpf.LDX_IMM, 0, 0, CTA_ID),
        Instruction(bpf.LD_WORD, 0, 0, (bpf.SKF_AD_OFF + bpf.SKF_AD_NLATTR) & bpf.ALL_BYTES),
        Instruction(bpf.JEQ, without_id, 0, 0),
        Instruction(bpf.TAX, 0, 0, 0),
        Instruction(bpf.LD_INDIRECT[4], 0, 0, NLA_HDRLEN),
        Instruction(bpf.MOD, 0, 0, share.total),
        Instruction(bpf.JEQ, 1, 0, share.number),
        Instruction(bpf.RET, 0, 0, 0),
    ]
    return bpf.assemble(head) + rest


class EventSockets:
    """One for each share; to who changes the filter or asks how full they are, as if it were one."""

    def __init__(self, sockets: Mapping[SocketShare, EventSocket]) -> None:
        self.sockets = dict(sorted(sockets.items()))

    @classmethod
    def open(cls, total: int, *, groups: int, buffer: int, program: bytes | None = None) -> "EventSockets":
        """See EventSocket.open(). The buffer is that of each."""
        opened: dict[SocketShare, EventSocket] = {}
        try:
            for share in list_shares(total):
                opened[share] = open_share(share, groups=groups, buffer=buffer, program=program)
        except BaseException:
            for events in opened.values():
                events.close()
            raise
        return cls(opened)

    @property
    def has_room(self) -> bool:
        """Whether the kernel has taken the last program that each was given."""
        return all(events.has_room for events in self.sockets.values())

    def attach(self, program: bytes | None) -> None:
        """Replace each one's program; None lets every event through."""
        for share, events in self.sockets.items():
            whole = compile_share(share, program)
            if whole is None:
                events.detach()
            else:
                events.attach(whole)

    def join(self, groups: int) -> None:
        """Hear of these events from now on."""
        self._do(lambda events: events.join(groups))

    def leave(self, groups: int) -> None:
        """No longer hear of these events."""
        self._do(lambda events: events.leave(groups))

    def close(self) -> None:
        self._do(EventSocket.close)

    def measure_buffer(self) -> int:
        """The size of the smallest buffer, in the bytes that were asked for: the kernel doubles them."""
        return min(events.measure().size for events in self.sockets.values()) // 2

    def measure(self) -> Fill:
        """The sums of all."""
        fills = [events.measure() for events in self.sockets.values()]
        return Fill(*map(sum, zip(*fills, strict=True)))

    def _do(self, action: Callable[[EventSocket], None]) -> None:
        for events in self.sockets.values():
            action(events)


def open_share(share: SocketShare, *, groups: int, buffer: int, program: bytes | None) -> EventSocket:
    """A socket for one share of these events."""
    return EventSocket.open(groups=groups, buffer=buffer, program=compile_share(share, program))
