"""conntrackctl set list, show, reload, add, remove."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from conntrackd.cli import report
from conntrackd.cli.common import (
    add_expiry,
    add_json,
    connect,
    make_change,
    print_json,
    print_lines,
    print_table,
)
from conntrackd.cli.control import render_age
from conntrackd.cli.past import PROGRAM
from conntrackd.cli.verb import Verb

if TYPE_CHECKING:
    from conntrackd.bus.client import Client

Entry = tuple[str, str, int]
"""Its text, what was done to it at run time, and the seconds until that ends, 0 for never."""
NONE: Final = "there are no sets\nhint: in conntrackd.yaml: sets: {bad: /etc/conntrackd/bad.txt}"
RUN_TIME: Final = "until a reload or restart"


def add_set_argument(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("set", metavar="SET", help="name of a set")


def add_sets_argument(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("sets", nargs="*", metavar="SET", help="names of sets, otherwise all")


def add_change_arguments(parser: ArgumentParser) -> None:
    add_set_argument(parser)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="addresses and networks")
    add_expiry(parser, "1h")


def list_sets(arguments: Namespace) -> int:
    with connect(arguments) as client:
        found = client.call("ListSets")[0]
    if arguments.json:
        keys = ("name", "file", "entries", "added", "removed", "expires_s", "used_by")
        print_json([dict(zip(keys, values, strict=True)) for values in found])
        return 0
    if not found:
        report.print_error(PROGRAM, NONE)
        return 0
    rows = [["SET", "ENTRIES", "ADDED", "REMOVED", "FIRST END", "FILE", "USED BY"]]
    for name, path, *numbers, ends, uses in found:
        age = render_age(ends) if ends else "-"
        rows.append([name, *map(str, numbers), age, path, ", ".join(uses) or "no rule"])
    print_table(rows)
    return 0


def show_set(arguments: Namespace) -> int:
    """As a file of a set would have them: what is removed at run time is a comment."""
    with connect(arguments) as client:
        entries = _read_entries(client, arguments.set)
        if arguments.json:
            keys = ("entry", "change", "expires_s")
            print_json([dict(zip(keys, entry, strict=True)) for entry in entries])
            return 0
        for entry in entries:
            print_lines([_render_entry(*entry)])
    return 0


def _read_entries(client: "Client", name: str) -> Iterator[Entry]:
    """Page for page: a set may have a million."""
    after = ""
    while page := client.call("ShowSet", "ss", name, after)[0]:
        yield from page
        after = page[-1][0]


def _render_entry(text: str, change: str, expires_s: int) -> str:
    if not change:
        return text
    lasts = f"for {render_age(expires_s)} more" if expires_s else RUN_TIME
    return f"{'# ' if change == 'removed' else ''}{text}  # {change} at run time, {lasts}"


RELOAD: Final = make_change("ReloadSets", "as", "sets")
ADD: Final = make_change("AddToSet", "sasu", "set", "addresses", "seconds")
REMOVE: Final = make_change("RemoveFromSet", "sasu", "set", "addresses", "seconds")
VERBS: Final = (
    Verb(("set", "list"), "list sets and where they are used", add_json, list_sets),
    Verb(("set", "show"), "show the entries of a set", add_set_argument, show_set),
    Verb(("set", "reload"), "read the files of sets again", add_sets_argument, RELOAD),
    Verb(("set", "add"), "add addresses until a reload or restart", add_change_arguments, ADD),
    Verb(("set", "remove"), "remove addresses, likewise", add_change_arguments, REMOVE),
)
