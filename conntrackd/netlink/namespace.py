"""Do something in a named network namespace, in this thread."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conntrackd.errors import NotPermittedError, UnavailableError
from conntrackd.resources import raise_descriptors

NAMED: Final = Path("/run/netns")
OWN: Final = Path("/proc/thread-self/ns/net")


@contextmanager
def enter(name: str | None, origin: str = "") -> Iterator[None]:
    """What is opened inside belongs to the namespace and stays there afterwards. None: stay where we are.

    A name is one of /run/netns, a path that of any namespace; `origin` is where it was given. Raises
    UnavailableError for one that is none, NotPermittedError without CAP_SYS_ADMIN, ResourceError where no
    more files may be opened.
    """
    if name is None:
        yield
        return
    # Late: pyroute2 takes 7 MB and 60 ms, which only those pay who asked for a namespace.
    from pyroute2 import netns  # noqa: PLC0415

    check(name, origin)
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _change(name, origin)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def check(name: str, origin: str = "") -> None:
    """Raise UnavailableError where there is no such namespace; that takes no privilege."""
    try:
        # What `ip netns` mounts, and what /proc has, looks like a plain file, of the namespaces' file system.
        is_there, device = get_path(name).is_file(), get_path(name).stat().st_dev
    except FileNotFoundError:
        is_there = False
    except OSError:
        return  # a folder that only root may look into: entering will show
    if is_there and device != OWN.stat().st_dev:
        raise UnavailableError(f"{name!r} is not a network namespace: it is another file", origin=origin)
    if not is_there:
        names = sorted(path.name for path in NAMED.iterdir()) if NAMED.is_dir() else []
        raise UnavailableError(
            f"there is no network namespace {name!r}",
            origin=origin,
            hint=f"known: {', '.join(names) or 'there are none'}",
        )


def get_path(name: str) -> Path:
    """Where the namespace is: a path from the root is its own."""
    return NAMED / name


def _change(name: str, origin: str) -> None:
    from pyroute2 import netns  # noqa: PLC0415

    try:
        # And never O_CREAT, its default: a typing error would make a namespace.
        netns.setns(os.fspath(get_path(name)), flags=0)
    except PermissionError as error:
        raise NotPermittedError(
            f"not permitted to enter network namespace {name!r}: CAP_SYS_ADMIN is missing",
            origin=origin,
            hint="run it as root",
        ) from error
    except OSError as error:
        raise_descriptors(error)
        raise UnavailableError(
            f"{name!r} is not a network namespace: {os.strerror(error.errno or 0)}", origin=origin
        ) from error
