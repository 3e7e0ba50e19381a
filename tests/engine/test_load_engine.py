"""Which engine is found, and what is said where it is not the core."""

import struct
import sys

import pytest

from conntrackd import checks
from conntrackd.checks import Situation, check_engine
from conntrackd.engine import VARIABLE, load_engine


def test_the_core_is_found_where_it_is_and_plain_python_where_that_is_asked_for() -> None:
    assert (load_engine({}).name, load_engine({}).fault) == ("core", "")
    assert (load_engine({VARIABLE: "plain"}).name, load_engine({VARIABLE: "plain"}).fault) == ("plain", "")


def test_a_core_that_cannot_be_loaded_is_replaced_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("conntrackd.engine.native", "conntrackd.render.steps"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "conntrackd.core._core", None)
    monkeypatch.delattr("conntrackd.core._core", raising=False)

    engine = load_engine({})
    finding = check_engine(Situation(is_tracking=True, buffer=0, engine_fault=engine.fault))

    assert engine.name == "plain"
    assert engine.fault
    assert (finding.severity, finding.check) == (checks.WARNING, "core")
    assert engine.fault in finding.message


@pytest.mark.parametrize(
    ("module", "name", "other"),
    [
        ("conntrackd.filter.table", "FORMAT", 0x63740000),
        ("conntrackd.filter.table", "TEST", struct.Struct("=QQ")),
        ("conntrackd.filter.limit", "LIMIT", struct.Struct("=QQ")),
        ("conntrackd.render.steps", "STEP", struct.Struct("=QQ")),
        ("conntrackd.render.steps", "SLICE", struct.Struct("=QQ")),
        ("conntrackd.core._core", "LAYOUT", ()),
    ],
)
def test_a_core_that_was_built_from_another_version_is_none(
    module: str, name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "conntrackd.engine.native", raising=False)
    monkeypatch.setattr(f"{module}.{name}", other)

    engine = load_engine({})

    assert (engine.name, engine.fault) == ("plain", "the core was built from another version of conntrackd")


def test_nothing_is_wrong_where_the_core_is_in_use() -> None:
    assert check_engine(Situation(is_tracking=True, buffer=0)).severity == checks.OK
