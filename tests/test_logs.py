"""The daemon's own log: its words, and none of a library's that mean nothing to who reads it."""

import io
import logging
from collections.abc import Iterator

import pytest

from conntrackd import logs

# What they say under the unit: a file of /proc is hidden there, a server is away.
CHATTER = [
    ("pyroute2.netlink.rtnl.tcmsg.common", "tcmsg: [Errno 2] '/proc/net/psched': functionality is limited"),
]


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    stream = io.StringIO()
    logs.set_up("info", {}, stream)
    yield stream
    root.handlers[:], root.level, logging.raiseExceptions = before


@pytest.mark.parametrize(("name", "text"), CHATTER)
def test_a_librarys_warning_is_none_of_ours(name: str, text: str, said: io.StringIO) -> None:
    logging.getLogger(name).warning(text)
    logging.getLogger("conntrackd.sinks.loki").warning("works")

    assert said.getvalue() == "conntrackd: warning: works\n"


@pytest.mark.parametrize(("name", "text"), CHATTER)
def test_a_librarys_error_is_told(name: str, text: str, said: io.StringIO) -> None:
    logging.getLogger(name).error(text)

    assert said.getvalue() == f"conntrackd: error: {text}\n"
