"""What a verb of conntrackctl is: a row of the table in ctl.py."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """`filter check` and the like. Its module imports late what it needs, so that all start quickly."""

    words: tuple[str, ...]
    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    """Returns the exit status, or raises what report.run() tells and turns into one."""
