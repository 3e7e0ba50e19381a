"""Control and kernel -> State, of one moment. In the main thread, like all of Control."""

import time
from contextlib import closing

from conntrackd.bus.control import Control
from conntrackd.errors import ConntrackdError
from conntrackd.metrics.table import State
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.table import ConntrackTable


def gather(control: Control, namespace: str | None) -> State:
    """`namespace`: where the connection table is. Of a kernel that does not answer nothing is shown."""
    fill, cpus = None, {}
    try:
        # As source/hearing.py looks: no socket is kept, and there is none to be out of step.
        with enter(namespace), closing(ConntrackTable()) as table:
            fill, cpus = table.measure(), table.read_cpus()
    except (ConntrackdError, OSError):
        pass  # what keeps events from coming is a problem of its own
    sinks = {name: control.sink_status(name).state for name in control.list_sinks()}
    return State(control.status(), control.statistics(), sinks, time.time_ns(), fill, cpus)
