"""For conntrackctl: call the daemon, get plain values, and say in a sentence what went wrong."""

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from conntrackd.lean import without

with without("ssl", "_hashlib", "gi"):  # 15 ms of OpenSSL and 20 of GLib, of which nobody here knows anything
    import asyncio

    from dbus_fast import MessageFlag, unpack_variants
    from dbus_fast.errors import AuthError, InvalidAddressError

    from conntrackd.bus.transport import RemoteError, Service, Transport, to_body

from conntrackd.bus.agent import Agent
from conntrackd.bus.names import (
    ERRORS,
    MANAGER,
    MANAGER_PATH,
    NAME,
    OBJECT_MANAGER,
    PROPERTIES,
    SINK,
    SYSTEM_BUS,
)
from conntrackd.errors import (
    ConfigError,
    ConntrackdError,
    NotPermittedError,
    RuleError,
    UnavailableError,
    UsageError,
)
from conntrackd.text import as_root, quote

ANSWER_SECONDS: Final = 25.0  # as libdbus and systemd wait
PASSWORD_SECONDS: Final = 150.0  # for what may ask for one

NOT_RUNNING: Final = 3  # LSB, "program is not running"
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
        self._runner = asyncio.Runner()
        self._bus: Transport | None = None
        self._descriptors: list[int] = []
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
        if self._bus is not None:
            self._bus.end()
            self._bus = None
        self._runner.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    # ---- what the daemon offers -----------------------------------------------------------------------

    def call(self, member: str, signature: str = "", *values: Any, sink: str | None = None) -> list[Any]:  # noqa: ANN401
        """A method of the manager, or of a sink's object. At a terminal it may ask for a password."""
        path, interface = (MANAGER_PATH, MANAGER) if sink is None else (self._get_sink_path(sink), SINK)
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
        return Properties(self._call(NAME, MANAGER_PATH, PROPERTIES, "GetAll", "s", [MANAGER])[0])

    def read_sinks(self) -> dict[str, dict[str, Any]]:
        """Properties of every sink, by its name."""
        found = self._read_objects().values()
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
        names = {str(sink["Name"]): path for path, sink in self._read_objects().items()}
        if name not in names:
            raise _explain_sink(name, names)
        return names[name]

    def _read_objects(self) -> dict[str, dict[str, Any]]:
        """Properties of every sink, by the path of its object."""
        objects = self._call(NAME, MANAGER_PATH, OBJECT_MANAGER, "GetManagedObjects", "", [])[0]
        return {str(path): interfaces[SINK] for path, interfaces in objects.items()}

    # ---- one call -------------------------------------------------------------------------------------

    def _call(
        self, service: str, path: str, interface: str, member: str, signature: str, values: list[Any]
    ) -> list[Any]:
        """The values of the answer. Who looks starts nothing: the bus may know how to."""
        bus = self._bus or self._connect()
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION | MessageFlag.NO_AUTOSTART
        target = Service(service, path, interface)
        call = bus.request(target, member, signature, to_body(values), self._seconds, flags)
        try:
            reply = self._runner.run(call)
        except RemoteError as error:
            raise explain(error.name, error.text) from error
        except TimeoutError as error:
            hint = "if this repeats: systemctl restart conntrackd"
            raise UnavailableError("conntrackd did not answer in time", hint=hint) from error
        except (OSError, EOFError) as error:
            text = str(error) or "no reason given"
            raise NotRunningError(
                f"the bus has closed the connection: {text}", hint=as_root("journalctl -u dbus")
            ) from error
        self._descriptors.extend(reply.unix_fds)
        return list(unpack_variants(reply.body))

    def _connect(self) -> Transport:
        if any(not entry.startswith("unix:") for entry in self._address.split(";")):
            raise _refuse_address(self._address)
        try:
            self._bus = self._runner.run(_open(self._address))
        except InvalidAddressError as error:
            raise _refuse_address(self._address) from error
        except (OSError, EOFError, AuthError) as error:
            text = (error.strerror if isinstance(error, OSError) else None) or str(error) or "no answer"
            raise NotRunningError(
                f"cannot connect to D-Bus: {text}",
                origin=self._address,
                hint="pgrep -af 'conntrackd run'  # shows whether the daemon runs, which works without D-Bus",
            ) from error
        return self._bus


async def _open(address: str) -> Transport:
    bus = Transport(address)
    try:
        await asyncio.wait_for(bus.connect(), ANSWER_SECONDS)
    except BaseException:
        bus.end()
        raise
    return bus


def _refuse_address(address: str) -> UsageError:
    hint = f"the address of a unix socket, such as {SYSTEM_BUS}"
    return UsageError(f"{quote(address)} is not a usable bus address", hint=hint)


def _explain_sink(name: str, sinks: Iterable[str]) -> UnavailableError:
    there = ", ".join(sorted(sinks)) or "none"
    return UnavailableError(
        f"the daemon has no sink {name[:64]}",
        hint=f"sinks: {there}; enable another in conntrackd.yaml and reload",
    )


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
                "conntrackd disconnected before it answered", hint=as_root("journalctl -u conntrackd")
            )
    if name.startswith("org.freedesktop.systemd1."):
        return NotRunningError("conntrackd is not running", hint="systemctl enable --now conntrackd")
    if name == NotPermittedError.dbus_name:
        head, _, hint = text.partition("\nhint: ")
        return NotPermittedError(head, hint=hint)
    return DaemonError(name, text)
