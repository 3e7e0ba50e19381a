"""The connection table of a network namespace: how full it is, and what is in it. Nothing here changes it."""

import os
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from conntrackd.errors import UnavailableError
from conntrackd.netlink import constants as c
from conntrackd.netlink.message import HEADER, pack_request, split
from conntrackd.netlink.socket import open_netlink, read_namespace

if TYPE_CHECKING:
    from conntrackd.engine import EventBatch

ANSWER_SECONDS: Final = 2.0
# The kernel fills what is asked for, and at most 32 KiB (net/netlink/af_netlink.c, netlink_dump()). A batch
# has room for 256 flows, and what is beyond is not read: one without ports takes 132 bytes, and 124 where the
# kernel gives no marks.
CHUNK_BYTES: Final = 256 * 124
# An attribute with a number in network byte order, and the errno of an NLMSG_ERROR.
NUMBER: Final = struct.Struct("=HH4s")
ERROR: Final = struct.Struct(f"{HEADER.format}i")


class TableFill(NamedTuple):
    """Flows in the table, those included whose DESTROY is not delivered yet, and how many it may hold."""

    entries: int
    limit: int


class ConntrackTable:
    """A socket of its own for questions about the table. Belongs to one thread.

    Opened in the thread's network namespace, and asks about that one ever after. Reading the table takes
    CAP_NET_ADMIN. Every method raises UnavailableError where the kernel refuses or does not answer.
    """

    def __init__(self) -> None:
        self._socket = open_netlink()
        self._socket.settimeout(ANSWER_SECONDS)

    def fileno(self) -> int:
        """The descriptor, for who inherits it."""
        return self._socket.fileno()

    def read_namespace(self) -> bytes:
        """The cookie of its network namespace; empty before Linux 5.14."""
        return read_namespace(self._socket)

    def close(self) -> None:
        """Ends a reading, too."""
        self._socket.close()

    def measure(self) -> TableFill:
        """How full it is. Not from /proc, which a sandbox may hide."""
        self._request(c.IPCTNL_MSG_CT_GET_STATS, 0)
        answer = self._receive()
        _raise_error(answer)
        numbers = _read_numbers(answer)
        if c.CTA_STATS_GLOBAL_ENTRIES not in numbers:
            raise UnavailableError("the kernel does not report how full the connection table is")
        return TableFill(numbers[c.CTA_STATS_GLOBAL_ENTRIES], numbers.get(c.CTA_STATS_GLOBAL_MAX_ENTRIES, 0))

    def read_cpus(self) -> dict[int, dict[int, int]]:
        """For each CPU its counters by CTA_STATS_*, as `conntrack -S` shows them. They wrap at 2^32."""
        self._request(c.IPCTNL_MSG_CT_GET_STATS_CPU, c.NLM_F_DUMP)
        cpus: dict[int, dict[int, int]] = {}
        while True:
            for message in split(self._receive()):
                _raise_error(message)
                if len(message) < HEADER.size or HEADER.unpack_from(message)[1] == c.NLMSG_DONE:
                    return cpus
                # struct nfgenmsg: res_id is the number of the CPU
                number = int.from_bytes(message[HEADER.size + 2 : HEADER.size + c.NFGENMSG_LEN])
                cpus[number] = _read_numbers(message)

    def begin(self) -> None:
        """Start to read the table, after an earlier reading has come to its end."""
        self._request(c.IPCTNL_MSG_CT_GET, c.NLM_F_DUMP)

    def read(self, batch: "EventBatch") -> bool:
        """The next flows, some 200, into the batch, as updates; False when there are no more.

        The kernel gathers them one call ahead: some may have ended since. A flow may come twice.
        """
        chunk = self._receive()
        _raise_error(chunk)
        batch.load(chunk, 0, time.time_ns())
        return len(batch) > 0

    def _request(self, kind: int, flags: int) -> None:
        try:
            self._socket.send(pack_request(c.NFNL_SUBSYS_CTNETLINK << 8 | kind, flags))
        except OSError as error:
            raise _explain(error) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(CHUNK_BYTES)
        except OSError as error:
            raise _explain(error) from error


def _read_numbers(message: bytes) -> dict[int, int]:
    """Attributes that are all numbers of 32 bits, by their type."""
    numbers = {}
    for offset in range(HEADER.size + c.NFGENMSG_LEN, len(message) - NUMBER.size + 1, NUMBER.size):
        _, kind, number = NUMBER.unpack_from(message, offset)
        numbers[kind] = int.from_bytes(number)
    return numbers


def _raise_error(message: bytes) -> None:
    """Where the kernel answers with an error."""
    if len(message) >= ERROR.size and HEADER.unpack_from(message)[1] == c.NLMSG_ERROR:
        raise _explain(OSError(-ERROR.unpack_from(message)[-1], ""))


def _explain(error: OSError) -> UnavailableError:
    reason = os.strerror(error.errno) if error.errno else "the kernel does not answer"
    return UnavailableError(f"the connection table cannot be read: {reason}")
