"""The service as systemd's own tool sees it."""

import subprocess

import pytest

from tests.bus.private import PrivateBus, Served

# The caller is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged


def busctl(bus: PrivateBus, *words: str) -> str:
    done = subprocess.run(
        ["busctl", f"--address={bus.address}", *words], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["CheckFilter", "as", "1", "LOG any"], 'as 1 "log any"'),
        (["SetFilter", "asu", "1", "log any", "60"], 'as 1 "filter: 1 rules, until a restart or reload"'),
        (["Reload"], 'as 1 "filter: 2 rules"'),
    ],
)
def test_methods_are_called(words: list[str], answer: str, bus: PrivateBus, served: Served) -> None:
    start = ["call", "org.conntrackd1", "/org/conntrackd1", "org.conntrackd1.Manager"]

    assert busctl(bus, *start, *words) == answer
    assert busctl(bus, "--auto-start=no", *start, *words) == answer


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
