"""The two programs people type: conntrackd and conntrackctl."""

import sys
from types import TracebackType


def _hide_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """^C while modules are imported, before report.run() can see it: it ends the process, and no more."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hide_interrupt
