"""What the verbs that talk to the daemon have in common: the connection, and how they print."""

import json
import os
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from conntrackd.cli.columns import lay_out
from conntrackd.errors import UnavailableError, show_controls
from conntrackd.units import MAX_U32, SECOND_UNITS

if TYPE_CHECKING:  # what runs imports it late: --help and completion need none of it
    from conntrackd.bus.client import Client

LEVELS: Final = ("debug", "info", "warn", "error")
ACTIONS: Final = ("log", "drop")
UNITS: Final = {"": 1, **{unit[0]: seconds for unit, seconds in SECOND_UNITS.items()}}


def add_bus(parser: ArgumentParser) -> None:
    """Where the daemon is."""
    parser.add_argument(
        "--bus.address", dest="bus_address", metavar="ADDRESS", help="D-Bus address instead of the system bus"
    )


def add_json(parser: ArgumentParser) -> None:
    """For a verb that prints data."""
    add_bus(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_expiry(parser: ArgumentParser, example: str) -> None:
    """For a change that may end by itself."""
    parser.add_argument(
        "--for",
        dest="seconds",
        type=parse_seconds,
        default=0,
        metavar="TIME",
        help=f"revert after this time, such as {example}",
    )


def add_sink(parser: ArgumentParser) -> None:
    """Whose rules are meant."""
    parser.add_argument("--sink", metavar="NAME", help="the rules of this sink alone")


def add_rule(parser: ArgumentParser, *names: str, **settings: Any) -> None:  # noqa: ANN401  # argparse's
    """An argument that is rules."""
    parser.add_argument(*names, metavar="RULE", type=parse_rule, **settings)


def add_updates(parser: ArgumentParser) -> None:
    """For a view that is refreshed."""
    parser.add_argument(
        "--interval",
        type=parse_count,
        default=1,
        metavar="SECONDS",
        help="time between two updates (default: 1)",
    )
    parser.add_argument("-n", dest="count", type=parse_count, metavar="N", help="exit after N updates")


def connect(arguments: Namespace) -> "Client":
    """The daemon, of which nothing is asked yet."""
    from conntrackd.bus.client import Client  # noqa: PLC0415

    return Client(arguments.bus_address, os.environ)


def explain_silence(error: UnavailableError, arguments: Namespace) -> UnavailableError:
    """The error itself or, if no daemon runs, one with the reason."""
    from conntrackd.bus.client import NotRunningError  # noqa: PLC0415

    if not isinstance(error, NotRunningError) or arguments.bus_address:
        return error
    from conntrackd.cli import unit  # noqa: PLC0415

    return unit.explain(error, os.environ)


def print_json(value: Any) -> None:  # noqa: ANN401  # whatever JSON can hold
    """One line. Nothing but ASCII, so that no terminal obeys it."""
    print(json.dumps(value))


def print_lines(lines: Sequence[str], *, indent: int = 0) -> None:
    """Text that may come from elsewhere; with an indent, what is too long goes on below, so far in."""
    for line in lines:
        print(wrap(show_controls(line), indent) if indent else show_controls(line))


def wrap(text: str, indent: int) -> str:
    """On a terminal, in as many lines as it takes; an excerpt, which begins with a space, stays as it is."""
    width = get_width()
    if len(text) <= width:
        return text
    import textwrap  # noqa: PLC0415  # few lines are that long

    wrapper = textwrap.TextWrapper(
        max(width, indent + 20), subsequent_indent=" " * indent, break_on_hyphens=False
    )
    return "\n".join(line if line[:1] == " " else wrapper.fill(line) for line in text.split("\n"))


def get_width() -> int:
    """The terminal's; a pipe has no end."""
    import shutil  # noqa: PLC0415  # the daemon, which has none, would load bz2 and lzma with it

    return shutil.get_terminal_size((10_000, 24)).columns


def print_changes(arguments: Namespace, changes: Sequence[str]) -> int:
    """What a change has changed, and how long it lasts."""
    if getattr(arguments, "json", False):
        print_json({"changes": list(changes)})
    else:
        print_lines(changes, indent=2)
    return 0


def make_change(member: str, signature: str = "", *names: str) -> Callable[[Namespace], int]:
    """A verb that calls a method with the arguments of these names, and prints what that has changed."""

    def run(arguments: Namespace) -> int:
        values = [getattr(arguments, name) for name in names]
        with connect(arguments) as client:
            changes = client.call(member, signature, *values, sink=getattr(arguments, "sink", None))[0]
        return print_changes(arguments, changes)

    return run


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns below their headings; numbers to the right; no wider than the terminal."""
    for line in lay_out(rows, get_width()):
        print(line)


def parse_seconds(text: str) -> int:
    """`10m` -> 600, for argparse. At least 1; how much is too much, the daemon says."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if match is None or int(match[1]) == 0:
        raise ArgumentTypeError(f"{text!r} is not a valid time: give a number with s, m, h or d, such as 10m")
    return min(int(match[1]) * UNITS[match[2]], MAX_U32)  # what a call can carry


def parse_rule(text: str) -> str:
    """As it is, for argparse; but `log type NEW` without quotes is three arguments, which are no rules."""
    if text.lower() in ACTIONS:
        raise ArgumentTypeError(f"a rule is one argument: put it in quotes, such as '{text} type NEW'")
    if " " not in text and os.path.isfile(text):
        raise ArgumentTypeError(f"{text!r} is a file, and not a rule")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # the bus would carry another rule
        raise ArgumentTypeError(f"{text!r} is not UTF-8 text") from error
    return text


def explain_rule(text: str) -> str:
    """A hint where a rule stands that is not taken there; empty for what does not begin as one."""
    return "a rule stands behind --filter, in quotes" if text.partition(" ")[0].lower() in ACTIONS else ""


def parse_count(text: str) -> int:
    """A number from 1 that fits into 32 bits, for argparse."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999999999")
    return int(text)
