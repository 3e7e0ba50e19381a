"""One connection's calls: message -> limits -> who -> may he -> handler -> reply. Deny is the default."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from dbus_fast import Message, MessageFlag, MessageType

from conntrackd.bus import limits
from conntrackd.bus.callers import ROOT, Callers, Polkit
from conntrackd.bus.connection import Connection, make_error
from conntrackd.bus.control import asked_by_root
from conntrackd.bus.interface import CONTROL, INFO, OBSERVE, Interface, Method
from conntrackd.bus.names import INTROSPECTABLE, MANAGER_PATH, OBJECT_MANAGER, PEER, PROPERTIES
from conntrackd.bus.objects import Objects, ReadOnlyError, UnknownInterfaceError, UnknownMethodError
from conntrackd.bus.transport import RemoteError, to_body
from conntrackd.errors import ConntrackdError, NotPermittedError
from conntrackd.resources import raise_descriptors

logger = logging.getLogger(__name__)

Reply = tuple[str, list[Any]]
Answer = Callable[["Call"], Awaitable[Reply]]

MACHINE_ID: Final = Path("/etc/machine-id")
# Of what takes no rules, what takes time all the same.
SLOW: Final = ("Doctor", "ExplainFilter", "ListSets", "ShowSet")


class ArgumentsError(ConntrackdError):
    """The arguments are not of the types that the method takes."""

    dbus_name = "org.freedesktop.DBus.Error.InvalidArgs"


class Call:
    """A call and who makes it."""

    def __init__(self, message: Message, user: int) -> None:
        self.message = message
        self.user = user
        self.path: str = message.path or ""
        self.interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)


class Session:
    """Answers what comes over one connection, for as long as it lasts."""

    def __init__(
        self,
        bus: Connection,
        objects: Objects,
        interfaces: dict[str, Interface],
        limiter: limits.Limiter,
        turns: tuple[limits.Turns, limits.Turns],
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._limiter = limiter
        self._polkit = Polkit(bus)
        self.callers = Callers(bus, self._forget)
        self._running = limits.Running()
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._changing = asyncio.Lock()
        # What anybody asks never stands before what root asks, and neither before a change.
        self._turns_of_root, self._turns_of_others = turns
        self._committed: set[asyncio.Task[None]] = set()
        self._descriptors: set[int] = set()  # on their way to a caller
        self._long = {
            method.name
            for interface in interfaces.values()
            for method in interface.methods.values()
            if "as" in method.in_signature
        }
        self._standard: dict[tuple[str, str], tuple[str, Answer]] = {
            (INTROSPECTABLE, "Introspect"): ("", self._introspect),
            (PEER, "Ping"): ("", self._ping),
            (PEER, "GetMachineId"): ("", self._get_machine_id),
            (PROPERTIES, "Get"): ("ss", self._get),
            (PROPERTIES, "GetAll"): ("s", self._get_all),
            (PROPERTIES, "Set"): ("ssv", self._set),
            (OBJECT_MANAGER, "GetManagedObjects"): ("", self._get_managed_objects),
        }

    # ---- before anything is parsed --------------------------------------------------------------------

    def find_refusal(self, header: Message, body: int) -> ConntrackdError | None:
        """The reason to refuse a call by its header, or None."""
        longest = limits.MAX_RULES_BODY if header.member in self._long else limits.MAX_BODY
        if body > longest:
            return limits.LimitError(f"the call has {body} bytes, at most {longest} are allowed")
        if not self._limiter.admit(self.callers.key(header.sender or "")):
            return limits.LimitError(f"too many calls, at most {limits.RATE:g} a second are allowed")
        return None

    # ---- one call -------------------------------------------------------------------------------------

    def take(self, message: Message) -> bool:
        """dbus-fast's message handler: True for what is answered here, which is every call."""
        if message.message_type is MessageType.SIGNAL:
            self.callers.handle_signal(message)
            return False
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._tasks[task] = message.sender or ""
        task.add_done_callback(self._end)
        return True

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._committed.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("bus: a call could not be answered", exc_info=task.exception())

    def _forget(self, name: str) -> None:
        """The caller is gone: whatever has not begun to change something is given up."""
        for task, caller in self._tasks.items():
            if caller == name and task not in self._committed:
                task.cancel()

    def close(self) -> None:
        """The connection is over. What has begun to change something goes on to its end."""
        self.callers.close()
        for task in self._tasks:
            if task not in self._committed:
                task.cancel()
        for descriptor in list(self._descriptors):
            self._close_descriptor(descriptor)

    async def _answer(self, message: Message) -> None:
        try:
            reply = await self._make_reply(message)
        except ConntrackdError as error:
            self._send_error(message, error)
        except RemoteError:
            logger.debug("bus: %s went away in mid-call", message.sender)
        except Exception as error:  # the edge: the caller gets no inside of ours, the log gets it all
            logger.exception("bus: %s failed", message.member)
            self._send_error(message, ConntrackdError(f"internal error: {type(error).__name__}"))
        else:
            self._send_reply(message, reply)

    async def _make_reply(self, message: Message) -> Reply:
        """Counted for the name until its user is known, from then on for the user, whatever his names."""
        name = message.sender or ""
        with self._running.count(self.callers.key(name)):
            user = await self.callers.look_up_user(name)
        with self._running.count(user):
            try:
                return await self._answer_call(Call(message, user))
            except OSError as error:
                raise_descriptors(error)
                raise

    async def _answer_call(self, call: Call) -> Reply:
        message = call.message
        standard = self._standard.get((message.interface or "", message.member or ""))
        if standard is None:
            return await self._call_handler(call)
        _check_signature(message, standard[0])
        limits.check_arguments(message.body)
        return await standard[1](call)

    async def _call_handler(self, call: Call) -> Reply:
        interface, sink = self._objects.get_interface(call.path, call.message.interface or "")
        method = interface.methods.get(call.message.member or "")
        if method is None:
            raise UnknownMethodError(f"{interface.name} has no such method")
        await self._authorize(call, method.action)
        _check_signature(call.message, method.in_signature)
        limits.check_arguments(call.message.body)
        limits.check_values(zip(method.takes, call.message.body, strict=True))
        handler = self._objects.get_handler(method)
        asked_by_root.set(call.user == ROOT)
        if method.action != CONTROL:
            async with self._choose_turns(call, method):
                return _to_reply(method, await handler(*sink, *call.message.body))
        async with self._changing:
            task = asyncio.current_task()
            assert task is not None
            self._committed.add(task)
            logger.info("bus: user %d: %s", call.user, method.name)
            return _to_reply(method, await handler(*sink, *call.message.body))

    def _choose_turns(self, call: Call, method: Method) -> AbstractAsyncContextManager[None]:
        """What a call that takes time has to wait for: others of its kind, and root for root's alone."""
        if method.name not in self._long and method.name not in SLOW:
            return nullcontext()
        turns = self._turns_of_root if call.user == ROOT else self._turns_of_others
        return turns.take()

    async def _authorize(self, call: Call, action: str) -> None:
        await self._polkit.check(call.message.sender or "", call.user, action, interactive=call.interactive)

    async def _list_readable(self, call: Call) -> set[str]:
        """The actions with which this caller may read, `info` at least. Nobody is asked for a password."""
        await self._authorize(call, INFO)
        try:
            await self._polkit.check(call.message.sender or "", call.user, OBSERVE, interactive=False)
        except NotPermittedError:
            return {INFO}
        return {INFO, OBSERVE}

    def _send_error(self, message: Message, error: ConntrackdError) -> None:
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._bus.post(make_error(message, error))

    def _send_reply(self, message: Message, reply: Reply) -> None:
        signature, body = reply
        if signature == "h":
            self._send_descriptor(message, body[0])
        elif not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._bus.post(Message.new_method_return(message, signature, body))

    def _send_descriptor(self, message: Message, descriptor: int) -> None:
        """Keep it open until it is sent, or until there is no connection to send it over."""
        if message.flags & MessageFlag.NO_REPLY_EXPECTED:
            os.close(descriptor)
            return
        self._descriptors.add(descriptor)
        reply = Message.new_method_return(message, "h", [0], unix_fds=[descriptor])
        self._bus.post(reply, lambda: self._close_descriptor(descriptor))

    def _close_descriptor(self, descriptor: int) -> None:
        if descriptor in self._descriptors:
            self._descriptors.remove(descriptor)
            os.close(descriptor)

    # ---- the standard interfaces ----------------------------------------------------------------------

    async def _introspect(self, call: Call) -> Reply:
        return "s", [self._objects.introspect(call.path)]

    async def _ping(self, call: Call) -> Reply:
        return "", []

    async def _get_machine_id(self, call: Call) -> Reply:
        try:
            return "s", [MACHINE_ID.read_text(encoding="ascii").strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConntrackdError("this machine has no id") from error

    async def _get(self, call: Call) -> Reply:
        interface, name = call.message.body
        prop = self._objects.get_property(call.path, interface, name)
        await self._authorize(call, prop.action)
        return "v", [self._objects.read(call.path, [prop])[prop.name]]

    async def _get_all(self, call: Call) -> Reply:
        self._objects.get_interface(call.path, call.message.body[0])
        return "a{sv}", [self._objects.read_all(call.path, await self._list_readable(call))]

    async def _set(self, call: Call) -> Reply:
        interface, name, _ = call.message.body
        self._objects.get_property(call.path, interface, name)
        raise ReadOnlyError("properties cannot be set")

    async def _get_managed_objects(self, call: Call) -> Reply:
        if call.path != MANAGER_PATH:
            raise UnknownInterfaceError("the object has no such interface")
        return "a{oa{sa{sv}}}", [self._objects.read_managed(await self._list_readable(call))]


def _check_signature(message: Message, signature: str) -> None:
    if message.signature != signature:
        raise ArgumentsError(f"{message.member} expects '{signature}', not '{message.signature[:64]}'")


def _to_reply(method: Method, value: Any) -> Reply:  # noqa: ANN401  # what the method's signature says
    match len(method.gives):
        case 0:
            return "", []
        case 1:
            return method.out_signature, [to_body(value)]
    return method.out_signature, to_body(value)
