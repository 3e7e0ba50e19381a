"""Every error that a person can see: message, origin, hint, exit status and D-Bus name.

Raised where the fault is found, printed only in cli/report.py, sent over D-Bus only by bus/service.py.
"""

import os
import traceback
from collections.abc import Sequence
from typing import ClassVar


class ConntrackdError(Exception):
    """A fault with all that people need: what (`message`), where (`origin`, `excerpt`), what to do (`hint`).

    `origin` is `file:line`, an option key or a rule's number; `excerpt` is text shown below the message, such
    as a rule with a caret under the word that is wrong.
    """

    # sysexits.h; 1 where nothing fits better
    exit_status: ClassVar[int] = 1
    dbus_name: ClassVar[str] = "org.conntrackd1.Error.Failed"

    def __init__(self, message: str, *, hint: str = "", origin: str = "", excerpt: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.origin = origin
        self.excerpt = excerpt

    def __str__(self) -> str:
        """The whole error as people read it, without the program's name in front."""
        lines = [f"{self.origin}: {self.message}" if self.origin else self.message]
        lines += [f"  {line}" for line in self.excerpt.splitlines()]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class ManyErrors(ConntrackdError):  # noqa: N818  # they are many
    """All mistakes found in one go, to be fixed in one go. Has the exit status of the first one."""

    def __init__(self, errors: Sequence[ConntrackdError]) -> None:
        super().__init__(errors[0].message)
        self.errors = tuple(errors)
        self.exit_status = errors[0].exit_status  # type: ignore[misc]  # what a class says for one, we say for many
        self.dbus_name = errors[0].dbus_name  # type: ignore[misc]

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class UsageError(ConntrackdError):
    """The command line cannot be understood (EX_USAGE)."""

    exit_status = 64
    dbus_name = "org.conntrackd1.Error.InvalidArguments"


class DataError(ConntrackdError):
    """Input data is not what it should be (EX_DATAERR)."""

    exit_status = 65
    dbus_name = "org.conntrackd1.Error.InvalidArguments"


class UnavailableError(ConntrackdError):
    """Something this machine lacks: conntrack in the kernel, a namespace, a server (EX_UNAVAILABLE)."""

    exit_status = 69
    dbus_name = "org.conntrackd1.Error.Unavailable"


class ResourceError(ConntrackdError):
    """A limit keeps it from starting (EX_OSERR), and does not go away by itself."""

    exit_status = 71


class OutputError(ConntrackdError):
    """A file or stream that cannot be written (EX_IOERR)."""

    exit_status = 74


class NotPermittedError(ConntrackdError):
    """The caller may not do this (EX_NOPERM)."""

    exit_status = 77
    dbus_name = "org.conntrackd1.Error.NotPermitted"


class ConfigError(ConntrackdError):
    """A setting is wrong: nothing has been started or changed (EX_CONFIG)."""

    exit_status = 78
    dbus_name = "org.conntrackd1.Error.InvalidConfiguration"


class RuleError(ConfigError):
    """A filter rule is wrong; `excerpt` shows it with a caret under the word."""

    dbus_name = "org.conntrackd1.Error.InvalidRule"


def show_controls(text: str) -> str:
    """The text with everything but line ends that a terminal would obey (ESC, U+202E, ...) made visible."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def describe_raise_site(error: BaseException) -> str:
    """The file and line that raised it: enough for a report of a fault, and no values of variables."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown"
