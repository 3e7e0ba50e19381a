"""What callers send as arguments, to the daemon's own Control: an answer, or a mistake in our own words."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.bus.client import Client, DaemonError
from conntrackd.bus.interface import load
from conntrackd.control import DaemonControl
from conntrackd.daemon import Daemon, Sources
from tests.bus.private import PrivateBus, serve
from tests.bus.recorder import Recorder

METHODS = {
    method.name: method.in_signature
    for interface in load().values()
    for method in interface.methods.values()
    if method.in_signature
}
WORDS = """
    log drop any not and or ( ) , - / : > < = " source destination address port network protocol type city
    mark TCP UDP NEW LOCAL 53 1-65536 10.0.0.0/8 ::/0 1s 5M \x1b[31m \u202e \x7f \ud7ff
"""
# D-Bus has neither NUL nor halves of surrogate pairs in its strings.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
RULE = st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join).map("drop {}".format) | TEXT
ADDRESSES = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.0/8", "::1", "::/0", "10.1/8"]) | TEXT, max_size=4)
SET = st.sampled_from(["bad", "@BAD"]) | TEXT
VALUES: dict[str, st.SearchStrategy[list[Any]]] = {
    "s": st.tuples(st.sampled_from(["debug", "info"]) | TEXT).map(list),
    "as": st.tuples(st.lists(RULE, max_size=4)).map(list),
    "ss": st.tuples(SET, st.sampled_from(["", "10.0.0.1"]) | TEXT).map(list),
    "sasu": st.tuples(SET, ADDRESSES, st.integers(0, 2**32 - 1)).map(list),
    "asu": st.tuples(st.lists(RULE, max_size=4), st.integers(0, 2**32 - 1)).map(list),
}


@pytest.fixture
def client(bus: PrivateBus, tmp_path: Path) -> Iterator[Client]:
    """To a daemon that is built and hears of nothing."""
    level = logging.getLogger().level
    (tmp_path / "bad.txt").write_text("10.0.0.1\n")
    settings = {"sink.stream.enable": ["true"], "sink.stream.writer": ["discard"]}
    settings["sets"] = [f"bad={tmp_path}/bad.txt"]
    daemon = Daemon(Sources(settings, etc=tmp_path))
    with serve(bus.address, cast(Recorder, DaemonControl(daemon))), bus.connect() as made:
        yield made
        daemon.tails.close()
    logging.getLogger().setLevel(level)


def test_the_methods_that_take_something_are_all_here() -> None:
    assert set(METHODS.values()) == VALUES.keys()


@pytest.mark.parametrize("name", METHODS)
def test_any_arguments_are_answered_or_refused_with_our_own_words(name: str, client: Client) -> None:
    @settings(max_examples=80)
    @given(VALUES[METHODS[name]])
    def check(arguments: list[Any]) -> None:
        try:
            if name == "Tail":
                os.close(client.open_tail(arguments[0], arguments[1]))
            else:
                client.call(name, METHODS[name], *arguments)
        except DaemonError as error:
            text = str(error)
            assert not text.startswith("internal error"), text
            assert text.replace("\n", "").isprintable(), ascii(text)

    check()
    assert client.read_properties()["Version"]
