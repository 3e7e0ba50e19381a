"""Memory on each gateway: imports without what a module would load and not use, and one heap."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Have imports of these fail, for those who can do without them; not of those that are loaded already."""
    missing = [name for name in names if name not in sys.modules]
    # None is Python's convention for a module that is not there.
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def share_arena() -> None:
    """Have threads that are yet to start allocate from one heap, where the core is there to say so."""
    with suppress(ImportError):
        from conntrackd.core._core import share_arena as share  # noqa: PLC0415

        share()
