"""What takes time has turns: who may only look waits for others who look, and never keeps root waiting."""

import asyncio
from typing import Any

import pytest

from conntrackd.bus.callers import Polkit
from conntrackd.bus.limits import Turns
from tests.bus.private import PrivateBus, Served, as_user, wait_until
from tests.bus.raw import call, connect_as

STRANGER = 1
RULES = [["log any"]]


@pytest.fixture
def everybody_may(monkeypatch: pytest.MonkeyPatch) -> None:
    async def allow(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(Polkit, "check", allow)


@pytest.mark.privileged
@pytest.mark.usefixtures("everybody_may")
@pytest.mark.parametrize(
    ("member", "signature", "values"),
    [
        ("CheckFilter", "as", RULES),
        ("ExplainFilter", "as", [[]]),
        ("Tail", "asu", [["log any"], 0]),
        ("Doctor", "", []),
    ],
)
def test_what_an_observer_asks_stands_before_nothing_that_root_asks(
    member: str, signature: str, values: list[Any], bus: PrivateBus, served: Served
) -> None:
    release = served.hold()
    with connect_as(bus, STRANGER) as stranger, bus.connect() as root:
        for _ in range(4):
            stranger.post(call(member, signature), values)
        wait_until(lambda: len(served.control.asked) == 1)
        served.control.gate = None

        for asked in (("CheckFilter", "as", ["log any"]), ("Reload",), ("ResetFilter",), ("Doctor",)):
            root.call(*asked)

        assert len(served.control.asked) == 5, "one of the observer's calls at a time, and all of root's"
        release()


@pytest.mark.privileged
@pytest.mark.usefixtures("everybody_may")
def test_what_takes_no_time_waits_for_nobody(bus: PrivateBus, served: Served) -> None:
    release = served.hold()
    with connect_as(bus, STRANGER) as stranger, as_user(STRANGER), bus.connect() as other:
        stranger.post(call("CheckFilter", "as"), RULES)
        wait_until(lambda: len(served.control.asked) == 1)

        assert other.read_properties()["Version"] == "2.0.0"
        release()


def test_one_turn_after_the_other_with_a_rest_in_between_as_long_as_is_said() -> None:
    async def run() -> list[float]:
        turns, began = Turns(rest=3.0), []
        loop = asyncio.get_running_loop()

        async def take() -> None:
            async with turns.take():
                began.append(loop.time())
                await asyncio.sleep(0.05)

        await asyncio.gather(take(), take())
        return began

    first, second = asyncio.run(run())

    assert second - first >= 0.2


def test_who_goes_away_while_he_waits_takes_nobodys_turn() -> None:
    async def run() -> bool:
        turns = Turns()

        async def take(entered: asyncio.Event, leave: asyncio.Event) -> None:
            async with turns.take():
                entered.set()
                await leave.wait()

        events = [asyncio.Event() for _ in range(6)]
        first, second, third = (asyncio.create_task(take(*events[i : i + 2])) for i in (0, 2, 4))
        await events[0].wait()
        second.cancel()
        events[1].set()
        await asyncio.wait_for(events[4].wait(), 5)
        events[5].set()
        await asyncio.gather(first, third)
        return second.cancelled()

    assert asyncio.run(run())
