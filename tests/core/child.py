"""Pytest with another build of the core: python -m tests.core.child FOLDER ARGUMENT..."""

import sys

import pytest

import conntrackd.core


class Patience:
    """What is sanitized is some five times as slow."""

    def pytest_configure(self) -> None:
        # Not before pytest has begun, which rewrites it.
        from hypothesis import settings  # noqa: PLC0415

        settings.register_profile("sanitized", deadline=None)
        settings.load_profile("sanitized")


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    conntrackd.core.__path__.insert(0, folder)
    from conntrackd.core import _core

    assert _core.__file__.startswith(folder), f"{_core.__file__} was loaded instead"
    sys.exit(pytest.main(arguments, plugins=[Patience()]))
