"""The service as systemd's own tool sees it."""

import subprocess

import pytest

from conntrackd.bus.interface import Interface, Method, load
from conntrackd.bus.names import MANAGER
from tests.bus.private import PrivateBus, Served

# The caller is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged


def busctl(bus: PrivateBus, *words: str) -> str:
    done = subprocess.run(
        ["busctl", f"--address={bus.address}", *words], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


VALUES = {"as": ["1", "log any"], "u": ["60"], "s": ["debug"]}
ANSWERS = {
    "Manager.CheckFilter": 'as 1 "log any"',
    "Manager.SetFilter": 'as 1 "filter: 1 rules, until a restart or reload"',
    "Manager.Reload": 'as 1 "filter: 2 rules"',
    "Sink.Enable": 'as 1 "sink loki is enabled"',
    "Sink.Flush": "b true",
    "Sink.SetFilter": 'as 1 "sink loki: 1 rules"',
}
METHODS = [(interface, method) for interface in load().values() for method in interface.methods.values()]


@pytest.mark.parametrize(("interface", "method"), METHODS, ids=lambda item: item.name)
def test_every_method_is_called(
    interface: Interface, method: Method, bus: PrivateBus, served: Served
) -> None:
    path = "/org/conntrackd1" + ("" if interface.name == MANAGER else "/sink/loki")
    signature = [method.in_signature] if method.takes else []
    values = [word for argument in method.takes for word in VALUES[argument.type]]

    answer = busctl(bus, "call", "org.conntrackd1", path, interface.name, method.name, *signature, *values)

    assert answer.split(" ", 1)[0] == method.out_signature
    name = f"{interface.name.rpartition('.')[2]}.{method.name}"
    assert ANSWERS.get(name, answer) == answer
    assert method.name == "GetStatistics" or len(served.control.asked) == 1


def test_properties_are_read(bus: PrivateBus, served: Served) -> None:
    start = ["get-property", "org.conntrackd1", "/org/conntrackd1", "org.conntrackd1.Manager"]

    assert (
        busctl(bus, *start, "Version", "RuleCount", "KernelGroups") == 's "2.0.0"\nu 2\nas 2 "new" "destroy"'
    )


def test_the_tree_is_shown(bus: PrivateBus, served: Served) -> None:
    assert busctl(bus, "--list", "tree", "org.conntrackd1").split() == [
        "/",
        "/org",
        "/org/conntrackd1",
        "/org/conntrackd1/sink",
        "/org/conntrackd1/sink/journal",
        "/org/conntrackd1/sink/loki",
    ]
