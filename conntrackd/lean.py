"""Imports that leave out what a module would load and not use: memory on each gateway."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
