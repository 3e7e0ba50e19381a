"""The figures of a run as one JSON, and as the table in docs/FAULTS.md.

python -m tests.faults.figures      renders build/faults.json into docs/FAULTS.md
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.faults.verdict import Verdict

ROOT: Final = Path(__file__).parents[2]
FIGURES: Final = ROOT / "build" / "faults.json"
PAPER: Final = ROOT / "docs" / "FAULTS.md"
BEGIN: Final = "<!-- make report -->"
END: Final = "<!-- end of make report -->"
COLUMNS: Final = (
    ("row", "row"),
    ("fault", "fault"),
    ("sent", "sent"),
    ("delivered", "delivered"),
    ("twice", "duplicated"),
    ("lost", "lost"),
    ("dropped", "dropped"),
    ("died in memory", "died"),
    ("peak memory", "memory_kib"),
    ("fresh flow after", "delay_ms"),
)


@dataclass(frozen=True)
class Row:
    """One measured fault."""

    row: int
    fault: str
    sent: int
    delivered: int
    duplicated: int
    lost: int
    filtered: int
    dropped: int
    died: int
    memory_kib: int
    delay_ms: int


def make_row(row: int, fault: str, verdict: Verdict, memory_kib: int, delay_seconds: float) -> Row:
    """A verdict with what else was measured."""
    return Row(row, fault, **asdict(verdict), memory_kib=memory_kib, delay_ms=round(delay_seconds * 1000))


def note(row: Row, path: Path = FIGURES) -> None:
    """Into the JSON, in the place of an earlier run of the same fault."""
    rows = {(record["row"], record["fault"]): record for record in read(path)}
    rows[row.row, row.fault] = asdict(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".new")
    half.write_text(json.dumps([rows[key] for key in sorted(rows)], indent=1) + "\n")
    os.replace(half, path)


def read(path: Path = FIGURES) -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = [[title for title, _ in COLUMNS]]
    lines += [[_render_cell(name, row[name]) for _, name in COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = [
        "| "
        + " | ".join(
            _align(name, cell, width) for (_, name), cell, width in zip(COLUMNS, line, widths, strict=True)
        )
        + " |"
        for line in lines
    ]
    rule = "|".join(
        "-" * (width + 2) if name == "fault" else "-" * (width + 1) + ":"
        for (_, name), width in zip(COLUMNS, widths, strict=True)
    )
    return "\n".join([text[0], f"|{rule}|", *text[1:]]) + "\n"


def _render_cell(name: str, value: object) -> str:
    if not isinstance(value, int):
        return str(value)
    if name in ("memory_kib", "delay_ms") and not value:
        return "-"  # not measured
    if name == "memory_kib":
        return f"{value / 1024:.0f} MiB"
    return f"{value:,} ms" if name == "delay_ms" else f"{value:,}"


def _align(name: str, cell: str, width: int) -> str:
    return cell.ljust(width) if name == "fault" else cell.rjust(width)


def replace_table(text: str, table: str) -> str:
    """The text with this table between the two markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main() -> None:
    rows = read()
    if not rows:
        raise SystemExit(f"{FIGURES} is not there: make test-faults writes it")
    PAPER.write_text(replace_table(PAPER.read_text(), render(rows)))
    print(render(rows), end="")


if __name__ == "__main__":
    main()
