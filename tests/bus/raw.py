"""A connection to a bus that sends whatever a test wants, and sees every message that comes."""

import array
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from dbus_fast import Message, MessageFlag, MessageType, unpack_variants

from conntrackd.bus.client import Client, explain
from conntrackd.bus.connection import FIXED, measure, parse
from conntrackd.bus.names import BUS, BUS_PATH, MANAGER, MANAGER_PATH, NAME
from conntrackd.bus.transport import to_body
from tests.bus.private import PrivateBus, as_user

SECONDS: Final = 25.0


def call(member: str, signature: str = "", path: str = MANAGER_PATH, interface: str = MANAGER) -> Message:
    return Message(NAME, path, interface, member, signature=signature)


class Raw(Client):
    """Its calls wait for their answers as a Client's do, past everything else."""

    _socket: socket.socket | None = None

    def __enter__(self) -> "Raw":
        """Connect, as whoever the process is now. May be called twice."""
        if self._socket is not None:
            return self
        self._serial = 0
        self.received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(SECONDS)
        try:
            self._socket.connect(self._address.split(",")[0].removeprefix("unix:path="))
            # One write, because the answers are known.
            identity = str(os.geteuid()).encode().hex()
            self._socket.sendall(f"\0AUTH EXTERNAL {identity}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n".encode())
            while self.received.count(b"\r\n") < 2:
                self._receive()
            del self.received[:]  # the bus waits for Hello
            self.ask_bus("Hello", "")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        super().close()

    def post(self, message: Message, values: Sequence[Any], descriptors: Sequence[int] = ()) -> int:
        """Send without waiting; the serial."""
        self._serial += 1
        message.serial = self._serial
        message.body = to_body(list(values))
        message.unix_fds = list(descriptors)
        self.post_bytes(bytes(message._marshall(True)), descriptors)
        return self._serial

    def post_bytes(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        assert self._socket is not None
        rights = array.array("i", descriptors).tobytes()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        sent = self._socket.sendmsg([data], ancillary)
        if sent < len(data):  # the bus may have closed the connection by now
            self._socket.sendall(data[sent:])

    def read_bytes(self) -> bytes:
        """The next message as it came."""
        while len(self.received) < FIXED or len(self.received) < sum(measure(self.received)):
            self._receive()
        size = sum(measure(self.received))
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    def _receive(self) -> None:
        assert self._socket is not None
        data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(16 * 4))
        for level, kind, numbers in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(array.array("i", numbers[: len(numbers) // 4 * 4]))
        if not data:
            raise EOFError("no reason given")
        self.received += data

    def read_until(self, wanted: Callable[[Message], bool]) -> tuple[Message, list[Any]]:
        """The next message of this kind, and its values."""
        while True:
            message = parse(self.read_bytes())
            assert message is not None
            if wanted(message):
                return message, unpack_variants(message.body)

    def ask_bus(self, member: str, signature: str, *values: Any) -> list[Any]:
        return self._call(BUS, BUS_PATH, BUS, member, signature, list(values))

    def ask(self, path: str, interface: str, member: str, signature: str, *values: Any) -> list[Any]:
        """Any call to the service."""
        return self._call(NAME, path, interface, member, signature, list(values))

    def _call(
        self, service: str, path: str, interface: str, member: str, signature: str, values: list[Any]
    ) -> list[Any]:
        message = Message(service, path, interface, member, signature=signature)
        message.flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION | MessageFlag.NO_AUTOSTART
        serial = self.post(message, values)
        reply, body = self.read_until(lambda message: message.reply_serial == serial)
        if reply.message_type is MessageType.ERROR:
            raise explain(str(reply.error_name), str(body[0]) if body else "")
        return body


def connect_as(bus: PrivateBus, user: int, *groups: int) -> Raw:
    """A connection of this user's. For root."""
    with as_user(user, *groups):
        return Raw(bus.address, {}).__enter__()
