"""Imports that leave out what a module would load and not use: memory on each gateway."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Have imports of a module fail, for those who can do without it; not where it is loaded already."""
    is_loaded = name in sys.modules
    if not is_loaded:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's convention for a module that is not there
    try:
        yield
    finally:
        if not is_loaded:
            del sys.modules[name]
