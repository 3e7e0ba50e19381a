"""Pytest with another build of the core: python -m tests.core.child FOLDER ARGUMENT..."""

import sys

import pytest

import conntrackd.core

if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    conntrackd.core.__path__.insert(0, folder)
    from conntrackd.core import _core

    assert _core.__file__.startswith(folder), f"{_core.__file__} was loaded instead"
    sys.exit(pytest.main(arguments))
