"""What stands on a terminal as an SVG: text stays text, to be searched, and read to whoever cannot see it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT, MARGIN = 8.4, 18, 14  # of a character, of a line, around all, in pixels
BACKGROUND, FOREGROUND, FAINT = "#1b1f24", "#d7dce2", "#8b949e"
# pyte's names for the eight colours; brown is its word for 33.
COLOURS: Final = {
    "black": "#484f58",
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#e3b341",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#76e3ea",
    "white": FOREGROUND,
}
Cell = tuple[str, str, bool, bool]
"""Text, colour, whether it is bold and reversed."""


def read_cells(screen: Any) -> list[list[Cell]]:
    """The lines of pyte's screen, without the empty ones at the end."""
    lines = [
        [
            (cell.data, cell.fg, cell.bold, cell.reverse)
            for cell in (screen.buffer[number][column] for column in range(screen.columns))
        ]
        for number in range(screen.lines)
    ]
    while lines and all(text == " " and not reverse for text, _, _, reverse in lines[-1]):
        lines.pop()
    return lines


def draw(command: str, lines: Sequence[Sequence[Cell]], columns: int) -> str:
    """The picture: the command that was given, and below it what it showed."""
    width, height = round(columns * WIDTH + 2 * MARGIN), HEIGHT * (len(lines) + 1) + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" '
        'font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14">',
        f"<title>{escape(command)}</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="{BACKGROUND}"/>',
        f'<g fill="{FOREGROUND}" xml:space="preserve">',
        draw_text(0, 0, "#", {"fill": FAINT}) + draw_text(2, 0, command, {"font-weight": "bold"}),
    ]
    parts += ["".join(draw_line(number, line)) for number, line in enumerate(lines, 1)]
    return "\n".join([*filter(None, parts), "</g>", "</svg>"]) + "\n"


def draw_line(number: int, line: Sequence[Cell]) -> Iterator[str]:
    """Words that look alike are one text; behind two spaces another one begins at its place: columns stay."""
    column = 0
    for (colour, bold, reverse), cells in groupby(line, key=lambda cell: cell[1:]):
        text = "".join(cell[0] for cell in cells)
        if reverse:
            x, y = MARGIN + column * WIDTH, MARGIN + number * HEIGHT
            size = f'width="{len(text) * WIDTH:g}" height="{HEIGHT}"'
            yield f'<rect x="{x:g}" y="{y:g}" {size} fill="{FOREGROUND}"/>'
        style = {"fill": BACKGROUND if reverse else COLOURS[colour]} if reverse or colour in COLOURS else {}
        style |= {"font-weight": "bold"} if bold else {}
        for match in re.finditer(r"\S+(?: \S+)*", text):
            yield draw_text(column + match.start(), number, match[0], style)
        column += len(text)


def draw_text(column: int, line: int, text: str, style: Mapping[str, str]) -> str:
    """At its place and as wide as its characters, whatever font the reader has."""
    places = {
        "x": f"{MARGIN + column * WIDTH:g}",
        "y": f"{MARGIN + line * HEIGHT + 13:g}",
        "textLength": f"{len(text) * WIDTH:g}",
    }
    if not text.isascii():  # bars, which are to touch each other
        places["lengthAdjust"] = "spacingAndGlyphs"
    attributes = "".join(f" {name}={quoteattr(value)}" for name, value in {**places, **style}.items())
    return f"<text{attributes}>{escape(text)}</text>"
