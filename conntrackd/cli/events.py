"""conntrackctl events: what was logged, from where it was logged to. No daemon is asked."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from conntrackd.cli import report
from conntrackd.cli.common import get_width, parse_count
from conntrackd.cli.lines import (
    TABLE,
    WIDE,
    RecordView,
    Style,
    fit,
    render_csv,
    render_csv_record,
    render_full,
    render_heading,
    render_json,
    render_short,
    render_table_record,
    should_colour,
)
from conntrackd.cli.past import PROGRAM, add_selection, open_selected
from conntrackd.cli.verb import Verb
from conntrackd.errors import UsageError

if TYPE_CHECKING:
    from conntrackd.history.source import Source

FORMS: Final = ("short", "full", "json", "jsonl", "csv", "table", "wide")
# What --follow begins with, unless --since or --last is given; as journalctl -f.
FOLLOWED: Final = 10
NOTHING: Final = "nothing was found\nhint: rules, --since and --until choose; --from names another source"


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("-n", "--last", dest="last", type=parse_count, metavar="N", help="the last N of them")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until ^C")
    parser.add_argument(
        "-o", dest="form", choices=FORMS, metavar="FORM", help=f"{', '.join(FORMS)} (default: short)"
    )
    parser.add_argument("--fields", metavar="NAMES", help="show these fields alone, such as time,src,dport")
    parser.add_argument("--utc", action="store_true", help="show times in UTC")
    parser.add_argument("--no-hostname", action="store_true", help="leave out the name of the host")
    parser.add_argument("--numeric", action="store_true", help="ports as numbers, without names of services")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colours (default: auto)"
    )
    parser.add_argument("--no-pager", action="store_true", help="write to the terminal itself")


def show_events(arguments: Namespace) -> int:
    """All that is wanted, and with --follow what comes, until ^C."""
    from conntrackd.cli.pager import paged  # noqa: PLC0415  # subprocess, for this verb alone

    form, style = choose_form(arguments)
    is_found, is_terminal = True, sys.stdout.isatty()
    with open_selected(arguments) as (source, _):
        try:
            with paged(wanted=not (arguments.no_pager or arguments.follow)):
                records = list_records(source, arguments)
                if arguments.no_hostname:
                    records = drop_hostnames(records)
                is_found = write(records, form, style, is_live=arguments.follow)
        except KeyboardInterrupt:
            if not arguments.follow:
                raise
    if is_terminal and not is_found and not arguments.follow:  # a program sees that there is nothing
        report.print_error(PROGRAM, NOTHING)
    return 0


def choose_form(arguments: Namespace) -> tuple[str, Style]:
    """The form that the options ask for. Raises UsageError where they contradict each other."""
    fields = parse_fields(arguments.fields) if arguments.fields is not None else ()
    form = arguments.form or ("table" if fields else "short")
    if form == "short" and fields:
        raise UsageError("-o short has no choice of fields", hint="-o table, full, csv or jsonl has")
    if form == "json" and arguments.follow:
        raise UsageError(
            "-o json is one list, and has no end with --follow", hint="-o jsonl is a line for each"
        )
    if arguments.until is not None and arguments.follow:
        raise UsageError("--follow has no end, and --until is one", hint="leave one of them out")
    is_terminal = sys.stdout.isatty()
    style = Style(
        colour=should_colour(arguments.color),
        has_dates=True,
        utc=arguments.utc,
        services=not arguments.numeric,
        fields=fields or choose_fields(form, has_host=not arguments.no_hostname),
        width=get_width() if is_terminal and form == "table" else None,
    )
    return form, style if fields else fit(style)


def parse_fields(text: str) -> tuple[str, ...]:
    """`time,src,dport`. Raises UsageError for a name that no record has."""
    from conntrackd.render.fields import suggest_name  # noqa: PLC0415
    from conntrackd.render.parse import NAMES  # noqa: PLC0415
    from conntrackd.text import quote  # noqa: PLC0415

    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in NAMES:
            hint = suggest_name(name, NAMES) or "conntrackd-events(7) lists them"
            raise UsageError(f"--fields: there is no field {quote(name)}", hint=hint)
    return tuple(dict.fromkeys(names))


def choose_fields(form: str, *, has_host: bool) -> tuple[str, ...]:
    """What a form shows where nobody chooses."""
    if form == "csv":
        from conntrackd.render.parse import NAMES  # noqa: PLC0415

        return tuple(name for name in NAMES if has_host or name != "host")
    return {"table": TABLE, "wide": WIDE}.get(form, ())


def list_records(source: "Source", arguments: Namespace) -> Iterator[RecordView]:
    """In the order of their time, as far as they were written so."""
    last = arguments.last
    if last is None and arguments.follow and arguments.since is None:
        last = FOLLOWED
    yield from source.read() if last is None else source.read_last(last)
    if arguments.follow:
        yield from source.follow()


def drop_hostnames(records: Iterable[RecordView]) -> Iterator[RecordView]:
    """The same without the field."""
    return ({name: value for name, value in record.items() if name != "host"} for record in records)


def write(records: Iterable[RecordView], form: str, style: Style, *, is_live: bool) -> bool:
    """To stdout; each one at once, where somebody waits for the next. Whether there was any."""
    if form == "json":
        return write_list(records, style)
    render, heading = choose_renderer(form, style)
    if heading:
        print(heading, flush=is_live)
    is_found = False
    for record in records:
        is_found = True
        print(render(record, style), flush=is_live)
    return is_found


def choose_renderer(form: str, style: Style) -> tuple[Callable[[RecordView, Style], str], str]:
    """What draws a record, and what stands above the first one."""
    match form:
        case "full":
            return render_full, ""
        case "jsonl":
            return render_json, ""
        case "csv":
            return render_csv_record, render_csv(style.fields)
        case "table" | "wide":
            return render_table_record, render_heading(style)
    return render_short, ""


def write_list(records: Iterable[RecordView], style: Style) -> bool:
    """One JSON list, a record on each line of it. Whether there was any."""
    separator = "["
    for record in records:
        print(f"{separator}{render_json(record, style)}", end="")
        separator = ",\n "
    is_found = separator != "["
    print("]" if is_found else "[]")
    return is_found


VERBS: Final = (Verb(("events",), "show what was logged", add_arguments, show_events),)
