"""Files become trees with lines; a damaged or hostile file costs a message."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.config.document import (
    MAX_FILE,
    MAX_TOML,
    Entry,
    Items,
    Node,
    Scalar,
    Section,
    parse_json,
    parse_toml,
    parse_yaml,
    read_document,
)
from conntrackd.errors import ConfigError


def simplify(node: Node) -> Any:
    match node:
        case Section():
            return {entry.key: simplify(entry.node) for entry in node.entries}
        case Items():
            return [simplify(item) for item in node.items]
        case Scalar():
            return (node.text, node.type)


def test_yaml_knows_the_line_of_each_key_and_value() -> None:
    text = "a: 1\nb:\n  c: |\n    x\n    y\n  d: [no,\n    2]\n"

    assert parse_yaml(text) == Section(
        [
            Entry("a", Scalar("1", "number", 1), 1),
            Entry(
                "b",
                Section(
                    [
                        Entry("c", Scalar("x\ny\n", "text", 4), 3),
                        Entry("d", Items([Scalar("no", "flag", 6), Scalar("2", "number", 7)], 6), 6),
                    ],
                    3,
                ),
                2,
            ),
        ],
        1,
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x", ("x", "text")),
        ("'1'", ("1", "text")),
        ("!!str 1", ("1", "text")),
        ("0x10", ("0x10", "number")),
        (".nan", (".nan", "number")),
        ("1e99", ("1e99", "text")),
        ("~", ("~", "null")),
        ("2025-01-01", ("2025-01-01", "text")),
        ("=", ("=", "text")),
    ],
)
def test_yaml_scalars_keep_their_text_and_report_their_type(text: str, value: tuple[str, str]) -> None:
    assert simplify(parse_yaml(f"a: {text}")) == {"a": value}


def test_all_three_languages_give_the_same_tree() -> None:
    yaml = "a: {b: true, c: [1, x], d: 1.5}"
    json = '{"a": {"b": true, "c": [1, "x"], "d": 1.5}}'
    toml = 'a.b = true\na.c = [1, "x"]\na.d = 1.5'

    assert simplify(parse_yaml(yaml)) == simplify(parse_json(json)) == simplify(parse_toml(toml))


def test_repeated_keys_are_all_kept() -> None:
    pair = [Entry("a", Scalar("1", "number", 1), 1), Entry("a", Scalar("2", "number", 2), 2)]

    assert parse_yaml("a: 1\na: 2") == Section(pair, 1)
    assert parse_json('{"a": 1, "a": 2}') == Section(
        [Entry("a", Scalar("1", "number")), Entry("a", Scalar("2", "number"))]
    )


def test_an_alias_is_the_node_that_it_names() -> None:
    tree = parse_yaml("a: &x [1]\nb: *x")

    assert isinstance(tree, Section)
    assert tree.entries[0].node is tree.entries[1].node


def test_an_exploding_yaml_file_stays_as_small_as_it_is_written() -> None:
    levels = [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]" for n in range(1, 20)]

    tree = parse_yaml("\n".join(["k0: &k0 [x]", *levels]))

    assert isinstance(tree, Section)
    assert [len(entry.node.items) for entry in tree.entries if isinstance(entry.node, Items)] == [1] + [
        9
    ] * 19


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~"])
def test_an_empty_file_is_an_empty_table(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)

    assert read_document(path).entries == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: 1\n\tb: 2", "indent with spaces, not with tabs"),
        ("sink:\n  stream:\n enable: true", "a key ends in ': ', and keys of one level begin in one column"),
        (
            "sink:\n  stream\n    enable: true",
            "a key ends in ': ', and keys of one level begin in one column",
        ),
        ("a: {b", ""),
    ],
)
def test_what_the_yaml_library_says_comes_with_what_to_do(text: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        read_document(path)

    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        (
            "a.yaml",
            "a: 1\n\tb: 2",
            ":2",
            "is not valid YAML: found character '\\t' that cannot start any token",
        ),
        ("a.yaml", 'a: 1\nb: "file:///x\nc: 2\n', ":2", "has a quoted text that does not end"),
        (
            "a.yaml",
            "a: 1\nb: [",
            ":2",
            "is not valid YAML: expected the node content, but found '<stream end>'",
        ),
        (
            "a.yaml",
            "a: !!python/name:os.system x",
            ":1",
            "tag 'tag:yaml.org,2002:python/name:os.system' is not allowed",
        ),
        ("a.yaml", "a: !x [1]", ":1", "tag '!x' is not allowed"),
        ("a.yaml", "a: !!binary aGk=", ":1", "tag 'tag:yaml.org,2002:binary' is not allowed"),
        ("a.yaml", "a: !!set {x}", ":1", "tag 'tag:yaml.org,2002:set' is not allowed"),
        ("a.yaml", "a: *x", ":1", "there is no anchor &x above"),
        ("a.yaml", "a: &x {}\nb:\n  <<: *x", ":3", "'<<' is not supported"),
        ("a.yaml", "a: 1\n---\nb: 2", ":2", "holds more than one document"),
        ("a.yaml", "a: 1\n? [x]\n: 1", ":2", "a key must be a word"),
        ("a.yaml", "a: 1\nb: \x07", ":2", "has a character that YAML does not allow: '\\x07'"),
        ("a.yaml", "[" * 100_000, ":1", "is nested more than 32 deep"),
        ("a.yaml", "- 1", "", "holds no settings"),
        ("a.yaml", "just text", "", "holds no settings"),
        ("a.json", '{"a": 1,\n"b" 2}', ":2", "is not valid JSON: Expecting ':' delimiter"),
        ("a.json", "[" * 100_000, "", "is nested too deeply"),
        ("a.json", "[1]", "", "holds no settings"),
        ("a.toml", "a = 1\nb = ", ":2", "is not valid TOML: Invalid value"),
        ("a.toml", "a = 1\n" + "a." * 3000 + "b = 1", ":2", "is nested more than 32 deep"),
        ("a.toml", "a = " + "[" * 100_000, "", "is nested too deeply"),
        ("a.yaml", "#" * (MAX_FILE + 1), "", "is larger than 1 MiB"),
        ("a.toml", "#" * (MAX_TOML + 1), "", "is larger than 384 KiB"),
        ("a.yaml", f"a: !{'x' * 10**6} b", ":1", f"tag '!{'x' * 194}..."),
        ("a.yaml", f"a: *{'x' * 10**6}", ":1", f"there is no anchor &{'x' * 180}..."),
        ("a.yaml", "filter:\n" + "- a\n" * 200_000, ":19999", "holds more than 20,000 keys and values"),
        ("a.yaml", f"filter: [{'a,' * 400_000}]", ":1", "holds more than 20,000 keys and values"),
    ],
)
def test_a_bad_file_is_reported_with_its_place(
    name: str, text: str, place: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        read_document(path)

    assert (caught.value.origin, caught.value.message.split(" (")[0]) == (f"{path}{place}", message)


def test_an_integer_of_a_million_digits_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = " + "9" * 300_000)

    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_document(path)


def test_a_file_that_is_no_text_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\nb: \xff")

    with pytest.raises(ConfigError) as caught:
        read_document(path)

    assert str(caught.value) == f"{path}:2: is not UTF-8 text"


def test_a_file_that_every_user_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1")
    path.chmod(0o646)

    with pytest.raises(ConfigError) as caught:
        read_document(path)

    assert str(caught.value) == f"{path}: is writable by every user\nhint: chmod o-w '{path}'"


def test_a_link_is_checked_by_its_target(tmp_path: Path) -> None:
    target = tmp_path / "target.yaml"
    target.write_text("a: 1")
    target.chmod(0o600)
    link = tmp_path / "link.yaml"
    link.symlink_to(target)

    assert [entry.key for entry in read_document(link).entries] == ["a"]
    target.chmod(0o602)
    with pytest.raises(ConfigError, match="every user"):
        read_document(link)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "loop.yaml"])
def test_a_file_that_cannot_be_read_is_reported(name: str, tmp_path: Path) -> None:
    os.symlink("loop.yaml", tmp_path / "loop.yaml")

    with pytest.raises(ConfigError) as caught:
        read_document(tmp_path / name)

    assert caught.value.origin == str(tmp_path / name)


@given(st.sampled_from([parse_yaml, parse_json, parse_toml]), st.text() | st.text("{}[]:,-&*!?|>'\"#=.\n a1"))
def test_any_text_is_a_tree_or_a_mistake(parse: Any, text: str) -> None:
    try:
        node = parse(text)
    except ConfigError:
        return
    assert isinstance(node, Section | Items | Scalar)
