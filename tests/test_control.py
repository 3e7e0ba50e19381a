"""control.py: what callers ask for costs them their time, and not the daemon's."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from conntrackd import control
from conntrackd.config import read_config
from conntrackd.control import DaemonControl
from conntrackd.daemon import Daemon
from conntrackd.filtering import Filter, compile_filter


def make_control() -> DaemonControl:
    tails = SimpleNamespace(open=lambda selector, limit: 7)
    return DaemonControl(cast(Daemon, SimpleNamespace(config=read_config({}, {}), tails=tails)))


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda each: each.check_filter(["DENY any"]), ["drop any"]),
        (lambda each: each.open_tail(["drop any"], 1), 7),
    ],
)
def test_the_loop_turns_while_rules_are_compiled(ask: Any, answer: object, mocker: MockerFixture) -> None:
    turned = threading.Event()

    def compile_slowly(*arguments: Any) -> Filter:
        assert turned.wait(10), "the loop stands still"
        return compile_filter(*arguments)

    mocker.patch.object(control, "compile_filter", compile_slowly)

    async def run() -> object:
        asyncio.get_running_loop().call_later(0.01, turned.set)
        return await ask(make_control())

    assert asyncio.run(run()) == answer


def test_lists_of_rules_are_compiled_one_after_the_other(mocker: MockerFixture) -> None:
    inside = most = 0

    def count(*arguments: Any) -> Filter:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return compile_filter(*arguments)
        finally:
            inside -= 1

    mocker.patch.object(control, "compile_filter", count)

    async def run() -> None:
        each = make_control()
        await asyncio.gather(*(each.check_filter([f"drop port {port}"] * 20) for port in range(20)))

    asyncio.run(run())

    assert most == 1
