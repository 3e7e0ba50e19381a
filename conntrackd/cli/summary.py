"""conntrackctl summary: totals and tops of what was logged in a time."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from conntrackd.cli.columns import cut, measure, pad, shorten
from conntrackd.cli.common import get_width, parse_count, print_json
from conntrackd.cli.lines import REPORTS, RecordView, show_line
from conntrackd.cli.past import add_selection, open_selected
from conntrackd.cli.talkers import BY, Sizes, Talkers, weigh
from conntrackd.cli.verb import Verb
from conntrackd.units import render_bytes

USUAL: Final = "src,dst,port,country"
SHOWN: Final = 20
BAR: Final = 20  # columns of the longest one, where there are so many
NO_END: Final = 10_000  # columns
# An eighth of a column more for each.
BLOCKS: Final = " ▏▎▍▌▋▊▉█"


def parse_by(text: str) -> tuple[str, ...]:
    """`src,port`: what top counts by, or any field of an event; for argparse."""
    from conntrackd.render.fields import suggest_name  # noqa: PLC0415
    from conntrackd.render.parse import NAMES  # noqa: PLC0415

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    known = dict.fromkeys((*BY, *NAMES))
    for name in names:
        if name not in known:
            hint = suggest_name(name, known)
            raise ArgumentTypeError(f"{name!r} is not a field of an event{f', {hint}' if hint else ''}")
    return names


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--by",
        type=parse_by,
        default=USUAL,
        metavar="NAMES",
        help=f"count by these: {', '.join(BY)}, or any field (default: {USUAL})",
    )
    parser.add_argument(
        "-n",
        dest="count",
        type=parse_count,
        default=SHOWN,
        metavar="N",
        help=f"rows of each (default: {SHOWN})",
    )
    parser.add_argument(
        "-o", dest="form", choices=("table", "json"), default="table", help="form (default: table)"
    )


class Summary:
    """Totals of records, and who talks most, by several keys."""

    def __init__(self, by: Iterable[str]) -> None:
        self.types: Counter[str] = Counter()
        self.size = 0
        self.sampled = 0
        """Records of a sample: with them the sums are estimates."""
        self._sizes = Sizes()
        self.first = ""
        self.last = ""
        self.talkers = {name: Talkers(name) for name in by}
        self.losses = Talkers("type")
        """Of reports alone: they are the same, whatever is counted by."""

    def add(self, record: RecordView) -> None:
        """One record. Times are those of the first and the last that was written."""
        self.first = self.first or str(record.get("time", ""))
        self.last = str(record.get("time", ""))
        kind = str(record.get("type", ""))
        if kind in REPORTS:
            self.losses.add(record)
            return
        weight = weigh(record)
        self.sampled += weight > 1
        self.types[kind] += weight
        size = weight * self._sizes.count(record)
        self.size += size
        for talkers in self.talkers.values():
            talkers.count(record, size, weight)


def show_summary(arguments: Namespace) -> int:
    """Read it all, then show it."""
    summary = Summary(arguments.by)
    with open_selected(arguments) as (source, _):
        for record in source.read():
            summary.add(record)
        if arguments.form == "json":
            print_json(to_json(summary, arguments.count))
        else:
            width = get_width()
            for line in render_summary(summary, arguments.count, width):
                print(cut(line, width))
    return 0


def to_json(summary: Summary, count: int) -> dict[str, Any]:
    """The stable form."""
    return {
        "first": summary.first or None,
        "last": summary.last or None,
        "events": summary.types.total(),
        "types": dict(summary.types),
        "bytes": summary.size,
        "sampled": summary.sampled,
        "lost": summary.losses.lost,
        "gaps": summary.losses.gaps,
        "suppressed": summary.losses.suppressed,
        "by": {
            name: [{"key": key, "events": events, "bytes": size} for key, events, size in talkers.list(count)]
            for name, talkers in summary.talkers.items()
        },
    }


def render_summary(summary: Summary, count: int, width: int = NO_END) -> Iterator[str]:
    """Totals, then the largest by each key, with bars that fit."""
    from conntrackd.cli.lines import Style, render_time  # noqa: PLC0415

    style = Style(has_dates=True)
    types = ", ".join(f"{number} {show_line(kind)}" for kind, number in summary.types.most_common())
    yield f"events: {summary.types.total()}{f' ({types})' if types else ''}"
    if summary.first:
        yield f"time:   {render_time(summary.first, style)} to {render_time(summary.last, style)}"
    if summary.sampled:
        yield f"estimated: {summary.sampled} of the records are of samples, and count by their sample_rate"
    if summary.size:
        yield f"bytes:  {render_bytes(summary.size)}"
    lost, gaps = summary.losses.lost, summary.losses.gaps
    if lost or gaps:
        unknown = f"{gaps} gap{'' if gaps == 1 else 's'} of unknown size" if gaps else ""
        yield f"lost:   {', '.join(filter(None, (str(lost) if lost else '', unknown)))}"
    if summary.losses.suppressed:
        yield f"beyond a limit: {summary.losses.suppressed}"
    for name, talkers in summary.talkers.items():
        rows = talkers.list(count)
        if rows:
            yield ""
            yield from render_rows(name, rows, width)


def render_rows(name: str, rows: list[tuple[str, int, int]], width: int) -> Iterator[str]:
    """A heading, and a line for each; bars are of bytes where there are some, else of events."""
    by_size = rows[0][2] > 0
    largest = max(size if by_size else events for _, events, size in rows)
    keys = [show_line(key) for key, _, _ in rows]
    numbers = f"  {'EVENTS':>9}  {'BYTES':>10}"
    wide = max(len(name), min(width - len(numbers), max(map(measure, keys))))
    heading = pad(name.upper(), wide) + numbers
    room = max(0, min(BAR, width - measure(heading) - 2))
    yield heading
    for key, (_, events, size) in zip(keys, rows, strict=True):
        bar = render_bar(size if by_size else events, largest, room)
        cells = f"  {events:>9}  {render_bytes(size) if size else '-':>10}  {bar}"
        yield f"{pad(shorten(key, wide), wide)}{cells}".rstrip()


def render_bar(value: int, largest: int, columns: int = BAR) -> str:
    """In eighths of a column; something is seen of everything that is not 0, where there is room."""
    eighths = max(bool(value and columns), value * columns * 8 // largest) if largest else 0
    return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()


VERBS: Final = (Verb(("summary",), "show totals and tops of what was logged", add_arguments, show_summary),)
