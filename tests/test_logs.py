"""The daemon's own log: a process of its own, because it is one for each."""

import logging
import subprocess
import sys

import pytest

from conntrackd.logs import Repeats
from tests.delivery.fakes import Clock

LIBRARIES = {"asyncio": "info", "pyroute2.netlink.rtnl.tcmsg.common": "warning"}
CODE = """
import logging, sys
from conntrackd import logs
logs.set_up("info", {})
getattr(logging.getLogger(sys.argv[1]), sys.argv[2])("chatter")
logging.getLogger("conntrackd").warning("ours")
"""


@pytest.mark.parametrize(("name", "level"), LIBRARIES.items())
def test_the_chatter_of_a_library_is_no_message_of_ours(name: str, level: str) -> None:
    command = [sys.executable, "-c", CODE, name, level]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stderr == "conntrackd: warning: ours\n"


def test_a_message_is_repeated_once_an_interval_with_the_number_of_the_silent_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    repeats = Repeats(clock, 60.0)
    logger = logging.getLogger("test")
    reported = []
    for pause in (0.0, 10.0, 10.0, 10.0, 60.0, 60.0):
        clock.now += pause
        reported.append(repeats.warn(logger, "%s is away", "loki"))

    assert reported == [True, False, False, False, True, True]
    assert [record.getMessage() for record in caplog.records] == [
        "loki is away",
        "loki is away (3 times more since the last message)",
        "loki is away",
    ]
