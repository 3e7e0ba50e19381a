"""An nftables table that makes the kernel track connections as long as its owner's socket is open.

The kernel removes a table with the flag `owner` (Linux 5.12) when the last descriptor of the socket that made
it is closed, in whatever way that happens, and lets nobody else remove it: `nft flush ruleset` leaves it.
So it needs no count of its users and no cleaning up; kept in systemd's store, it lasts through a restart.
"""

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from conntrackd.errors import ConntrackdError, NotPermittedError, UnavailableError
from conntrackd.netlink import constants as c
from conntrackd.netlink.message import (
    HEADER,
    MalformedError,
    pack_attribute,
    pack_number,
    pack_request,
    split,
    walk_attributes,
)
from conntrackd.netlink.socket import adopt_netlink, describe_foreign, open_netlink

TABLE: Final = "conntrackd"
"""Of the first process in a network namespace; a second one's has the number of its socket behind."""
CHAIN: Final = "track"
COMMENT: Final = b"connections are tracked while conntrackd runs"
NFPROTO_INET: Final = 1  # include/uapi/linux/netfilter.h
# libnftnl's udata.h, which nft shows as the table's comment
NFTNL_UDATA_TABLE_COMMENT: Final = 0
ANSWER_SECONDS: Final = 5.0
ANSWER_BYTES: Final = 1 << 16
CREATE: Final = c.NLM_F_CREATE | c.NLM_F_ACK
# What stands around a transaction: all of it, or nothing.
BEGIN: Final = pack_request(c.NFNL_MSG_BATCH_BEGIN, 0, resource=c.NFNL_SUBSYS_NFTABLES)
END: Final = pack_request(c.NFNL_MSG_BATCH_END, 0, resource=c.NFNL_SUBSYS_NFTABLES)
ZERO: Final = bytes(4)


class _Owned(NamedTuple):
    """A table of the family inet. The owner is the port id of its socket, 0 for none."""

    name: str
    owner: int


class TrackingTable:
    """Makes the kernel track connections in one network namespace until it is closed everywhere."""

    def __init__(self, netlink: socket.socket) -> None:
        """Takes the socket over. Raises ConntrackdError where the kernel refuses; it is closed then."""
        self._socket = netlink
        try:
            netlink.setblocking(True)
            netlink.settimeout(ANSWER_SECONDS)
            self.ensure()
        except BaseException:
            netlink.close()
            raise

    @classmethod
    def open(cls) -> "TrackingTable":
        """Create it in this thread's network namespace."""
        return cls(open_netlink())

    @classmethod
    def adopt(cls, descriptor: int) -> "TrackingTable":
        """Take over an earlier process's. Raises UnavailableError for anything else, which is closed."""
        return cls(adopt_netlink(descriptor, describe_foreign))

    def fileno(self) -> int:
        """The descriptor, for systemd's store."""
        return self._socket.fileno()

    def close(self) -> None:
        """Remove the table, unless systemd keeps the socket."""
        self._socket.close()

    def ensure(self) -> None:
        """Create the table unless it exists. Raises ConntrackdError."""
        try:
            tables = self._list_tables()
            port = self._socket.getsockname()[0]
            if any(table.owner == port for table in tables):
                return
            fault = self._make(TABLE, replaces=_Owned(TABLE, 0) in tables)
            if fault in {errno.EEXIST, errno.EPERM} and any(table.name == TABLE for table in tables):
                fault = self._make(f"{TABLE}-{port}", replaces=False)
            if fault:
                raise _explain(fault)
        except OSError as error:
            raise _explain(error.errno or errno.ETIMEDOUT) from error

    def _make(self, name: str, *, replaces: bool) -> int:
        """In one transaction. `replaces`: one of this name that is nobody's. An errno, 0 for none."""
        comment = bytes([NFTNL_UDATA_TABLE_COMMENT, len(COMMENT) + 1]) + COMMENT + b"\0"
        table = _text(c.NFTA_TABLE_NAME, name) + pack_number(c.NFTA_TABLE_FLAGS, c.NFT_TABLE_F_OWNER)
        table += pack_attribute(c.NFTA_TABLE_USERDATA, comment)
        chain = _text(c.NFTA_CHAIN_TABLE, name) + _text(c.NFTA_CHAIN_NAME, CHAIN)
        rule = _text(c.NFTA_RULE_TABLE, name) + _text(c.NFTA_RULE_CHAIN, CHAIN)
        messages = [
            _pack(c.NFT_MSG_DELTABLE, c.NLM_F_ACK, _text(c.NFTA_TABLE_NAME, name)),
            _pack(c.NFT_MSG_NEWTABLE, CREATE | c.NLM_F_EXCL, table),
            _pack(c.NFT_MSG_NEWCHAIN, CREATE, chain),
            _pack(c.NFT_MSG_NEWRULE, CREATE | c.NLM_F_APPEND, rule + _render_rule()),
        ][0 if replaces else 1 :]
        self._socket.send(b"".join((BEGIN, *messages, END)))
        return self._read_error(len(messages))

    def _read_error(self, expected: int) -> int:
        """The first errno of so many answers; where the whole is refused there is one."""
        answers = 0
        while answers < expected:
            for message in split(self._socket.recv(ANSWER_BYTES)):
                if HEADER.unpack_from(message)[1] == c.NLMSG_ERROR:
                    answers += 1
                    (code,) = struct.unpack_from("=i", message, HEADER.size)
                    if code:
                        self._drain()
                        return -int(code)
        return 0

    def _drain(self) -> None:
        """The answers behind an error, which are of the same transaction and are there already."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(ANSWER_BYTES):
                pass
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(ANSWER_SECONDS)

    def _list_tables(self) -> list[_Owned]:
        self._drain()
        self._socket.send(_pack(c.NFT_MSG_GETTABLE, c.NLM_F_DUMP))
        found: list[_Owned] = []
        while True:
            for message in split(self._socket.recv(ANSWER_BYTES)):
                answered = HEADER.unpack_from(message)[1]
                if answered == c.NLMSG_ERROR:
                    raise _explain(-struct.unpack_from("=i", message, HEADER.size)[0])
                if answered == c.NLMSG_DONE:
                    return found
                found.append(_read_table(message))


def _read_table(message: bytes) -> _Owned:
    name, owner = "", 0
    with suppress(MalformedError):
        for (kind,), value in walk_attributes(message[HEADER.size + c.NFGENMSG_LEN :]):
            if kind == c.NFTA_TABLE_NAME:
                name = value.rstrip(b"\0").decode(errors="replace")
            elif kind == c.NFTA_TABLE_OWNER:
                owner = int.from_bytes(value)
    return _Owned(name, owner)


def _render_rule() -> bytes:
    """`ct state new continue`: no packet comes to the chain, but the kernel tracks for whoever could ask."""
    register = pack_number(c.NFTA_CT_DREG, c.NFT_REG_1) + pack_number(c.NFTA_CT_KEY, c.NFT_CT_STATE)
    bit = pack_number(c.NFTA_BITWISE_SREG, c.NFT_REG_1) + pack_number(c.NFTA_BITWISE_DREG, c.NFT_REG_1)
    bit += pack_number(c.NFTA_BITWISE_LEN, 4)
    bit += _nest(
        c.NFTA_BITWISE_MASK, pack_attribute(c.NFTA_DATA_VALUE, struct.pack("=I", c.NFT_CT_STATE_NEW_BIT))
    )
    bit += _nest(c.NFTA_BITWISE_XOR, pack_attribute(c.NFTA_DATA_VALUE, ZERO))
    compare = pack_number(c.NFTA_CMP_SREG, c.NFT_REG_1) + pack_number(c.NFTA_CMP_OP, c.NFT_CMP_NEQ)
    compare += _nest(c.NFTA_CMP_DATA, pack_attribute(c.NFTA_DATA_VALUE, ZERO))
    verdict = _nest(c.NFTA_DATA_VERDICT, pack_number(c.NFTA_VERDICT_CODE, c.NFT_CONTINUE))
    go_on = pack_number(c.NFTA_IMMEDIATE_DREG, c.NFT_REG_VERDICT) + _nest(c.NFTA_IMMEDIATE_DATA, verdict)
    parts = (("ct", register), ("bitwise", bit), ("cmp", compare), ("immediate", go_on))
    expressions = [
        _nest(c.NFTA_LIST_ELEM, _text(c.NFTA_EXPR_NAME, name) + _nest(c.NFTA_EXPR_DATA, data))
        for name, data in parts
    ]
    return _nest(c.NFTA_RULE_EXPRESSIONS, b"".join(expressions))


def _nest(kind: int, value: bytes) -> bytes:
    return pack_attribute(kind | c.NLA_F_NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return pack_attribute(kind, value.encode() + b"\0")


def _pack(kind: int, flags: int, attributes: bytes = b"") -> bytes:
    return pack_request(c.NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFPROTO_INET, attributes)


def _explain(code: int) -> ConntrackdError:
    own = "use a firewall rule with 'ct state' instead of conntrack.activate"
    if code == errno.EPERM:
        return NotPermittedError(
            "conntrack.activate: not permitted to create an nftables table: CAP_NET_ADMIN is missing",
            hint="run it as root, or as a service: systemctl start conntrackd",
        )
    if code in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
        return UnavailableError(
            "conntrack.activate: this kernel has no nftables tables with an owner (Linux 5.12, nf_tables)",
            hint=own,
        )
    return UnavailableError(f"conntrack.activate: nf_tables: {os.strerror(code)}", hint=own)
