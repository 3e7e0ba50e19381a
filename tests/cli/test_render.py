"""What derives from OPTIONS says the same as OPTIONS."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conntrackd.cli.render import (
    WRITE,
    escape_mdoc,
    list_stale,
    render_man_flags,
    render_man_settings,
    render_sample,
    replace_between,
)
from conntrackd.config.flow_metrics import DEFAULT_SERIES, FIELDS, KEYS, MAX_SERIES
from conntrackd.config.options import CONNTRACK_ACTIVATE, OPTIONS, SINK_JOURNAL_ENABLE
from conntrackd.config.read import check_sinks, read_config
from conntrackd.errors import DataError
from conntrackd.metrics.flow_table import FLOW_METRICS
from conntrackd.metrics.table import METRICS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "man").iterdir())


def test_the_sample_as_it_is_turns_on_what_the_first_event_needs_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text(render_sample())

    config = read_config({}, {}, path)

    check_sinks(config)
    assert [option for option in OPTIONS if config.origin(option) != "default"] == [
        CONNTRACK_ACTIVATE,
        SINK_JOURNAL_ENABLE,
    ]
    assert config[SINK_JOURNAL_ENABLE] is True


def test_the_sample_with_everything_uncommented_sets_every_option(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    text = re.sub(r"(?m)^( *)#(?! )", r"\1", render_sample())
    text = re.sub(r"(?m)^( *)#  -", r"\1  -", text)
    # These contradict the defaults beside them, as they should.
    text = text.replace("udp://localhost:514", "tls://localhost").replace("http://", "https://")
    text = text.replace("anonymize: none", "anonymize: pseudonym")
    path.write_text(re.sub(r"(?m)^ *token_file:.*\n", "", text))

    config = read_config({}, {}, path)

    unset = [option.key for option in OPTIONS if config.origin(option) == "default"]
    assert unset == ["sink.loki.token_file"]
    given = {option.key: config[option] for option in OPTIONS if option.default_text}
    defaults = {option.key: option.default for option in OPTIONS if option.default_text}
    assert given == defaults | {
        "conntrack.activate": True,
        "sink.journal.enable": True,
        "sink.syslog.address": "tls://localhost",
        "sink.loki.address": "https://localhost:3100",
        **{f"sink.{kind}.anonymize": "pseudonym" for kind in ("stream", "journal", "syslog", "loki")},
    }


def test_the_sample_gives_a_reason_for_each_option() -> None:
    lines = [line.strip() for line in render_sample().splitlines()]

    for option in OPTIONS:
        name = option.key.split(".")[-1]
        follows = lines[lines.index(f"# {option.help}") + 1].lstrip("#")
        assert follows.startswith(f"{name}:") or lines.count(f"# {option.help}") > 1
    assert max(map(len, render_sample().splitlines())) <= 80


def test_man_pages_name_every_option() -> None:
    flags = re.findall(r"^\.It Fl Fl (\S+)", render_man_flags(), re.MULTILINE)
    settings = re.findall(r"^\.It Ic (\S+)", render_man_settings(), re.MULTILINE)
    variables = re.findall(r"^\.Ev (\S+)", render_man_settings(), re.MULTILINE)

    assert flags == settings == [option.key for option in OPTIONS]
    assert variables == [option.variable for option in OPTIONS]


def test_every_metric_is_in_both_papers_with_its_help_and_labels() -> None:
    page = " ".join((ROOT / "man/conntrackd-metrics.7").read_text().split())
    table = (ROOT / "docs/METRICS.md").read_text()

    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |\n" in table
        assert f".It Ic {metric.name} {escape_mdoc(metric.help)} ({metric.type}" in page


def test_what_counts_connections_is_in_both_papers() -> None:
    page = (ROOT / "man/conntrackd-metrics.7").read_text()
    section = page.partition(".Sh COUNTS OF CONNECTIONS\n")[2].partition("\n.Sh ")[0]
    table = (ROOT / "docs/METRICS.md").read_text()
    text = table.partition("## Connections, by what you choose\n")[2].partition("\n## ")[0]

    for metric in FLOW_METRICS:
        labels = ", ".join(["the chosen fields", *(f"`{label}`" for label in metric.labels)])
        assert f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |\n" in table
        assert f".It Ic {metric.name}\n" in page
    assert [name for name in FIELDS if f".Ql {name}" not in section or f"`{name}`" not in text] == []
    assert [key for key in KEYS if f".It Ic {key}\n" not in section or f"| `{key}` |" not in text] == []
    for words in (section, text):
        assert f"{MAX_SERIES:,} in all" in words
        assert f"{DEFAULT_SERIES} by default" in words


def test_text_for_man_pages_is_safe() -> None:
    assert escape_mdoc('.a-b\\c"') == "\\&.a\\-b\\ec\\(dq"


def test_the_files_in_the_tree_are_up_to_date() -> None:
    assert list_stale(ROOT) == [], f"to bring them up to date: {WRITE}"


def test_a_page_without_markers_is_reported() -> None:
    with pytest.raises(DataError) as caught:
        replace_between("text", "part", Path("man/x.8"))

    assert caught.value.origin == "man/x.8"


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_pages_have_no_fault(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", str(page)], capture_output=True, text=True, check=False)

    # The other pages of this package are found when it is installed.
    faults = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert faults == []


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_man_page_fits_80_columns(page: Path) -> None:
    shown = subprocess.run(
        ["mandoc", "-Tascii", str(page)], capture_output=True, text=True, check=True
    ).stdout
    lines = re.sub(r".\x08", "", shown).expandtabs().splitlines()  # bold is struck twice

    assert len(lines) > 100
    assert [line for line in lines if len(line) > 80] == []
