"""The page's texts: all of them go through gettext, the template has them, and translations are whole."""

import json
import os
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Final
from xml.etree import ElementTree

import pytest

ROOT: Final = Path(__file__).parents[2]
INTERFACE: Final = ROOT / "conntrackd/bus/org.conntrackd1.xml"
COMMENT: Final = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
LITERAL: Final = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
TEMPLATE: Final = re.compile(r"`([^`]*)`")
# Literals with a capital letter or a space that nobody reads, or that are the same in every language.
SAME: Final = {
    "log destination port 443": "a rule",
    "preserveAspectRatio": "SVG",
    "viewBox": "SVG",
    "GetAll": "D-Bus",
    "GetManagedObjects": "D-Bus",
    "org.conntrackd1.Manager": "D-Bus",
    "org.conntrackd1.Sink": "D-Bus",
    "org.freedesktop.DBus.Error.AccessDenied": "D-Bus",
    "org.freedesktop.DBus.ObjectManager": "D-Bus",
    "org.freedesktop.DBus.Properties": "D-Bus",
}
# The script, which is in no package.
MAKE: Final = SimpleNamespace(**runpy.run_path(os.fspath(ROOT / "cockpit/po/make.py")))


def read_modules() -> dict[str, str]:
    """Without comments; no address in them has two slashes."""
    return {path.name: COMMENT.sub("", path.read_text()) for path in MAKE.list_modules()}


def list_translated() -> set[str]:
    """What is an argument of gettext's, found by another way than the script's."""
    singular = re.compile(r'\b(?:_|ngettext)\("((?:[^"\\]|\\.)*)"')
    plural = re.compile(r'\bngettext\("[^"]*", "([^"]*)"')
    modules = read_modules().values()
    return {text for module in modules for pattern in (singular, plural) for text in pattern.findall(module)}


def test_each_string_that_people_read_goes_through_gettext() -> None:
    methods = {node.get("name") for node in ElementTree.parse(INTERFACE).iter("method")}
    literals = {literal for text in read_modules().values() for literal in LITERAL.findall(text)}
    read = {literal for literal in literals if re.search(r"[A-Z]|\w \w", literal)}

    assert read - list_translated() - methods == set(SAME)
    assert len(read) > 60


def test_what_is_between_the_values_of_a_template_string_is_no_text() -> None:
    words = set()
    for text in read_modules().values():
        plain = re.sub(r"\$\{(?:[^{}`]|\{[^{}]*\})*\}", "$", "\n".join(TEMPLATE.findall(text)))
        words |= set(re.findall(r"[^\W\d_]{2,}", plain))

    # Of ids, paths on the bus and classes.
    assert words == {"flush", "rate", "sink", "state", "switch", "title", "total"}


def test_the_template_has_every_text_of_the_page_and_of_the_menu() -> None:
    texts = {text for _, item in MAKE.list_texts() for text in ([item] if isinstance(item, str) else item)}
    entry = json.loads((ROOT / "cockpit/manifest.json").read_text())["tools"]["index"]

    assert texts == {*list_translated(), entry["label"], *entry["keywords"][0]["matches"]}
    assert f'<title translate="yes">{entry["label"]}</title>' in (ROOT / "cockpit/index.html").read_text()


def test_what_is_committed_is_what_the_command_writes() -> None:
    stale = [path.name for path, text in MAKE.list_files() if path.read_text() != text]

    assert stale == [], "run: python cockpit/po/make.py"


@pytest.mark.parametrize("language", MAKE.list_languages())
def test_a_translation_is_whole_and_keeps_what_is_filled_in(language: str) -> None:
    messages = [message for message in MAKE.read_translation(language) if message.id]

    assert len(messages) > 60
    for message in messages:
        ids = [message.id] if isinstance(message.id, str) else message.id
        for text in MAKE.list_strings(message):
            assert text, message.id
            assert {*re.findall(r"\$\d", text)} == {*re.findall(r"\$\d", ids[-1])}, text
