"""Do something in a named network namespace, in this thread."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from conntrackd.errors import NotPermittedError, UnavailableError


@contextmanager
def enter(name: str | None) -> Iterator[None]:
    """What is opened inside belongs to the namespace and stays there afterwards. None: stay where we are.

    Raises UnavailableError for a name that is none, NotPermittedError without CAP_SYS_ADMIN.
    """
    if name is None:
        yield
        return
    # Late: pyroute2 takes 7 MB and 60 ms, which only those pay who asked for a namespace.
    from pyroute2 import netns  # noqa: PLC0415

    if name not in netns.listnetns():
        known = ", ".join(netns.listnetns()) or "there are none"
        raise UnavailableError(
            f"there is no network namespace {name!r}", place="conntrack.netns", hint=f"known: {known}"
        )
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _change(name)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def _change(name: str) -> None:
    from pyroute2 import netns  # noqa: PLC0415

    try:
        netns.setns(name, flags=0)  # and never O_CREAT, its default: a typing error would make a namespace
    except PermissionError as error:
        raise NotPermittedError(
            f"not permitted to enter network namespace {name!r}: CAP_SYS_ADMIN is missing",
            place="conntrack.netns",
            hint="run it as root",
        ) from error
