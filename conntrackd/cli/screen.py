"""A view that is refreshed: in place on a terminal, elsewhere one below the other.

Not curses: a last view would not stay, and a terminal that it does not know would be an error.
"""

import os
import re
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NamedTuple, Self

from conntrackd.cli.charset import ERRORS
from conntrackd.cli.columns import cut, measure, pad
from conntrackd.cli.lines import show_line

# ECMA-48 and xterm's ctlseqs: the other screen, without a cursor and without wrapping of lines; and back.
ENTER: Final = "\033[?1049h\033[?25l\033[?7l"
LEAVE: Final = "\033[?7h\033[?25h\033[?1049l"
HOME: Final = "\033[H"
REST_OF_LINE: Final = "\033[K"
REST_OF_SCREEN: Final = "\033[J"
REVERSE: Final = "\033[7m{}\033[0m"
# What arrow and function keys send is not the letters in it.
SEQUENCE: Final = re.compile(r"\033(?:\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
REFRESH: Final = "\f"  # ^L, also after a change of the terminal's size
QUIT: Final = "q"
KEYS: Final = 1024  # bytes of the keyboard that are read at once: nobody types more


class Woken(NamedTuple):
    """What a view has waited for; nothing if the time was up."""

    has_data: bool = False
    keys: str = ""


class Paper:
    """A pipe, a file, or a terminal that cannot move its cursor: views follow each other."""

    is_live = False
    """Whether a view can be drawn again, and keys come."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Columns and lines; None where there is no end of them."""
        return None, None

    def draw(self, lines: Sequence[str], heading: int = 0, foot: str = "") -> None:
        """Print the lines."""
        print(*lines, sep="\n", flush=True)

    def wait(self, seconds: float, pipe: int | None = None) -> Woken:
        """Until the pipe can be read, or the time is up."""
        ready = select.select([] if pipe is None else [pipe], [], [], max(0, seconds))[0]
        return Woken(has_data=bool(ready))


class Screen(Paper):
    """A terminal, whose other screen is drawn over. At the end the last view stays on the first one."""

    is_live = True

    def __init__(self) -> None:
        self._last: tuple[Sequence[str], int, str] = ((), 0, "")
        self._keyboard = 0 if os.isatty(0) else None
        self._modes: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._waking: tuple[int, int] = (-1, -1)

    def __enter__(self) -> Self:
        self._waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waking[1], warn_on_full_buffer=False)
        handlers = {signal.SIGWINCH: lambda *_: None}  # it wakes wait()
        handlers |= dict.fromkeys((signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP), self._step_aside)
        self._handlers = {
            number: signal.signal(number, handler)
            for number, handler in handlers.items()
            if signal.getsignal(number) is not signal.SIG_IGN  # by nohup, say
        }
        sys.stdout.flush()
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        for descriptor in self._waking:
            os.close(descriptor)
        for line in self._last[0]:
            print(cut(show_line(line), self.size[0]))

    @property
    def size(self) -> tuple[int, int]:
        """The columns, and the lines but for the one below all others, where the cursor stays."""
        size = shutil.get_terminal_size()
        return size.columns, max(1, size.lines - 1)

    def draw(self, lines: Sequence[str], heading: int = 0, foot: str = "") -> None:
        """Draw over the last view, in one write and without clearing before it: nothing flickers."""
        self._last = lines, heading, foot
        foot = "" if self._keyboard is None else foot  # which is about keys
        width, height = self.size
        shown = [cut(show_line(line), width) for line in lines[: height - bool(foot)]]
        if heading < len(shown):
            shown[heading] = REVERSE.format(pad(shown[heading], width))
        if foot:
            shown.append(cut(foot, width))
        # A cursor behind the last column still stands in it: the rest of a full line is its last character.
        ends = ["" if measure(line) >= width else REST_OF_LINE for line in shown]
        text = "\r\n".join(map("".join, zip(shown, ends, strict=True)))
        self._write(f"{HOME}{text}\r\n{REST_OF_SCREEN}")

    def wait(self, seconds: float, pipe: int | None = None) -> Woken:
        """Until the pipe can be read, a key is pressed, the size changes, or the time is up."""
        waking = self._waking[0]
        sources = [source for source in (waking, self._keyboard, pipe) if source is not None]
        ready = select.select(sources, [], [], max(0, seconds))[0]
        keys = self._read_keys() if self._keyboard is not None and self._keyboard in ready else ""
        if waking in ready:
            with suppress(BlockingIOError):
                os.read(waking, KEYS)
            keys += REFRESH
        return Woken(pipe in ready, keys)

    def _read_keys(self) -> str:
        """Those that were typed. A keyboard that has ended is not asked again."""
        try:
            data = os.read(0, KEYS)
        except OSError:
            data = b""
        if not data:
            self._keyboard = None
        return SEQUENCE.sub("", data.decode(errors="ignore"))

    def _step_aside(self, number: int, _frame: FrameType | None) -> None:
        """Give the terminal back and do what the signal does by default, from which only a stop returns."""
        self._stop()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._step_aside)
        self._start()
        self.draw(*self._last)

    def _start(self) -> None:
        if self._keyboard is not None:
            import termios  # noqa: PLC0415  # for a terminal alone
            import tty  # noqa: PLC0415

            self._modes = termios.tcgetattr(0)
            tty.setcbreak(0)
        self._write(ENTER)

    def _stop(self) -> None:
        """Also of a terminal that is gone."""
        with suppress(OSError):
            self._write(LEAVE)
        if self._modes:
            import termios  # noqa: PLC0415

            with suppress(OSError, termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._modes)

    def _write(self, text: str) -> None:
        """All of it at once, without the buffer of stdout, which a handler must not enter again."""
        data = text.encode(sys.stdout.encoding, ERRORS)
        while data:
            data = data[os.write(1, data) :]


def open_view() -> Paper:
    """What stdout is fit for."""
    has_cursor = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")
    return Screen() if has_cursor else Paper()
