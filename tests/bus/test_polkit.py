"""Who may do what: as an ordinary user, as a member of the group, as root; with and without polkit."""

import asyncio
import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus

from conntrackd.bus.client import Client, DaemonError
from conntrackd.bus.interface import CONTROL, INFO, OBSERVE, load
from conntrackd.bus.names import MANAGER
from conntrackd.errors import NotPermittedError
from tests.bus.private import ROOT, SECONDS, STAND_IN, PrivateBus, Served, serve, wait_until
from tests.bus.raw import Raw, call, connect_as

pytestmark = pytest.mark.privileged

OTHER: Final = 1
"""`daemon`: the bus takes only users that the system knows, and the stand-in for ours is `nobody`."""
GROUP: Final = STAND_IN[1]
# One harmless call for each action.
EXAMPLES: Final = {
    INFO: ("GetStatistics", "", ()),
    OBSERVE: ("CheckFilter", "as", (["x"],)),
    CONTROL: ("ResetFilter", "", ()),
}


class FakePolkit:
    """org.freedesktop.PolicyKit1 that answers as it is told; None is never."""

    def __init__(self, address: str) -> None:
        self.answers: dict[str, tuple[bool, bool] | None] = {}
        self.details: dict[str, str] = {}
        self.asked: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._do(self._start(address))

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    async def _start(self, address: str) -> None:
        self._bus = await MessageBus(bus_address=address).connect()
        self._bus.add_message_handler(self._answer)
        await self._bus.request_name("org.freedesktop.PolicyKit1")

    def _answer(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or not message.interface:
            return None
        if message.member == "CancelCheckAuthorization":
            self.asked.append("cancel")
            return True
        (kind, details), action, _, flags, _ = message.body
        self.asked.append((kind, sorted(details), action, flags))
        answer = self.answers.get(action, (False, False))
        if answer is None:
            return True
        return Message.new_method_return(message, "(bba{ss})", [[*answer, self.details]])

    def close(self) -> None:
        async def end() -> None:
            self._bus.disconnect()
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
            for item in (self._bus._stream, self._bus._sock):
                item.close()  # type: ignore[union-attr]  # which older versions leave to the garbage collector

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


@pytest.fixture
def polkit(bus: PrivateBus) -> Iterator[FakePolkit]:
    made = FakePolkit(bus.address)
    yield made
    made.close()


@pytest.fixture
def ordinary(bus: PrivateBus, polkit: FakePolkit, served: Served) -> Iterator[Raw]:
    """An ordinary user's connection, where the bus lets everybody through to the second ring."""
    raw = connect_as(bus, OTHER)
    yield raw
    raw.close()


def try_all(client: Client) -> dict[str, bool]:
    """Which actions are allowed to this caller."""
    found = {}
    for action, (member, signature, values) in EXAMPLES.items():
        try:
            client.call(member, signature, *values)
        except NotPermittedError:
            found[action] = False
        else:
            found[action] = True
    return found


@pytest.mark.parametrize("allowed", [set(), {INFO}, {INFO, OBSERVE}, {INFO, OBSERVE, CONTROL}, {CONTROL}])
def test_an_ordinary_user_may_do_what_polkit_says_and_nothing_else(
    allowed: set[str], ordinary: Raw, polkit: FakePolkit
) -> None:
    polkit.answers = dict.fromkeys(allowed, (True, False))

    assert try_all(ordinary) == {action: action in allowed for action in EXAMPLES}


def test_polkit_is_asked_by_the_callers_bus_name_for_each_method_its_action(
    ordinary: Raw, polkit: FakePolkit, served: Served
) -> None:
    for method in load()[MANAGER].methods.values():
        polkit.asked.clear()
        values = {"as": ["x"], "u": 0, "s": "info"}
        with pytest.raises(NotPermittedError):
            ordinary.call(
                method.name, method.in_signature, *(values[argument.type] for argument in method.takes)
            )
        assert polkit.asked == [("system-bus-name", ["name"], method.action, 1)]
    for member in ("Enable", "Disable", "Flush"):
        polkit.asked.clear()
        with pytest.raises(NotPermittedError):
            ordinary.ask("/org/conntrackd1/sink/loki", "org.conntrackd1.Sink", member, "")
        assert polkit.asked == [("system-bus-name", ["name"], CONTROL, 1)]
    assert served.control.asked == []


def test_who_may_only_be_informed_reads_all_properties_but_the_rules(
    ordinary: Raw, polkit: FakePolkit
) -> None:
    polkit.answers = {INFO: (True, False)}

    properties = ordinary.read_properties()

    assert set(load()[MANAGER].properties) - set(properties) == {"Rules"}
    with pytest.raises(NotPermittedError):
        ordinary.ask("/org/conntrackd1", "org.freedesktop.DBus.Properties", "Get", "ss", MANAGER, "Rules")


def test_what_needs_a_password_is_distinguished_where_nobody_can_be_asked(
    ordinary: Raw, polkit: FakePolkit
) -> None:
    polkit.answers = {CONTROL: (False, True)}

    with pytest.raises(NotPermittedError, match="an administrator's password is required"):
        ordinary.call("Reload")
    polkit.details = {"polkit.dismissed": "true"}
    with pytest.raises(NotPermittedError, match=r"polkit does not allow org\.conntrackd1\.control"):
        ordinary.call("Reload")


def test_without_polkit_there_is_information_and_the_rest_is_for_root(
    bus: PrivateBus, served: Served
) -> None:
    with connect_as(bus, OTHER) as other, bus.connect() as root:
        assert try_all(other) == {INFO: True, OBSERVE: False, CONTROL: False}
        assert try_all(root) == dict.fromkeys(EXAMPLES, True)


def test_a_caller_who_goes_while_polkit_asks_for_his_password_ends_the_dialogue(
    bus: PrivateBus, polkit: FakePolkit, served: Served
) -> None:
    polkit.answers = {CONTROL: None}
    other = connect_as(bus, OTHER)
    header = {"path": "/org/conntrackd1", "interface": MANAGER, "member": "Reload"}
    with other:
        other.post(
            Message(
                "org.conntrackd1",
                flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
                **header,  # type: ignore[arg-type]
            ),
            [],
        )
        wait_until(lambda: len(polkit.asked) == 1)

    wait_until(lambda: polkit.asked[1:] == ["cancel"])
    assert served.control.asked == []


# ---- the outer ring -----------------------------------------------------------------------------------


def test_the_bus_lets_only_root_and_the_group_through_and_nobody_else_hears_signals(
    strict_bus: PrivateBus,
) -> None:
    with serve(strict_bus.address) as served:
        stranger = connect_as(strict_bus, OTHER)
        member = connect_as(strict_bus, OTHER, GROUP)
        with stranger, member, strict_bus.connect() as root:
            with pytest.raises(NotPermittedError, match="not permitted to talk to conntrackd"):
                stranger.read_properties()
            assert try_all(member) == {INFO: True, OBSERVE: False, CONTROL: False}
            assert try_all(root) == dict.fromkeys(EXAMPLES, True)
            for client in (stranger, member):
                client.ask_bus("AddMatch", "s", "type='signal',interface='org.conntrackd1.Manager'")
            served.control.tell_lost(1)
            assert member.read_until(lambda header: header.member == "EventsLost")[1] == [1]
            # The bus has passed the signal on before this answer: the stranger would have it by now.
            stranger.ask_bus("GetId", "")
            assert stranger.received == b""
            for name in ("org.conntrackd1", "org.freedesktop.PolicyKit1"):
                with pytest.raises((NotPermittedError, DaemonError)):
                    stranger.ask_bus("RequestName", "su", name, 0)


def test_a_flood_from_a_stranger_never_arrives(strict_bus: PrivateBus) -> None:
    with serve(strict_bus.address) as served:
        stranger = connect_as(strict_bus, OTHER)
        seen: list[str] = []
        admit = served.service._limiter.admit
        served.service._limiter.admit = lambda user: seen.append(str(user)) or admit(user)  # type: ignore[func-returns-value]
        with stranger:
            for _ in range(1000):
                stranger.post(call("GetStatistics"), [])
            answers = [stranger.read_until(lambda header: header.reply_serial > 1)[0] for _ in range(1000)]
        assert {answer.error_name for answer in answers} == {"org.freedesktop.DBus.Error.AccessDenied"}
        assert seen == []


# ---- the real one -------------------------------------------------------------------------------------


@pytest.fixture
def real_polkit(strict_bus: PrivateBus, tmp_path: Path) -> Iterator[Any]:
    """polkitd with our policy beside what is installed, in a mount namespace of its own."""
    polkitd = Path("/usr/lib/polkit-1/polkitd")
    if not polkitd.exists():
        pytest.skip("polkitd is not installed")
    policy = ROOT / "dbus/org.conntrackd1.policy"
    program = f"""
        mount -t tmpfs none /usr/share/polkit-1/actions &&
        install -m 644 {policy} /usr/share/polkit-1/actions/ &&
        sed -i 's/unix-user:conntrackd/unix-user:nobody/' /usr/share/polkit-1/actions/* &&
        chmod 755 /usr/share/polkit-1/actions && exec {polkitd} --no-debug"""
    with (tmp_path / "polkit.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", program],
            env={"DBUS_SYSTEM_BUS_ADDRESS": strict_bus.address, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdout=log,
            stderr=log,
        )
    with Raw(strict_bus.address, {}) as raw:
        wait_until(
            lambda: (
                process.poll() is not None
                or raw.ask_bus("NameHasOwner", "s", "org.freedesktop.PolicyKit1") == [True]
            )
        )
    yield process
    process.terminate()
    process.wait(SECONDS)


VALUES: Final = {"as": ["x"], "u": 0, "s": "info"}
# Who may do what: the table of org.conntrackd1(5), "AUTHORIZATION".
ALLOWED: Final[dict[tuple[str, bool], set[str]]] = {
    ("stranger", False): set(),
    ("stranger", True): set(),
    ("member", False): {INFO},
    ("member", True): {INFO, OBSERVE},
    ("root", False): {INFO, OBSERVE, CONTROL},
    ("root", True): {INFO, OBSERVE, CONTROL},
}


def try_every_method(caller: Raw) -> dict[tuple[str, str], bool]:
    """Which methods of the manager and of a sink are allowed to this caller."""
    found = {}
    for interface in load().values():
        path = "/org/conntrackd1" + ("" if interface.name == MANAGER else "/sink/loki")
        for method in interface.methods.values():
            values = [VALUES[argument.type] for argument in method.takes]
            try:
                caller.ask(path, interface.name, method.name, method.in_signature, *values)
            except NotPermittedError:
                found[interface.name, method.name] = False
            else:
                found[interface.name, method.name] = True
    return found


@pytest.mark.parametrize(("who", "has_polkit"), ALLOWED, ids=str)
def test_every_method_is_for_those_it_is_for(
    who: str, has_polkit: bool, strict_bus: PrivateBus, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if has_polkit:
        polkitd = request.getfixturevalue("real_polkit")
        assert polkitd.poll() is None, (tmp_path / "polkit.log").read_text()
    ids = {"stranger": (OTHER,), "member": (OTHER, GROUP), "root": (0,)}[who]
    with serve(strict_bus.address), connect_as(strict_bus, *ids) as caller:
        found = try_every_method(caller)

    assert found == {
        (interface.name, method.name): method.action in ALLOWED[who, has_polkit]
        for interface in load().values()
        for method in interface.methods.values()
    }


# ---- the template of python-dbusmock ------------------------------------------------------------------


@pytest.fixture
def mocked_polkit(bus: PrivateBus) -> Iterator[Raw]:
    """What python-dbusmock takes for polkit, and a connection to tell it what it allows."""
    command = ["/usr/bin/python3", "-m", "dbusmock", "--template", "polkitd"]
    with subprocess.Popen(
        command,
        env={"DBUS_SYSTEM_BUS_ADDRESS": bus.address, "PATH": "/usr/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        with Raw(bus.address, {}) as raw:
            name = "org.freedesktop.PolicyKit1"
            wait_until(lambda: process.poll() is not None or raw.ask_bus("NameHasOwner", "s", name) == [True])
            if process.returncode is not None and process.stderr is not None:
                pytest.fail(process.stderr.read().decode())
            yield raw
        process.terminate()


@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/dbusmock").exists(), reason="no python3-dbusmock"
)
@pytest.mark.parametrize("allowed", [[], [INFO], [INFO, OBSERVE], [INFO, OBSERVE, CONTROL]])
def test_the_mock_of_polkit_that_others_use_is_understood(
    allowed: list[str], bus: PrivateBus, mocked_polkit: Raw, served: Served
) -> None:
    mock = (
        "org.freedesktop.PolicyKit1",
        "/org/freedesktop/PolicyKit1/Authority",
        "org.freedesktop.DBus.Mock",
    )
    if allowed:
        mocked_polkit._call(*mock, "SetAllowed", "as", [allowed])
    with connect_as(bus, OTHER) as other:
        assert try_all(other) == {action: action in allowed for action in EXAMPLES}


# ---- a password ---------------------------------------------------------------------------------------

# The bus where polkit's setuid helper looks for it, and a PAM that takes any password.
AT_TERMINAL: Final = """
mount --make-rprivate / && mount -t tmpfs none /run && mkdir /run/dbus && touch /run/dbus/system_bus_socket &&
mount --bind "$1" /run/dbus/system_bus_socket && mount --bind "$2" /etc/pam.d && shift 2 && exec "$@"
"""
# As a member: what it imports late is imported before it may no longer read where the tests are.
AS_MEMBER: Final = f"""
import os, subprocess
import conntrackd.bus.client
from conntrackd.cli import ctl
os.chdir("/")
os.setgroups([{GROUP}]); os.setresgid({GROUP}, {GROUP}, {GROUP}); os.setresuid({OTHER}, {OTHER}, {OTHER})
ctl.run(["reload"]), ctl.run(["filter", "reset"])
"""


@pytest.mark.skipif(shutil.which("pkttyagent") is None, reason="pkttyagent is not installed")
def test_a_member_at_a_terminal_is_asked_for_a_password_once(
    strict_bus: PrivateBus, real_polkit: Any, tmp_path: Path
) -> None:
    (tmp_path / "pam").mkdir()
    (tmp_path / "pam/polkit-1").write_text(
        "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\n"
    )
    served = Served(strict_bus.address)
    master, slave = pty.openpty()
    try:
        served.wait_ready()
        socket = strict_bus.address.removeprefix("unix:path=")
        command = ["unshare", "--mount", "sh", "-c", AT_TERMINAL, "sh", socket, os.fspath(tmp_path / "pam")]
        command += ["setsid", "--ctty", "--wait", sys.executable, "-c", AS_MEMBER]
        environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": strict_bus.address, "PYTHONPATH": str(ROOT)}
        status = subprocess.run(
            command, env=environ, stdin=slave, stdout=slave, stderr=slave, timeout=60, check=False
        ).returncode
        said = os.read(master, 1 << 16).decode()
    finally:
        os.close(slave)
        os.close(master)
        served.close()

    assert (status, served.control.asked) == (0, [("reload",), ("reset_filter",)]), said
    assert said.count("Authentication is required to change which connections are logged") == 1
