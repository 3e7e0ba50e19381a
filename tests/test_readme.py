"""README.md: what it shows is what the commands print. What it and others name is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.daemon import ROOT, environment

README = (ROOT / "README.md").read_text()
PAPERS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MAX_README_BYTES = 10_000  # what a person reads before the first try
PROGRAMS = {"conntrackd": "conntrackd.cli.daemon", "conntrackctl": "conntrackd.cli.ctl"}


def run(line: str) -> str:
    """What a command of the README prints, on both streams, without privileges being asked for."""
    program, *arguments = shlex.split(line)
    code = f"import sys; from {PROGRAMS[program]} import main; sys.argv[0] = '{program}'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    return done.stdout


@pytest.mark.parametrize(
    "beginning",
    ["# conntrackd run --sink.stream.enable --filter 'log protocol TPC'", "$ conntrackctl filter explain"],
)
def test_a_command_prints_what_the_readme_shows(beginning: str) -> None:
    block = next(
        match for match in re.findall(r"```console\n(.*?)```", README, re.S) if match.startswith(beginning)
    )
    command, _, shown = block.partition("\n")

    assert run(command[2:]) == shown


def test_every_rule_in_the_readme_is_good() -> None:
    rules = re.findall(r"--filter '([^']+)'", README)
    good = [rule for rule in rules if "TPC" not in rule]

    assert len(good) >= 3
    said = [run(f"conntrackctl filter check --filter {shlex.quote(rule)}") for rule in good]
    assert [text.splitlines()[-1] for text in said] == ["1 rule, no mistakes"] * len(good)


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:conntrackd|contrib|docs|man|debian|rpm)/[\w./]*\w)`", README))
    named |= set(re.findall(r"\]\(([\w./]+)\)", README))

    assert named
    assert all((Path(ROOT) / item).exists() for item in named)


@pytest.mark.parametrize("paper", ["CONTRIBUTING.md", "docs/DECISIONS.md"])
def test_every_module_that_a_paper_for_developers_names_is_there(paper: str) -> None:
    text = (ROOT / paper).read_text()
    named = set(re.findall(r"`([\w./*]+\.(?:py|c|h|xml))`", text))

    assert len(named) > 20
    assert [path for path in sorted(named) if not is_there(path)] == []


def is_there(path: str) -> bool:
    """From the top of the tree, or from that of the package; a * stands for at least one name."""
    return any(any(folder.glob(path)) for folder in (ROOT, ROOT / "conntrackd"))


@pytest.mark.parametrize("paper", PAPERS)
def test_every_file_of_the_tree_that_a_paper_names_is_there(paper: str) -> None:
    text = (ROOT / paper).read_text()
    folders = "|".join(
        path.name for top in (ROOT, ROOT / "conntrackd") for path in top.iterdir() if path.is_dir()
    )
    named = re.findall(rf"`((?:{folders})/[\w./*-]+|test_\w+\.py)`", text)
    linked = re.findall(r"\]\((?!http)([\w./-]+)\)", text)

    assert [path for path in named if not (is_there(path) or any((ROOT / "tests").rglob(path)))] == []
    assert [path for path in linked if not (ROOT / paper).parent.joinpath(path).exists()] == []


def test_the_readme_stays_short() -> None:
    assert len(README.encode()) < MAX_README_BYTES
