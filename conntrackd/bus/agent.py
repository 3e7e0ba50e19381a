"""polkit's own agent, which asks for an administrator's password at a terminal where no desktop does."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what runs imports it late: hardly anybody needs it, and status has to be quick
    import subprocess

PROGRAM = "pkttyagent"


class Agent:
    """Nobody, until start()."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Start the agent. Whether one runs now that did not before, and can ask at the terminal."""
        if self._process is not None or not os.isatty(0):
            return False
        import subprocess  # noqa: PLC0415

        reading, writing = os.pipe()
        # Not --fallback: polkit 122 overlooks such an agent of a process that belongs to no session.
        command = [PROGRAM, "--notify-fd", str(writing), "--process", str(os.getpid())]
        try:
            self._process = subprocess.Popen(command, pass_fds=[writing])
        except OSError:  # polkit is not installed
            return False
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as notified:
            notified.read()  # closed when it is ready, or has failed
        return self._process.poll() is None

    def stop(self) -> None:
        """End it. May be called twice."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
