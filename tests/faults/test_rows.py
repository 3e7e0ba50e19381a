"""The index of faults and the list of mutations name what exists; the table of figures is what they say."""

import ast
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from tests.faults import mutations
from tests.faults.figures import BEGIN, END, render, replace_table
from tests.faults.mutations import ROOT
from tests.faults.protections import MUTATIONS, Mutation
from tests.faults.rows import NOT_COVERED, ROWS

HERE = Path(__file__).parent


def list_tests(file: str) -> list[str]:
    path = ROOT / file if "/" in file else HERE / file
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_every_row_has_a_test_or_a_reason() -> None:
    assert sorted([*ROWS, *NOT_COVERED]) == [*range(1, 46)]
    assert not ROWS.keys() & NOT_COVERED.keys()
    missing = [
        (row, file, name)
        for row, proofs in ROWS.items()
        for file, name in proofs
        if not any(test.startswith(name) for test in list_tests(file))
    ]
    assert missing == []
    assert all(ROWS.values())


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda item: item.what)
def test_a_mutation_still_finds_its_protection_and_its_test(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    file, _, name = mutation.test.partition("::")

    assert text.count(mutation.old) == 1
    assert name.partition("[")[0] in list_tests(file)


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--nothing", 2), ("of no protection", 2)])
def test_a_run_of_mutations_begins_only_with_texts_of_some(
    argument: str, status: int, mocker: MockerFixture
) -> None:
    mocker.patch.object(mutations, "copy_tree", side_effect=AssertionError)

    with pytest.raises(SystemExit) as caught:
        mutations.main([argument])
    assert caught.value.code == status


def test_the_table_stands_between_its_markers() -> None:
    row = {"row": 1, "fault": "a fault", "sent": 1000, "delivered": 990, "duplicated": 0, "lost": 10}
    rows = [{**row, "filtered": 0, "dropped": 0, "died": 0, "memory_kib": 65536, "delay_ms": 0}]

    text = replace_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", render(rows))

    assert text.startswith(f"before\n{BEGIN}\n| row | fault ")
    assert "1,000 |       990 |" in text
    assert "|      64 MiB |                - |" in text
    assert text.endswith(f"{END}\nafter\n")
