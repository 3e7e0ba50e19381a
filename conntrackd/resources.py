"""Limits of the system: one that is too low is reported at the start, with what sets it."""

import errno
import os
import resource
from typing import Final

from conntrackd.errors import ResourceError

# Of the event loop three, the event socket, the state directory, one for a look at the kernel, one to spare.
# Sinks and the bus try again.
DESCRIPTORS: Final = 7
# Four sinks, two spools and the bus, all at once, take twenty. What can be done without waits for so many.
ENOUGH_DESCRIPTORS: Final = 24
# The main one, its helper, the reader, and the one that looks at the databases.
THREADS: Final = 4


def is_kernel(major: int, minor: int) -> bool:
    """Whether the running one is at least of this version; no where it does not say."""
    release = os.uname().release.split(".")
    try:
        return (int(release[0]), int(release[1])) >= (major, minor)
    except (IndexError, ValueError):
        return False


def try_descriptors(number: int = DESCRIPTORS) -> None:
    """Raises ResourceError where not even what is needed without sinks can be opened."""
    opened = []
    try:
        for _ in range(number):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise explain_descriptors(error) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def has_descriptors() -> bool:
    """Whether there may be files that make something better and that nothing needs."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft == resource.RLIM_INFINITY or soft >= ENOUGH_DESCRIPTORS


def raise_descriptors(error: OSError) -> None:
    """ResourceError where it was the limit of open files, whatever it was that could not be opened."""
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        raise explain_descriptors(error) from error


def explain_descriptors(error: OSError) -> ResourceError:
    """What to say when a file or socket could not be opened for want of a number."""
    return ResourceError(
        f"this process cannot open enough files: {error.strerror}",
        hint="LimitNOFILE= in the unit, or ulimit -n, is too low",
    )


def explain_threads(more: int) -> ResourceError:
    """What to say when a thread could not be started. `more`: of sinks, and of readers but the first."""
    return ResourceError(
        "this process cannot start more threads",
        hint=f"it needs {THREADS + more}, and memory for them: TasksMax= in the unit, or ulimit -u, "
        "is too low",
    )


def explain_guard(error: OSError) -> ResourceError:
    """What to say when the process that watches the table could not be started."""
    return ResourceError(
        f"this process cannot start another one, which conntrack.reliable needs: {error.strerror}",
        hint="TasksMax= in the unit, or ulimit -u, is too low",
    )
