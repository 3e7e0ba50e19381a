"""A program on a terminal of its own, and what somebody in front of it sees."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import pyte

SECONDS: Final = 20.0


class Terminal:
    """Runs a program, whose controlling terminal it is. pyte, which draws, knows of no other screen."""

    def __init__(self, words: Sequence[str], size: tuple[int, int], **environ: str) -> None:
        self._master, slave = pty.openpty()
        self.sent = b""
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self._set_size(size)
        self.modes: list[Any] = termios.tcgetattr(slave)
        known = {"PATH": os.environ["PATH"], "TERM": "xterm", "PYTHONUTF8": "1"} | environ
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *words], stdin=slave, stdout=slave, stderr=slave, env=known
        )
        self._slave = slave

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def _set_size(self, size: tuple[int, int]) -> None:
        columns, lines = size
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """As a window that somebody pulls at."""
        self.screen.resize(lines, columns)
        self._set_size((columns, lines))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self, is_shown: Callable[[list[str]], bool], seconds: float = SECONDS) -> list[str]:
        """What stands on the screen when it is as asked for."""
        end = time.monotonic() + seconds
        while not is_shown(lines := self.list_lines()):
            left = end - time.monotonic()
            assert left > 0, "\n".join(lines)
            assert select.select([self._master], [], [], left)[0], "\n".join(lines)
            self._read()
        return lines

    def settle(self) -> None:
        """See what has been begun to its end: a view may come in parts."""
        while select.select([self._master], [], [], 0.2)[0]:
            self._read()

    def finish(self) -> int:
        """Wait for the end of the program, and see what it has left."""
        status = self.process.wait(SECONDS)
        while select.select([self._master], [], [], 0)[0]:
            self._read()
        return status

    def _read(self) -> None:
        data = os.read(self._master, 1 << 16)
        self.sent += data
        self._stream.feed(data)

    def list_lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def has_end(self, line: int, column: int) -> bool:
        """Whether a word ends there."""
        row = self.screen.buffer[line]
        behind = row[column + 1].data if column + 1 < self.screen.columns else " "
        return bool(row[column].data != " " == behind)

    def is_restored(self) -> bool:
        """Whether keys are echoed and lines are edited, as before."""
        now: list[Any] = termios.tcgetattr(self._slave)
        return now == self.modes
