"""For conntrackctl: call the daemon, get plain values, and say in a sentence what went wrong.

A connection of its own over wire.py, for it has to be quick: dbus-fast takes 80 ms to import, and the whole
of `conntrackctl status` has 150.
"""

import array
import os
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote

from conntrackd.bus import wire
from conntrackd.bus.agent import Agent
from conntrackd.errors import (
    ConfigError,
    ConntrackdError,
    NotPermittedError,
    RuleError,
    UnavailableError,
    UsageError,
)
from conntrackd.text import quote

NAME: Final = "org.conntrackd1"
PATH: Final = "/org/conntrackd1"
MANAGER: Final = "org.conntrackd1.Manager"
SINK: Final = "org.conntrackd1.Sink"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
ANSWER_SECONDS: Final = 25.0  # as libdbus and systemd wait
PASSWORD_SECONDS: Final = 150.0  # for what may ask for one
MAX_ANSWER: Final = 64 << 20
MAX_LINE: Final = 512

NOT_RUNNING: Final = 3  # LSB, "program is not running"
ERRORS: Final = "org.freedesktop.DBus.Error."
START: Final = "systemctl start conntrackd"


class NotRunningError(UnavailableError):
    """There is no daemon to talk to."""

    exit_status = NOT_RUNNING


class PasswordNeededError(NotPermittedError):
    """An administrator's password would do, and nobody has asked for it."""


# What the daemon's errors end a program with: the same as where they are raised.
STATUSES: Final = {
    error.dbus_name: error.exit_status for error in (UnavailableError, UsageError, ConfigError, RuleError)
}


class DaemonError(ConntrackdError):
    """The error that the daemon returned; `name` is its name on the bus."""

    def __init__(self, name: str, text: str) -> None:
        head, _, rest = text.partition("\n")
        super().__init__(head, excerpt="")
        self.name = name
        self._text = text if rest else head
        self.exit_status = STATUSES.get(name, self.exit_status)  # type: ignore[misc]  # of the daemon's error

    def __str__(self) -> str:
        return self._text


class Properties(dict[str, Any]):
    """By name. One that is looked for and is not there is missing in a daemon of another version."""

    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        raise explain(f"{ERRORS}UnknownProperty", f"no property {name}")


class Client:
    """One connection to the bus. Calls block. Every fault is a ConntrackdError."""

    def __init__(self, address: str | None, environ: Mapping[str, str]) -> None:
        self._address = address or environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._serial = 0
        self._agent = Agent()
        self._seconds = ANSWER_SECONDS  # who only looks waits for no password

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._agent.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    # ---- what the daemon offers -----------------------------------------------------------------------

    def call(self, member: str, signature: str = "", *values: Any, sink: str | None = None) -> list[Any]:  # noqa: ANN401
        """A method of the manager, or of a sink's object. At a terminal it may ask for a password."""
        path, interface = (PATH, MANAGER) if sink is None else (self._get_sink_path(sink), SINK)
        try:
            self._seconds = PASSWORD_SECONDS if os.isatty(0) else ANSWER_SECONDS
            return self._call(NAME, path, interface, member, signature, list(values))
        except PasswordNeededError:
            if not self._agent.start():
                raise
            return self._call(NAME, path, interface, member, signature, list(values))
        finally:
            self._seconds = ANSWER_SECONDS

    def read_properties(self) -> dict[str, Any]:
        """The manager's, all that the caller may see."""
        return Properties(self._call(NAME, PATH, PROPERTIES, "GetAll", "s", [MANAGER])[0])

    def read_sinks(self) -> dict[str, dict[str, Any]]:
        """Properties of every sink, by its name."""
        objects = self._call(NAME, PATH, OBJECT_MANAGER, "GetManagedObjects", "", [])[0]
        found = [interfaces[SINK] for interfaces in objects.values()]
        return {sink["Name"]: sink for sink in sorted(found, key=lambda sink: str(sink["Name"]))}

    def read_sink(self, name: str) -> dict[str, Any]:
        """Properties of one sink. Raises UnavailableError where there is none of this name."""
        sinks = self.read_sinks()
        if name not in sinks:
            raise _explain_sink(name, sinks)
        return Properties(sinks[name])

    def open_tail(self, rules: list[str], limit: int) -> int:
        """The reading end of a pipe with JSON lines, for the caller to close."""
        (index,) = self.call("Tail", "asu", rules, limit)
        if index >= len(self._descriptors):
            raise UnavailableError("the bus does not pass file descriptors")
        return self._descriptors.pop(index)

    def _get_sink_path(self, name: str) -> str:
        objects = self._call(NAME, PATH, OBJECT_MANAGER, "GetManagedObjects", "", [])[0]
        names = {str(interfaces[SINK]["Name"]): str(path) for path, interfaces in objects.items()}
        if name not in names:
            raise _explain_sink(name, names)
        return names[name]

    # ---- one call -------------------------------------------------------------------------------------

    def _call(
        self, service: str, path: str, interface: str, member: str, signature: str, values: list[Any]
    ) -> list[Any]:
        self._connect()
        return self._exchange(service, path, interface, member, signature, values)

    def _exchange(
        self, service: str, path: str, interface: str, member: str, signature: str, values: list[Any]
    ) -> list[Any]:
        self._serial += 1
        header = wire.Header(
            wire.METHOD_CALL,
            # Who looks starts nothing: the bus may know how to.
            wire.ALLOW_INTERACTIVE_AUTHORIZATION | wire.NO_AUTO_START,
            self._serial,
            path=path,
            interface=interface,
            member=member,
            destination=service,
            signature=signature,
        )
        assert self._socket is not None
        self._socket.settimeout(self._seconds)
        try:
            self._send(wire.encode_call(header, values))
            return self._wait(self._serial)
        except TimeoutError as error:
            hint = "if this repeats: systemctl restart conntrackd"
            raise UnavailableError("conntrackd did not answer in time", hint=hint) from error
        except (OSError, EOFError, wire.WireError) as error:
            raise NotRunningError(
                f"the bus has closed the connection: {error}", hint="see journalctl -u dbus"
            ) from error

    def _wait(self, serial: int) -> list[Any]:
        """The answer, past signals and other things."""
        while True:
            data = self._read_message()
            header = wire.parse_header(data)
            if header.reply_serial != serial or header.type not in {wire.METHOD_RETURN, wire.ERROR}:
                continue
            body = wire.parse_body(data, header)
            if header.type == wire.ERROR:
                raise explain(header.error_name, str(body[0]) if body else "")
            return body

    def _send(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(data)

    def _read_message(self) -> bytes:
        self._receive(wire.FIXED)
        size = sum(wire.measure(self._received))
        if size > MAX_ANSWER:
            raise wire.WireError("the answer is too long")
        self._receive(size)
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self, size: int) -> None:
        """Until there are so many bytes."""
        assert self._socket is not None
        while len(self._received) < size:
            data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(16 * 4))
            for level, kind, numbers in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors = array.array("i", numbers[: len(numbers) // 4 * 4])
                    self._descriptors.extend(descriptors)
            if not data:
                raise EOFError("no reason given")
            self._received += data

    # ---- the connection -------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._socket is not None:
            return
        try:
            self._socket = connect(self._address)
            self._authenticate()
        except (OSError, EOFError, wire.WireError) as error:
            self.close()
            text = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise NotRunningError(
                f"cannot connect to D-Bus: {text}",
                origin=self._address,
                hint="the daemon works without D-Bus; to see whether it runs: pgrep -af 'conntrackd run'",
            ) from error
        self._socket.settimeout(ANSWER_SECONDS)
        self._exchange(BUS, BUS_PATH, BUS, "Hello", "", [])

    def _authenticate(self) -> None:
        """SASL EXTERNAL: the kernel identifies us to the bus. One write, because the answers are known."""
        identity = str(os.geteuid()).encode().hex()
        self._send(f"\0AUTH EXTERNAL {identity}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n".encode())
        if not self._read_line().startswith(b"OK"):
            raise wire.WireError("it does not accept this user")
        if not self._read_line().startswith(b"AGREE_UNIX_FD"):
            raise wire.WireError("it does not pass file descriptors")

    def _read_line(self) -> bytes:
        while b"\r\n" not in self._received:
            self._receive(len(self._received) + 1)
            if len(self._received) > MAX_LINE:
                raise wire.WireError("what answers there is not a D-Bus")
        line, _, rest = bytes(self._received).partition(b"\r\n")
        self._received = bytearray(rest)
        return line


def _explain_sink(name: str, sinks: Iterable[str]) -> UnavailableError:
    there = ", ".join(sorted(sinks)) or "none"
    return UnavailableError(
        f"the daemon has no sink {name[:64]}",
        hint=f"sinks: {there}; enable another in conntrackd.yaml and reload",
    )


def connect(address: str) -> socket.socket:
    """A socket to the first of the addresses that takes one. Raises OSError; UsageError for no address."""
    last: OSError | None = None
    for entry in address.split(";"):
        transport, _, rest = entry.partition(":")
        options = dict(pair.split("=", 1) for pair in rest.split(",") if "=" in pair)
        target = unquote(options["path"]) if "path" in options else ""
        if "abstract" in options:
            target = "\0" + unquote(options["abstract"])
        if transport != "unix" or not target:
            continue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(target)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    if last is None:
        hint = f"the address of a unix socket, such as {SYSTEM_BUS}"
        raise UsageError(f"{quote(address)} is not a usable bus address", hint=hint)
    raise last


def explain(name: str, text: str) -> ConntrackdError:
    """An error of the bus, or of the daemon, in a sentence with what to do."""
    match name.removeprefix(ERRORS):
        case "ServiceUnknown" | "NameHasNoOwner" | "Spawn.ChildExited" | "Spawn.ServiceNotFound":
            return NotRunningError("conntrackd is not running, or not on this bus", hint=START)
        case "InteractiveAuthorizationRequired":
            return PasswordNeededError(
                "an administrator's password is required, and no polkit agent can ask for it",
                hint="run it as root, for example with sudo",
            )
        case "AccessDenied":
            hint = "run as root, or join the group: sudo adduser $USER conntrackd-observers"
            return NotPermittedError("not permitted to talk to conntrackd", hint=hint)
        case "UnknownMethod" | "UnknownInterface" | "UnknownObject" | "UnknownProperty" | "InvalidArgs":
            hint = "after an upgrade: systemctl restart conntrackd"
            return UnavailableError(
                f"conntrackd and conntrackctl are of different versions: {text}", hint=hint
            )
        case "NoReply" | "Timeout" | "TimedOut" | "Disconnected":
            return UnavailableError(
                "conntrackd disconnected before it answered", hint="journalctl -u conntrackd"
            )
    if name.startswith("org.freedesktop.systemd1."):
        return NotRunningError("conntrackd is not running", hint="systemctl enable --now conntrackd")
    if name == NotPermittedError.dbus_name:
        head, _, hint = text.partition("\nhint: ")
        return NotPermittedError(head, hint=hint)
    return DaemonError(name, text)
