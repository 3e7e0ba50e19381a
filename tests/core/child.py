"""Pytest with another build of the core: python -m tests.core.child FOLDER ARGUMENT..."""

import sys

import pytest

import conntrackd.core

EXAMPLES = 25


class Patience:
    """What is sanitized is some five times as slow, and Python with it: fewer examples, without a deadline.

    The plain tests beside it have all of them, and libFuzzer finds more than both.
    """

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Not before pytest has begun, which rewrites it.
        from hypothesis import settings  # noqa: PLC0415

        for item in items:
            test = getattr(item, "obj", None)
            chosen = getattr(test, "_hypothesis_internal_use_settings", None)
            if chosen is not None:
                limit = min(chosen.max_examples, EXAMPLES)
                test._hypothesis_internal_use_settings = settings(  # type: ignore[union-attr]
                    chosen, max_examples=limit, deadline=None
                )


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    conntrackd.core.__path__.insert(0, folder)
    from conntrackd.core import _core

    assert _core.__file__.startswith(folder), f"{_core.__file__} was loaded instead"
    sys.exit(pytest.main(arguments, plugins=[Patience()]))
