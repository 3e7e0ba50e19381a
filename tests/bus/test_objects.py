"""What the bus answers for an object."""

import pytest
from pytest_mock import MockerFixture

from conntrackd.bus.interface import ACTIONS, INFO, load, to_path
from conntrackd.bus.names import MANAGER_PATH
from conntrackd.bus.objects import Objects
from tests.bus.recorder import Recorder


@pytest.mark.parametrize(
    ("path", "asked"), [(MANAGER_PATH, {"status": 1, "statistics": 1}), (to_path("loki"), {"sink_status": 1})]
)
def test_all_properties_of_an_object_are_of_one_moment(
    path: str, asked: dict[str, int], mocker: MockerFixture
) -> None:
    control = Recorder()
    spies = {name: mocker.spy(control, name) for name in ("status", "statistics", "sink_status")}

    Objects(control, load()).read_all(path, set(ACTIONS))

    assert {name: spy.call_count for name, spy in spies.items() if spy.call_count} == asked


def test_properties_without_counters_do_not_wait_for_the_readers(mocker: MockerFixture) -> None:
    control = Recorder()
    objects = Objects(control, load())
    counting = mocker.spy(control, "statistics")
    properties = objects.get_object(MANAGER_PATH)[0].properties.values()

    objects.read(MANAGER_PATH, [prop for prop in properties if prop.emits != "false"])

    assert counting.call_count == 0


def test_rules_are_left_out_for_who_may_not_observe() -> None:
    assert "Rules" not in Objects(Recorder(), load()).read_all(MANAGER_PATH, {INFO})
