"""The man pages name every command, option, method, property, signal, action and exit status."""

import argparse
import re

import pytest

from conntrackd import errors
from conntrackd.bus.client import NOT_RUNNING
from conntrackd.bus.interface import ACTIONS, load
from conntrackd.cli import ctl
from conntrackd.cli.completion import list_contexts, render_completion
from conntrackd.cli.control import DEGRADED
from conntrackd.cli.report import EX_IOERR, EX_SOFTWARE, EX_TEMPFAIL, INTERRUPTED
from tests.bus.private import ROOT

CONTROL = (ROOT / "man/conntrackctl.1").read_text()
INTERFACE = (ROOT / "man/org.conntrackd1.5").read_text()


def list_errors(
    kind: type[errors.ConntrackdError] = errors.ConntrackdError,
) -> set[type[errors.ConntrackdError]]:
    """The kinds of errors.py."""
    below = (
        list_errors(subclass) for subclass in kind.__subclasses__() if subclass.__module__ == errors.__name__
    )
    return {kind}.union(*below)


def test_every_command_is_in_the_man_page_and_no_other() -> None:
    section = CONTROL.split(".Sh OPTIONS")[0]
    found = re.findall(r"(?m)^\.It Cm ([a-z -]+?)(?: (?:Ar|Op) .*)?$", section)

    assert sorted(found) == sorted(" ".join(verb.words) for verb in ctl.VERBS)


def test_every_option_is_in_the_man_page_and_no_other() -> None:
    section = CONTROL.split(".Sh OPTIONS")[1].split(".Sh")[0]
    documented = set()
    for line in re.findall(r"(?m)^\.It (Fl .*)$", section):
        documented |= {f"--{word}" for word in re.findall(r"Fl Fl ([\w.-]+)", line)}
        documented |= {f"-{word}" for word in re.findall(r"(?<!Fl )Fl (\w)\b", line)}

    assert documented == {flag for context in list_contexts(ctl.build_parser()) for flag in context.flags}


def test_every_exit_status_is_in_the_man_page() -> None:
    section = CONTROL.split(".Sh EXIT STATUS")[1].split(".Sh")[0]
    statuses = {0, DEGRADED, NOT_RUNNING, EX_SOFTWARE, EX_IOERR, EX_TEMPFAIL, INTERRUPTED}

    assert {int(match) for match in re.findall(r"(?m)^\.It (\d+)$", section)} == statuses | {
        kind.exit_status for kind in list_errors()
    }


def test_every_member_of_the_interface_is_in_the_man_page_with_its_types_and_action() -> None:
    expected = []
    for interface in load().values():
        for method in interface.methods.values():
            words = "".join(f' "{argument.type} {argument.name}"' for argument in method.takes)
            expected.append(("Fn", f"{method.name}{words}", method.action))
        expected += [
            ("Va", f"{prop.name} Pq Ql {prop.type}", prop.action) for prop in interface.properties.values()
        ]

    found = re.findall(r"(?ms)^\.It (Fn|Va) ([^\n]*)\n(?:(?!^\.It ).)*?^Action:\n\.Ql (\S+) \.$", INTERFACE)
    assert found == expected


def test_what_a_method_gives_is_in_the_man_page() -> None:
    for interface in load().values():
        for method in interface.methods.values():
            words = "".join(f' "{argument.type} {argument.name}"' for argument in method.takes)
            given = " ,\n".join(f".Ql {argument.type} {argument.name}" for argument in method.gives)
            assert f".It Fn {method.name}{words}\nGives\n{given} .\n" in INTERFACE


def test_every_signal_action_and_error_is_in_the_man_page() -> None:
    signals = [signal for interface in load().values() for signal in interface.signals.values()]
    names = {kind.dbus_name for kind in list_errors()}

    for signal in signals:
        words = "".join(f' "{argument.type} {argument.name}"' for argument in signal.gives)
        assert f".It Fn {signal.name}{words}\n" in INTERFACE
    for name in (*ACTIONS, *names):
        assert f".It Ql {name}\n" in INTERFACE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_completed(shell: str) -> None:
    parser: argparse.ArgumentParser = ctl.build_parser()
    words = set(re.findall(r"[\w.-]+", render_completion(parser, shell)))
    flags = {flag.lstrip("-") for context in list_contexts(parser) for flag in context.flags}

    offered = {word.lstrip("-") for word in words}
    assert {word for verb in ctl.VERBS for word in verb.words} | flags <= offered
