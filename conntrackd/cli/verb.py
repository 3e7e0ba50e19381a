"""A verb of conntrackctl: a row of the table in ctl.py. The parser and --help of both programs."""

import re
from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from conntrackd.errors import UsageError

WIDTH: Final = 80


class HelpFormatter(RawDescriptionHelpFormatter):
    """Help that fits 80 columns, whatever the terminal's width: it is read in tickets and mails too."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=WIDTH)


class Parser(ArgumentParser):
    """Raises what is wrong instead of ending the process: that is report.run()'s alone."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  # as argparse takes them
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **settings})
        self._negative_number_matcher = re.compile(r"-\d")  # `--since -1h` has a value, and not a flag

    def _check_value(self, action: Action, value: Any) -> None:  # noqa: ANN401
        if action.choices is None or value in action.choices:
            return
        from conntrackd.text import quote, suggest  # noqa: PLC0415  # for a mistake alone

        words = [str(choice) for choice in action.choices]
        name = str(action.metavar or "/".join(action.option_strings)).lower()
        hint = (
            self._explain_elsewhere(str(value)) or suggest(str(value), words) or f"one of: {', '.join(words)}"
        )
        raise UsageError(f"unknown {name} {quote(str(value))}", hint=hint)

    def _explain_elsewhere(self, word: str) -> str:
        """A hint for what is a command of other programs, and something else here."""
        if word in {"help", "version"}:
            return f"{self.prog if word == 'help' else self.prog.partition(' ')[0]} --{word}"
        return f"systemctl {word} conntrackd" if word in {"start", "stop", "restart"} else ""

    def error(self, message: str) -> NoReturn:
        message = message.replace("ignored explicit argument", "does not take")
        raise UsageError(message, hint=f"'{self.prog} --help' lists what is available")

    def refuse_early(self, words: Sequence[str]) -> None:
        """Raises for an option before the command that is not one there: argparse would miss the command."""
        flag = words[0].partition("=")[0] if words else ""
        if not flag.startswith("-") or flag in self._option_string_actions:
            return
        from conntrackd.text import quote  # noqa: PLC0415  # for a mistake alone

        raise UsageError(
            f"unknown option {quote(flag)} before the command",
            hint=f"options of a command stand behind it; '{self.prog} --help' lists what is available",
        )

    def add_commands(self) -> "_SubParsersAction[Parser]":
        """What its commands are added to, of which one has to be chosen."""
        return self.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)

    def list_flags(self) -> list[str]:
        """The options that it takes."""
        return list(self._option_string_actions)


def add_command(
    commands: "_SubParsersAction[Parser]",
    name: str,
    text: str,
    **settings: Any,  # noqa: ANN401  # as argparse takes them
) -> Parser:
    """One that --help describes by the line that it has in the list."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **settings)


class Verb(NamedTuple):
    """`filter check` and the like. Its module imports late what it needs, so that all start quickly."""

    words: tuple[str, ...]
    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    """Returns the exit status, or raises what report.run() prints and turns into one."""
