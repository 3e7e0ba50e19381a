"""The daemon's own log: a process of its own, because it is one for each."""

import subprocess
import sys

import pytest

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
