"""metrics.flows: what it may say, in a section and in one line, and what is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.config import options
from conntrackd.config.flow_metrics import (
    FIELDS,
    FLOW_METRICS,
    MAX_FIELDS,
    MAX_ITEM,
    MAX_METRICS,
    MAX_SERIES,
    FlowMetricSetting,
)
from conntrackd.config.read import Config, read_config
from conntrackd.config.values import BadValueError
from conntrackd.errors import ConntrackdError

BY_PORT = FlowMetricSetting(
    "by_port", ("protocol", "destination.port"), ("log destination network PRIVATE",), 100, bytes=True
)
SECTION = """
metrics:
  flows:
    - name: by_port
      by: [protocol, destination.port]
      where: log destination network PRIVATE
      max_series: 100
      bytes: true
    - {name: all}
"""
TABLES = """
[[metrics.flows]]
name = "by_port"
by = ["protocol", "destination.port"]
where = ["log destination network PRIVATE"]
max_series = 100
bytes = true
[[metrics.flows]]
name = "all"
"""
OBJECTS = """
{"metrics": {"flows": [{"name": "by_port", "by": "protocol, destination.port", "max_series": 100,
"where": "log destination network PRIVATE", "bytes": true}, {"name": "all"}]}}
"""
SUCH: Final = "hint: such as {name: by_port, by: [protocol, destination.port]}"
NAMING: Final = "hint: up to 32 letters, digits and _ between them, such as by_port"
NO_FIELD: Final = "is not a field to count connections by\nhint:"
ALIKE: Final = f"what NEW and DESTROY say alike: {', '.join(FIELDS)}"
BLIND: Final = "count no connection that"
PIECES: Final = (
    *(
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "&x ",
        "*x",
        "!!int ",
        "'",
        '"',
        "\\",
        "\n",
        "- ",
        "#",
        "~",
        "? ",
        "|",
        "\x07",
    ),
    *("name", "by", "where", "max_series", "bytes", "a", "zone", "log any", "1", "true", "\ud800"),
)
Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str, suffix: str = ".yaml") -> Config:
        path = tmp_path / f"conntrackd{suffix}"
        path.write_text(text)
        return read_config({}, {}, path)

    return read_text


@pytest.mark.parametrize(("text", "suffix"), [(SECTION, ".yaml"), (TABLES, ".toml"), (OBJECTS, ".json")])
def test_a_section_is_read_from_each_kind_of_file(read: Read, text: str, suffix: str) -> None:
    assert read(text, suffix)[options.METRICS_FLOWS] == (BY_PORT, FlowMetricSetting("all"))


def test_the_command_line_takes_the_same_in_one_line() -> None:
    items = [
        "{name: by_port, by: 'protocol,destination.port', max_series: 100, bytes: yes, where: [log any]}"
    ]
    config = read_config({"metrics.flows": [*items, "{name: all}"]}, {}, etc=Path("/nowhere"))

    assert [metric.name for metric in config[options.METRICS_FLOWS]] == ["by_port", "all"]
    assert config[options.METRICS_FLOWS][0].where == ("log any",)


@pytest.mark.parametrize(
    "metric",
    [
        BY_PORT,
        FlowMetricSetting("all"),
        FlowMetricSetting(
            "x", tuple(FIELDS)[:MAX_FIELDS], ('log city "a, b"', "drop port 22, 23", "drop any")
        ),
    ],
)
def test_what_is_shown_reads_back_as_itself(metric: FlowMetricSetting) -> None:
    assert FLOW_METRICS.parse(FLOW_METRICS.split(FLOW_METRICS.render((metric,)))) == (metric,)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{name: a, by: [dport]}", f"'dport' {NO_FIELD} did you mean destination.port?"),
        ("{name: a, by: [dst_port]}", f"'dst_port' {NO_FIELD} did you mean destination.port?"),
        ("{name: a, by: [state]}", f"'state' {NO_FIELD} {ALIKE}"),
        ("{name: a, by: [zone, zone]}", "'zone' is there twice in by"),
        (f"{{name: a, by: [{', '.join(tuple(FIELDS)[:9])}]}}", "has 9 fields in by, 8 are possible"),
        ("{name: a, bye: [zone]}", "'bye' is not a key of an item\nhint: did you mean by?"),
        ("{name: a, name: b}", "'name' is given twice"),
        ("{by: [zone]}", f"has an item without a name\n{SUCH}"),
        ("{name: By-Port}", f"'By-Port' is not a valid name of a metric\n{NAMING}"),
        (f"{{name: {'a' * 33}}}", f"'{'a' * 33}' is not a valid name of a metric\n{NAMING}"),
        ("{name: a, max_series: 0}", "'0' is not from 1 to 1000 (max_series)"),
        ("{name: a, max_series: 1001}", "'1001' is not from 1 to 1000 (max_series)"),
        ("{name: a, bytes: maybe}", "'maybe' is neither true nor false"),
        ("{name: a, bytes: [true]}", "'bytes' takes one value"),
        ("{name: a, where: {log: any}}", "'where' takes a list"),
        ("by_port", f"'by_port' is not a section\n{SUCH}"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(read: Read, item: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConntrackdError) as caught:
        read(f"metrics.flows:\n- {item}\n")

    assert str(caught.value) == f"{tmp_path}/conntrackd.yaml:2: metrics.flows: {message}"


def test_two_have_different_names_and_all_together_a_bound() -> None:
    for items, message in (
        (["{name: a}", "{name: a}"], "is the name of two"),
        (["{name: a, max_series: 600}", "{name: b, max_series: 401}"], "has a max_series of 1001 in all"),
    ):
        with pytest.raises(BadValueError, match=message):
            FLOW_METRICS.parse(items)
    assert MAX_SERIES == 1000


def test_there_are_only_so_many(read: Read) -> None:
    items = [f"- {{name: a{number}, max_series: 1}}" for number in range(MAX_METRICS + 1)]

    assert len(read("\n".join(["metrics.flows:", *items[:-1]]))[options.METRICS_FLOWS]) == MAX_METRICS
    with pytest.raises(ConntrackdError, match="has 9 items, the maximum is 8"):
        read("\n".join(["metrics.flows:", *items]))


def test_a_section_of_aliases_is_not_written_out(read: Read) -> None:
    """Each of these is ten of the one before: the last one has a million words."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 6)]
    text = "filter:\n" + "\n".join(lines) + "\nmetrics.flows:\n- {name: a, by: *a5}\n"

    with pytest.raises(ConntrackdError, match=f"has an item of more than {MAX_ITEM} characters"):
        read(text)


def test_nor_is_one_that_holds_itself(read: Read) -> None:
    with pytest.raises(ConntrackdError, match=f"has an item of more than {MAX_ITEM} characters"):
        read("metrics.flows:\n- {name: &a [*a]}\n")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_any_text_is_an_item_or_a_mistake(text: str) -> None:
    for item in (text, f"{{{text}}}", f"{{name: a, {text}}}"):
        try:
            found = FLOW_METRICS.parse([item])
        except BadValueError:
            continue
        assert FLOW_METRICS.parse(FLOW_METRICS.split(FLOW_METRICS.render(found))) == found


@pytest.mark.parametrize(
    ("overridden", "warning"),
    [
        ({}, ""),
        ({"conntrack.records": "both"}, ""),
        (
            {"conntrack.records": "flows"},
            f"{BLIND} opens with conntrack.records: flows\nhint: set conntrack.records to both",
        ),
        (
            {"conntrack.events": "new"},
            f"{BLIND} closes without destroy events\nhint: add destroy to conntrack.events",
        ),
        (
            {"conntrack.events": "update, destroy"},
            f"{BLIND} opens without new events\nhint: add new to conntrack.events",
        ),
        ({"conntrack.replay": "x.nl"}, "has no effect in a replay"),
    ],
)
def test_what_cannot_be_counted_is_a_warning(overridden: dict[str, str], warning: str) -> None:
    overrides = {key: [value] for key, value in overridden.items()}
    config = read_config({**overrides, "metrics.flows": ["{name: a}"]}, {}, etc=Path("/nowhere"))

    found = [str(error).removeprefix("--metrics.flows: ") for error in config.warnings]
    assert found == ([warning] if warning else [])
