"""What a verb of conntrackctl is: a row of the table in ctl.py. And the form of --help."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Final, NamedTuple

WIDTH: Final = 80


class HelpFormatter(RawDescriptionHelpFormatter):
    """Help that fits 80 columns, whatever the terminal's width: it is read in tickets and mails too."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=WIDTH)


class Verb(NamedTuple):
    """`filter check` and the like. Its module imports late what it needs, so that all start quickly."""

    words: tuple[str, ...]
    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    """Returns the exit status, or raises what report.run() tells and turns into one."""
