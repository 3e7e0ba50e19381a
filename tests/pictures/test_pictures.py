"""docs/PICTURES.md and its pictures: of commands that there are, well-formed, with their text as text."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest

from conntrackd.cli.ctl import build_parser
from tests.live.daemon import ROOT
from tests.pictures.draw import draw, read_cells
from tests.pictures.make import PICTURED, PICTURES

PAGE = (ROOT / "docs/PICTURES.md").read_text()
SVG = "{http://www.w3.org/2000/svg}"
MAX_BYTES = 16_000  # of a picture: they are in every clone


def test_the_page_shows_each_picture_and_there_is_no_other() -> None:
    shown = sorted(path.stem for path in PICTURES.iterdir())

    assert shown == sorted(PICTURED)
    assert [name for name in shown if f"](pictures/{name}.svg)" not in PAGE] == []
    assert PAGE.count("](pictures/") == len(shown)


@pytest.mark.parametrize("name", PICTURED)
def test_a_picture_is_of_a_command_that_there_is(name: str) -> None:
    command = PICTURED[name].words
    picture = PICTURES / f"{name}.svg"

    build_parser().parse_args(shlex.split(command))  # else it ends the test
    root = ElementTree.fromstring(picture.read_bytes())
    assert root.findtext(f"{SVG}title") == f"conntrackctl {command}"
    assert len(list(root.iter(f"{SVG}text"))) > 10
    assert f"`conntrackctl {command}`" in PAGE
    assert picture.stat().st_size < MAX_BYTES


def read_texts(picture: str) -> list[tuple[str, dict[str, str]]]:
    return [(item.text or "", item.attrib) for item in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_what_a_terminal_shows_stays_text_in_its_columns_and_colours() -> None:
    screen = pyte.Screen(30, 4)
    pyte.ByteStream(screen).feed(b"\033[32mNEW a\033[0m  <&b>  c\r\n\033[7mHEAD\033[0m")

    picture = draw("conntrackctl tail", read_cells(screen), 30)

    (_, command, new, other, last, head) = read_texts(picture)
    assert [text for text, _ in (command, new, other, last, head)] == [
        "conntrackctl tail",
        "NEW a",
        "<&b>",
        "c",
        "HEAD",
    ]
    assert (new[1]["x"], other[1]["x"], last[1]["x"]) == ("14", f"{14 + 7 * 8.4:g}", f"{14 + 13 * 8.4:g}")
    assert "fill" in new[1]
    assert "fill" not in other[1]
    assert picture.count("<rect") == 2  # that of all, and that below HEAD


def test_pictures_of_pages_are_there_and_not_large() -> None:
    pages = [PICTURES.parent / name for name in re.findall(r"\]\((\S+\.png)\)", PAGE)]

    assert [path.name for path in pages] == ["grafana-events.png", "grafana-health.png"]
    assert all(path.stat().st_size < 300_000 for path in pages)


def test_no_picture_has_a_path_of_this_machine() -> None:
    text = "".join(path.read_text() for path in PICTURES.iterdir())

    assert [word for word in (str(Path.home()), "/tmp", "/work") if f"{word}/" in text] == []
