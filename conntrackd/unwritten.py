"""Files that the daemon keeps for others, and cannot write: a problem until a write succeeds."""

import errno
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from conntrackd.errors import OutputError
from conntrackd.logs import Repeats

logger = logging.getLogger(__name__)

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Unwritten:
    """What one setting has written. Used by one thread at a time, and read by any."""

    def __init__(self, key: str, effect: str) -> None:
        """`effect` of a file that cannot be written, for people."""
        self.fault: OutputError | None = None
        self._key = key
        self._effect = effect
        self._complaints = Repeats(time.monotonic)

    def fail(self, path: Path, error: OSError) -> None:
        """Say so now and then, and keep it for list_faults()."""
        hint = f"let conntrackd write there; under systemd with ReadWritePaths={path.parent}"
        if error.errno == errno.ENOENT:
            hint = f"mkdir {path.parent}, and {hint}"
        if error.errno in FULL:
            hint = f"make room: df -h {path.parent}; df -i {path.parent}"
        message = f"{path} cannot be written ({error.strerror}): {self._effect}"
        self.fault = OutputError(message, hint=hint, origin=self._key)
        self._complaints.warn(logger, "%s", self.fault)

    def clear(self) -> None:
        """A write has succeeded, or nothing is to be written any more."""
        self.fault = None


def list_faults(kept: Iterable[Unwritten]) -> list[OutputError]:
    """Those of now."""
    return [fault for unwritten in kept if (fault := unwritten.fault) is not None]
