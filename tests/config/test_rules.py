"""The setting `sets` in every form that it has, and the files behind it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from conntrackd.config import options
from conntrackd.config.read import Config, read_config
from conntrackd.config.rules import read_sets
from conntrackd.errors import ConfigError, ManyErrors


def read(folder: Path, text: str, name: str = "conntrackd.yaml", flags: Sequence[str] = ()) -> Config:
    path = folder / name
    path.write_text(text)
    return read_config({"sets": flags} if flags else {}, {}, path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "sets:\n  bad: bad.txt\n  Good-1: /x/a=b.txt\n"),
        ("a.yaml", "sets:\n- bad=bad.txt\n- good-1 = /x/a=b.txt\n"),
        ("a.yaml", "sets: bad=bad.txt, good-1=/x/a=b.txt\n"),
        ("a.json", '{"sets": {"bad": "bad.txt", "good-1": "/x/a=b.txt"}}'),
        ("a.toml", 'sets = { bad = "bad.txt", good-1 = "/x/a=b.txt" }'),
        ("a.toml", '[sets]\nbad = "bad.txt"\ngood-1 = "/x/a=b.txt"'),
    ],
)
def test_names_and_files_are_a_section_or_a_list(name: str, text: str, tmp_path: Path) -> None:
    found = read(tmp_path, text, name)[options.SETS]

    assert found == (("bad", tmp_path / "bad.txt"), ("good-1", Path("/x/a=b.txt")))
    assert options.SETS.kind.parse(options.SETS.kind.split(options.SETS.kind.render(found))) == found


def test_a_flag_has_precedence_and_its_files_are_where_one_stands(tmp_path: Path) -> None:
    config = read(tmp_path, "sets: {bad: bad.txt}", flags=["a=a.txt", "b=b.txt"])

    assert config[options.SETS] == (("a", Path("a.txt")), ("b", Path("b.txt")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: bad.txt", "1: sets: 'bad.txt' names no file"),
        ("sets: {bad: ''}", "1: sets: 'bad=' names no file"),
        ("sets: {7x: /a}", "1: sets: '7x=/a' does not begin with a valid name of a set"),
        ("sets: {'a b': /a}", "1: sets: 'a b=/a' does not begin with a valid name of a set"),
        ("sets:\n- a=/b\n- A=/c", "1: sets: 'A=/c' has the name of another set"),
        ("sets:\n  a: [b, c]", "1: sets: 'a' is a name, and takes one value"),
        (f"sets: [{','.join(f'a{n}=b' for n in range(65))}]", "1: sets: has 65 sets, 64 are possible"),
    ],
)
def test_a_mistake_of_the_setting_is_reported_where_it_stands(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)

    assert str(caught.value).splitlines()[0] == f"{tmp_path}/conntrackd.yaml:{message}"


def test_all_that_is_wrong_with_any_file_is_reported_and_what_is_missing_by_the_setting(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").write_text("10.0.0.1\nx\n10.0.0.1/8\n")
    (tmp_path / "two").write_text("::/0\n")
    (tmp_path / "open").write_text("")
    (tmp_path / "open").chmod(0o666)
    config = read(tmp_path, "sets:\n  a: one\n  b: two\n  c: nowhere\n  d: open\n  e: .\n")

    with pytest.raises(ManyErrors) as caught:
        read_sets(config)
    assert [str(error).splitlines()[0].replace(f"{tmp_path}/", "") for error in caught.value.errors] == [
        "one:2: 'x' is not a valid address",
        "one:3: '10.0.0.1/8' has host bits set under its prefix length",
        "conntrackd.yaml:4: sets: c: nowhere: No such file or directory",
        "open: every user may change this file",
        f"conntrackd.yaml:6: sets: e: {tmp_path} is a directory, not a file",
    ]


def test_sets_have_room_for_so_many_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conntrackd.config.rules.MAX_ENTRIES", 3)
    (tmp_path / "two").write_text("10.0.0.1\n10.0.0.2\n")
    config = read(tmp_path, "sets: {a: two}")

    assert {name: found.entries for name, found in read_sets(config).items()} == {"a": 2}
    with pytest.raises(ManyErrors, match="more than 1,000,000 addresses"):
        read_sets(read(tmp_path, "sets: {a: two, b: two}"))


def test_the_setting_is_named_once_where_it_stands_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ManyErrors) as caught:
        read_sets(read(tmp_path, "", flags=[f"bad={tmp_path}/nowhere"]))

    assert str(caught.value) == f"--sets: bad: {tmp_path}/nowhere: No such file or directory"
