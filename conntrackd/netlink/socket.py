"""The sockets of events: open, join groups, size the buffer, attach a BPF program, count losses.

With several readers there is one for each, with a share of the flows: the kernel cuts them by the flow's id.
All events of a flow have it, so they come to one socket, and in their order. Nothing is received here: that
is the engine's (core/receive.c).
"""

import errno
import os
import re
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from conntrackd import bpf, resources
from conntrackd.bpf import Instruction
from conntrackd.errors import ConntrackdError, NotPermittedError, UnavailableError
from conntrackd.flow import EventType
from conntrackd.netlink import constants as c

GROUPS: Final = {
    EventType.NEW: c.NFNLGRP_CONNTRACK_NEW,
    EventType.UPDATE: c.NFNLGRP_CONNTRACK_UPDATE,
    EventType.DESTROY: c.NFNLGRP_CONNTRACK_DESTROY,
}

MEMINFO: Final = struct.Struct(f"={c.SK_MEMINFO_VARS}I")
SOCK_FPROG: Final = struct.Struct("@HP")  # how many instructions, and where they are
NAME: Final = "events"
NAME_FORM: Final = re.compile(rf"{NAME}(?:-(\d+)-of-(\d+))?")


class Fill(NamedTuple):
    """SO_MEMINFO: bytes queued, size of the buffer, events dropped since the socket was opened."""

    used: int
    size: int
    drops: int


class EventSocket:
    """A netlink socket that hears of conntrack events."""

    def __init__(self, netlink: socket.socket) -> None:
        self._socket = netlink
        self.has_room = True
        """Whether the kernel has taken the last program that it was given."""

    @classmethod
    def open(cls, *, groups: int, buffer: int, program: bytes | None = None) -> "EventSocket":
        """Groups are EventType bits, the buffer is in bytes, the program an array of struct sock_filter.

        Raises NotPermittedError without CAP_NET_ADMIN, UnavailableError without conntrack in the kernel.
        """
        netlink = open_netlink()
        try:
            netlink.setsockopt(c.SOL_NETLINK, c.NETLINK_NO_ENOBUFS, 1)
            _set_buffer(netlink, buffer)
            opened = cls(netlink)
            if program is not None:
                opened.attach(program)
            opened.join(groups)
        except BaseException:
            netlink.close()
            raise
        return opened

    @classmethod
    def adopt(cls, descriptor: int, *, buffer: int) -> "EventSocket":
        """Take over a socket that open() made in an earlier process, with what is queued in it.

        It has to be of this thread's network namespace, as one of open() would be.
        Raises UnavailableError for anything else; the descriptor is closed then.
        """
        netlink = adopt_netlink(descriptor, _describe_fault)
        netlink.setblocking(True)  # the flag is the socket's, and whoever had it may have set it
        netlink.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of the past, and gone with this
        _set_buffer(netlink, buffer)
        adopted = cls(netlink)
        adopted.set_reliable(False)
        return adopted

    def read_groups(self) -> int:
        """The groups that are joined, EventType bits."""
        mask = _list_memberships(self._socket)
        return sum(bit for bit, group in GROUPS.items() if mask >> group - 1 & 1)

    def read_namespace(self) -> bytes:
        """The cookie of the network namespace that the socket listens to; see read_namespace()."""
        return read_namespace(self._socket)

    def fileno(self) -> int:
        """The descriptor, for poll and for systemd's store."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leave all groups. A thread that waits in receive must be woken first: it does not notice."""
        self._socket.close()

    def join(self, groups: int) -> None:
        """Hear of these events from now on."""
        self._change_groups(c.NETLINK_ADD_MEMBERSHIP, groups)

    def leave(self, groups: int) -> None:
        """No longer hear of these events; where nobody does, the kernel does not even build the message."""
        self._change_groups(c.NETLINK_DROP_MEMBERSHIP, groups)

    def attach(self, program: bytes) -> None:
        """Let the kernel ask this BPF program before it queues an event. Replaces another one atomically.

        Where net.core.optmem_max leaves no room for it, every event is queued: see `has_room`.
        """
        self.has_room = self._try_attach(program)
        if not self.has_room:  # perhaps there is without the old one, which is charged until it is replaced
            self.detach()
            self.has_room = self._try_attach(program)

    def _try_attach(self, program: bytes) -> bool:
        try:
            attach_program(self._socket, program)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return False
        return True

    def detach(self) -> None:
        """Queue every event again."""
        self.has_room = True
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, c.SO_DETACH_FILTER, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:  # there was no program
                raise

    def set_reliable(self, is_reliable: bool) -> None:
        """Let the kernel keep a flow whose DESTROY had no room, and retry. Dangerous: see table_guard.py."""
        self._socket.setsockopt(c.SOL_NETLINK, c.NETLINK_BROADCAST_ERROR, int(is_reliable))

    def measure(self) -> Fill:
        """How full the buffer is and how many events it had no room for."""
        return measure(self._socket)

    def _change_groups(self, option: int, groups: int) -> None:
        for event_type, group in GROUPS.items():
            if groups & event_type:
                try:
                    self._socket.setsockopt(c.SOL_NETLINK, option, group)
                except PermissionError as error:
                    raise _explain_permission() from error


# ---- shares of the flows -----------------------------------------------------------------------------


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
        Instruction(bpf.LD_IMM, 0, 0, c.NLMSG_HDRLEN + c.NFGENMSG_LEN),
        Instruction(bpf.LDX_IMM, 0, 0, c.CTA_ID),
        Instruction(bpf.LD_WORD, 0, 0, (bpf.SKF_AD_OFF + bpf.SKF_AD_NLATTR) & bpf.ALL_BYTES),
        Instruction(bpf.JEQ, without_id, 0, 0),
        Instruction(bpf.TAX, 0, 0, 0),
        Instruction(bpf.LD_INDIRECT[4], 0, 0, c.NLA_HDRLEN),
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


# ---- any socket of netlink -----------------------------------------------------------------------------


def measure(netlink: socket.socket) -> Fill:
    """How full the buffer of a netlink socket is, and how many events it had no room for: 0.7 us."""
    words = MEMINFO.unpack(netlink.getsockopt(socket.SOL_SOCKET, c.SO_MEMINFO, MEMINFO.size))
    return Fill(words[c.SK_MEMINFO_RMEM_ALLOC], words[c.SK_MEMINFO_RCVBUF], words[c.SK_MEMINFO_DROPS])


def attach_program(sock: socket.socket, program: bytes) -> None:
    """Let this BPF program, an array of struct sock_filter, decide what is queued for the socket."""
    instructions = array("B", program)  # holds them where they are for as long as the kernel reads
    address, size = instructions.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, c.SO_ATTACH_FILTER, SOCK_FPROG.pack(size // 8, address))


def _describe_fault(netlink: socket.socket) -> str:
    """In what a socket is not like one of open(); empty for nothing."""
    fault = describe_foreign(netlink)
    if fault:
        return fault
    if not netlink.getsockopt(c.SOL_NETLINK, c.NETLINK_NO_ENOBUFS):
        return "a socket that stops at an overrun"
    if netlink.getsockopt(socket.SOL_SOCKET, c.SO_LOCK_FILTER):
        return "a socket whose filter is locked"
    ours = sum(1 << group - 1 for group in GROUPS.values())
    return "a socket of other groups" if _list_memberships(netlink) & ~ours else ""


def adopt_netlink(descriptor: int, describe_fault: Callable[[socket.socket], str]) -> socket.socket:
    """A socket of an earlier process. Raises UnavailableError for anything else, which is closed."""
    try:
        netlink = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise UnavailableError("the stored descriptor is not a socket") from error
    if fault := describe_fault(netlink):
        netlink.close()
        raise UnavailableError(f"the stored descriptor is {fault}")
    return netlink


def describe_foreign(netlink: socket.socket) -> str:
    """In what a socket is not like one of open_netlink() here; empty for nothing."""
    if netlink.family != socket.AF_NETLINK or netlink.proto != c.NETLINK_NETFILTER:
        return "not a netfilter netlink socket"
    if not netlink.getsockname()[0]:
        return "a socket that is not bound, and hears nothing"
    with open_netlink() as fresh:
        is_here = read_namespace(netlink) == read_namespace(fresh)
    return "" if is_here else "a socket of another network namespace"


def read_namespace(netlink: socket.socket) -> bytes:
    """The cookie of the socket's network namespace; empty before Linux 5.14."""
    try:
        return netlink.getsockopt(socket.SOL_SOCKET, c.SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def _list_memberships(netlink: socket.socket) -> int:
    """Group n is bit n - 1."""
    words = netlink.getsockopt(c.SOL_NETLINK, c.NETLINK_LIST_MEMBERSHIPS, 64)
    return int.from_bytes(words, sys.byteorder)


def open_netlink() -> socket.socket:
    """A socket of netfilter's netlink, in this thread's network namespace. Raises UnavailableError."""
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, c.NETLINK_NETFILTER)
        # As bind() does it gives the socket its port; bind() itself the service is not permitted.
        netlink.connect((0, 0))
    except OSError as error:
        resources.raise_descriptors(error)
        raise UnavailableError(
            f"this kernel offers no netfilter netlink socket: {error.strerror}",
            hint="modprobe nf_conntrack_netlink, or use a kernel with CONFIG_NF_CT_NETLINK",
        ) from error
    return netlink


def _set_buffer(netlink: socket.socket, size: int) -> None:
    # The kernel doubles what it is asked for, for its own overhead, and takes an int.
    size = min(size, 2**30 - 1)
    try:
        netlink.setsockopt(socket.SOL_SOCKET, c.SO_RCVBUFFORCE, size)
    except PermissionError:
        # Without CAP_NET_ADMIN in the first user namespace: net.core.rmem_max is the bound. Read it back.
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def _explain_permission() -> ConntrackdError:
    return NotPermittedError(
        "not permitted to listen to conntrack events: CAP_NET_ADMIN is missing",
        hint="run it as root (sudo), or as a service: systemctl start conntrackd",
    )
