"""A bus of the test's own, the service on it, and the users who call."""

import asyncio
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from conntrackd.bus.client import Client
from conntrackd.bus.service import BusService
from tests.bus.recorder import Recorder

T = TypeVar("T")
ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 10.0
# A group that every machine has and nobody is in: the policy's own is not there before installation.
STAND_IN: Final = ("games", 60)
JOURNAL: Final = "/org/conntrackd1/sink/journal"

OPEN: Final = """
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
"""
# What Debian's system.conf says before the services' own files, and polkit's.
STRICT: Final = """
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <policy context="default">
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="polkitd">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
  </policy>
"""


class PrivateBus:
    """A dbus-daemon with a socket of its own, that can be stopped and started again at the same address."""

    def __init__(self, *, strict: bool = False) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="conntrackd-bus-")
        base = Path(self._directory.name)
        base.chmod(0o755)
        self._socket = base / "socket"
        self.address = f"unix:path={self._socket}"
        self._config = base / "bus.conf"
        self._config.write_text(
            f"<busconfig><type>system</type><listen>{self.address}</listen><auth>EXTERNAL</auth>"
            f"{_read_policy() if strict else OPEN}</busconfig>"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PrivateBus":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--print-address"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a line for each call that it refuses
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"unix:")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=SECONDS)
            self._process = None
            self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        self._directory.cleanup()

    def connect(self) -> Client:
        return Client(self.address, {})


def _read_policy() -> str:
    text = (ROOT / "dbus/org.conntrackd1.conf").read_text()
    inner = text[text.index("<busconfig>") + len("<busconfig>") : text.index("</busconfig>")]
    return STRICT + inner.replace('group="conntrackd-observers"', f'group="{STAND_IN[0]}"').replace(
        '<policy user="conntrackd">', '<policy user="nobody">'
    )


class Served:
    """The service with a Recorder behind it, in a thread of its own."""

    def __init__(self, address: str, control: Recorder | None = None) -> None:
        self.control = control or Recorder()
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="service")
        self._thread.start()
        self.service = self.do(self._start)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _start(self) -> BusService:
        service = BusService(self.control, self.address)
        self._task = asyncio.create_task(service.run())
        return service

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a coroutine function in the service's loop, and wait for what it returns."""
        return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop).result(SECONDS)

    def wait_ready(self) -> None:
        self.do(self.service.ready.wait)

    def wait_lost(self) -> None:
        """Until the connection is over."""

        async def wait() -> None:
            while self.service.ready.is_set():
                await asyncio.sleep(0.01)

        self.do(wait)

    def hold(self) -> Callable[[], None]:
        """Make every call of the Control wait, until the function is called that this returns."""
        gate = asyncio.Event()
        self.control.gate = gate

        def release() -> None:
            self.control.gate = None
            self._loop.call_soon_threadsafe(gate.set)

        return release

    def close(self) -> None:
        async def end() -> None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            # What was answered in the middle comes to its own end.
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.do(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


@contextmanager
def serve(address: str, control: Recorder | None = None) -> Iterator[Served]:
    """The service, once it is on the bus."""
    served = Served(address, control)
    try:
        served.wait_ready()
        yield served
    finally:
        served.close()


@contextmanager
def as_user(user: int, *groups: int) -> Iterator[None]:
    """What connects inside does so as this user. For root."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(groups[0] if groups else user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(condition: Callable[[], bool]) -> None:
    """A bounded poll, for what tells nobody that it happened."""
    done = threading.Event()
    for _ in range(int(SECONDS / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("did not happen in time")
