"""conntrackctl top: a live table of who talks, from the same tail."""

import json
import os
import select
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any, Final

from conntrackd.cli.common import add_updates, connect, print_json, render_bytes
from conntrackd.cli.lines import show_line
from conntrackd.cli.tail import CHUNK, add_rules
from conntrackd.cli.talkers import BY, Talkers
from conntrackd.cli.verb import Verb
from conntrackd.errors import UnavailableError

if TYPE_CHECKING:
    from rich.table import Table

SHOWN: Final = 20
FRAME: Final = 6  # lines of a table besides its rows, and the prompt below


def add_arguments(parser: ArgumentParser) -> None:
    add_rules(parser)
    parser.add_argument("--by", choices=BY, default="src", help="field to count by (default: src)")
    add_updates(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON per update")


def show_top(arguments: Namespace) -> int:
    """Until ^C, or after so many views."""
    with connect(arguments) as client:
        pipe = client.open_tail(arguments.filter, 0)
    try:
        if arguments.json:
            return follow(pipe, arguments, lambda talkers: print_json(to_json(talkers, arguments.by)))
        return show_tables(pipe, arguments)
    except KeyboardInterrupt:
        return 0
    finally:
        os.close(pipe)


def show_tables(pipe: int, arguments: Namespace) -> int:
    """On a terminal a screen that is renewed, of which the last view stays; elsewhere one below the other."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        return follow(
            pipe, arguments, lambda talkers: console.print(render_table(talkers, arguments.by, SHOWN))
        )
    last: Table | None = None

    def show(talkers: Talkers) -> None:
        nonlocal last
        rows = max(1, min(SHOWN, console.height - FRAME))
        last = render_table(talkers, arguments.by, rows)
        live.update(last, refresh=True)

    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            return follow(pipe, arguments, show)
    finally:
        if last is not None:
            console.print(last)


def follow(pipe: int, arguments: Namespace, show: Any) -> int:  # noqa: ANN401  # Callable[[Talkers], None]
    """Read, and show what there is after each interval."""
    talkers, rest, views = Talkers(arguments.by), b"", 0
    until = time.monotonic() + arguments.interval
    while True:
        left = until - time.monotonic()
        if left > 0 and select.select([pipe], [], [], left)[0]:
            data = os.read(pipe, CHUNK)
            if not data:
                raise UnavailableError("the daemon has closed the tail", hint="journalctl -u conntrackd")
            lines, _, rest = (rest + data).rpartition(b"\n")
            for line in lines.splitlines():
                talkers.add(json.loads(line))
        if time.monotonic() >= until:
            show(talkers)
            sys.stdout.flush()
            views += 1
            if views == arguments.count:
                return 0
            until = time.monotonic() + arguments.interval


def to_json(talkers: Talkers, by: str) -> dict[str, Any]:
    """The stable form of one view."""
    rows = [{"key": key, "events": events, "bytes": size} for key, events, size in talkers.list(SHOWN)]
    missing = {"lost": talkers.lost, "gaps": talkers.gaps, "suppressed": talkers.suppressed}
    return {"by": by, "events": talkers.events, **missing, "top": rows}


def render_table(talkers: Talkers, by: str, rows: int) -> "Table":
    """For a terminal. Text is not markup: an organisation may be called `[red]`."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    lost = f", {talkers.lost} lost" if talkers.lost else ""
    lost += f", {talkers.gaps} gap{'' if talkers.gaps == 1 else 's'} of unknown size" if talkers.gaps else ""
    lost += f", {talkers.suppressed} beyond a limit" if talkers.suppressed else ""
    table = Table(title=f"{talkers.events} events{lost}", expand=True)
    table.add_column(by.upper(), overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("EVENTS", justify="right")
    table.add_column("BYTES", justify="right")
    for key, events, size in talkers.list(rows):
        table.add_row(Text(show_line(key)), str(events), render_bytes(size) if size else "-")
    return table


VERBS: Final = (Verb(("top",), "show the top talkers, live", add_arguments, show_top),)
