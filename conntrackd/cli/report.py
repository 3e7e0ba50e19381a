"""An error -> stderr and exit status. The only sys.exit."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Final, NoReturn

from conntrackd.cli.charset import ERRORS
from conntrackd.errors import (
    ConntrackdError,
    ManyErrors,
    UnavailableError,
    describe_raise_site,
    show_controls,
)
from conntrackd.files import locate_standard
from conntrackd.resources import explain_descriptors

# sysexits.h: an error in the program itself (EX_SOFTWARE), in input or output (EX_IOERR), or one that may
# be over at the next start (EX_TEMPFAIL)
EX_SOFTWARE: Final = 70
EX_IOERR: Final = 74
EX_TEMPFAIL: Final = 75
FULL: Final = "the output is incomplete: free space there, or write to another place"
INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it


def run(program: str, function: Callable[[], int | None]) -> NoReturn:
    """Call `function` and end the process with its status (None is 0), or with that of the error it raises.

    A reader that goes away (`| head`) has had enough: that is not a failure, and nothing is printed.
    """
    fill_standard()
    if isinstance(sys.stdout, TextIOWrapper):  # of a city's name a terminal in Latin 1 has what it can show
        sys.stdout.reconfigure(errors=ERRORS)
    try:
        status = function() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:  # the edge: no traceback ever reaches a user
        status = report(program, error)
        if not _can_flush():  # nor could the interpreter at its end
            _discard_stdout()
    sys.exit(status)


def fill_standard() -> None:
    """Lead standard streams that are closed nowhere.

    Else the next file or socket gets such a number, and whatever is printed goes into it. `sys.__stdout__`
    stays None, so that who was to write events there can say that it is closed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number there is
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def report(program: str, error: Exception) -> int:
    """Print the error to stderr and return the exit status that belongs to it."""
    match error:
        case ManyErrors():
            for mistake in error.errors:
                print_error(program, str(mistake))
            return error.exit_status
        case ConntrackdError():
            print_error(program, str(error))
            return error.exit_status
        case MemoryError():
            print_error(
                program, "out of memory\nhint: raise MemoryMax= in the unit, or lower sink.NAME.queue"
            )
            return EX_TEMPFAIL
        case ImportError():
            print_error(
                program,
                f"{error}\nhint: a library is not installed for this Python, or has no memory to load",
            )
            return UnavailableError.exit_status
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return report(program, explain_descriptors(error))
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            where = error.filename or (locate_standard(1) if _is_output_full() else "a file")
            print_error(program, f"{where}: {error.strerror}\nhint: {FULL}")
            return EX_IOERR
        case OSError():
            where = f"{error.filename}: " if error.filename is not None else ""
            print_error(program, f"{where}{error.strerror or error}")
            return EX_IOERR
    print_error(program, f"internal error: {type(error).__name__}: {error} (at {describe_raise_site(error)})")
    return EX_SOFTWARE


def warn(program: str, warning: ConntrackdError) -> None:
    """Print a warning to stderr, in the format of an error."""
    print_error(program, f"warning: {warning}")


def print_error(program: str, text: str) -> None:
    """One message to stderr, after what stdout holds already; no control character reaches the terminal."""
    # Either may be closed: then nobody reads.
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(f"{program}: {show_controls(text)}", file=sys.stderr, flush=True)


def _is_output_full() -> bool:
    """What it could not take it still has, unless it keeps nothing."""
    return bool(getattr(sys.stdout, "write_through", False)) or not _can_flush()


def _can_flush() -> bool:
    try:
        with suppress(ValueError):  # of one that is closed
            sys.stdout.flush()
    except OSError:
        return False
    return True


def _discard_stdout() -> None:
    """Lead stdout nowhere, so that the interpreter's last flush finds no broken pipe again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
