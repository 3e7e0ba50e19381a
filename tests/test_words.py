"""Retired words stay away: the field has one of its own for each thing (CONTRIBUTING.md has the glossary).

To retire a word, add a row; to hold a row in more of the tree, add to its paths.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parent.parent
SUFFIXES: Final = {".py", ".pyi", ".c", ".h", ".1", ".5", ".7", ".8", ".md"}

# Where part of the vocabulary holds already.
MODULES: Final = tuple(
    f"conntrackd/{name}.py"
    for name in (
        *["active_filter", "bpf", "errors", "files", "flow", "lean", "pipeline", "reader", "stats", "text"],
        "units",
    )
)
PARTS: Final = tuple(
    f"conntrackd/{name}"
    for name in ("config", "core", "engine", "filter", "geoip", "netlink", "render", "source")
)
PAGES: Final = ("man/conntrackd-events.7", "man/conntrackd-filter.7", "man/conntrackd.yaml.5")
TESTS: Final = tuple(f"tests/{Path(name).name}" for name in PARTS)
TOOLS: Final = ("bench", "fuzz")
PAPERS: Final = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs")


class Retired(NamedTuple):
    """A pattern that no line may match, and what to write instead."""

    pattern: str
    instead: str
    paths: tuple[str, ...]


RETIRED: Final = (
    Retired(r"\bShel(f|ves)\b", "disk buffer", ("conntrackd", "man", "tests", *TOOLS)),
    Retired(r"\bParcels?\b", "in flight", ("conntrackd", "man", *PAPERS, *TESTS, *TOOLS)),
    Retired(r"\bPieces?\b", "Rendered", (*PARTS, *MODULES, *PAGES, *TOOLS)),
    Retired(r"\bIntake\b", "KernelSource", ("conntrackd", "man", "tests", *TOOLS, "CONTRIBUTING.md")),
    Retired(r"\bHandover\b", "StateDirectory", ("conntrackd", "man", "tests", *TOOLS, "CONTRIBUTING.md")),
    Retired(r"\b(T|t)old\b|\b(T|t)ells?\b", "report", ("conntrackd", "man", *PAPERS, *TESTS, *TOOLS)),
    Retired(r"def test_\w*_(told|tells?|judged?|mend(s|ed)?)(_|\()", "report", ("tests",)),
    Retired(r"\b[Jj]udg(e|ed|es|ing)\b|_judge\b", "evaluate", ("conntrackd", "man", *PAPERS, *TESTS, *TOOLS)),
    Retired(r"\b[Mm]end(s|ed|ing)?\b", "fix", ("conntrackd", "man", *PAPERS, *TESTS, *TOOLS)),
    Retired(r"\bone's own\b", "custom, or whose it is", (*PARTS, *MODULES, *PAGES, *TOOLS)),
    Retired(
        r"(?<![Tt]here )\bis no (?!longer|larger)[a-z]",
        "is not a ...",
        ("conntrackd", "man", *PAPERS, *TOOLS),
    ),
    Retired(
        r"\bfor (\w+, |\()*each(, \w+|\))* in\b|\blambda each\b|\(each:",
        "the name of the thing",
        ("conntrackd", *TESTS, *TOOLS),
    ),
    Retired(r"\bplaces?=|\.places?\b", "origin, location, index", ("conntrackd",)),
)


def list_files(paths: tuple[str, ...]) -> Iterator[Path]:
    for path in map(ROOT.joinpath, paths):
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        assert files, f"{path} is not there"
        yield from (file for file in files if file.suffix in SUFFIXES and file != Path(__file__))


def list_lines(retired: Retired) -> list[str]:
    """Lines that match, with where they stand."""
    pattern = re.compile(retired.pattern)
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in list_files(retired.paths)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("retired", RETIRED, ids=lambda retired: retired.instead)
def test_a_retired_word_stays_away(retired: Retired) -> None:
    assert list_lines(retired) == [], f"write: {retired.instead}"


@pytest.mark.parametrize(
    "line",
    [
        *["x = Shelf()", "Parcels", "a Piece", "Intake(", "Handover", "is told", "it tells", "was judged"],
        *["_judge(", "what mends it", "a rule of one's own", "'x' is no address", "for each in rules:"],
        *["(each.name for name, each in items)", "lambda each: 1", "error.place", "place=origin"],
    ],
)
def test_each_pattern_finds_its_word(line: str) -> None:
    assert any(re.search(retired.pattern, line) for retired in RETIRED)


@pytest.mark.parametrize(
    "line",
    ["there is no namespace", "it is no longer true", "for each rule in turn", "commend", "in place of it"],
)
def test_no_pattern_finds_what_is_well_said(line: str) -> None:
    assert not any(re.search(retired.pattern, line) for retired in RETIRED)
