"""contrib/grafana: made from descriptions, of metrics and fields that exist; Prometheus runs its queries.

No Loki is to be had here: its queries are held against the fields, and run by nobody.
"""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from conntrackd.metrics.table import METRICS
from conntrackd.render import loki
from conntrackd.render.fields import FIELDS, NETWORK, PLACE
from tests.metrics.prometheus import PROMETHEUS, prometheus

FOLDER: Final = Path(__file__).parents[2] / "contrib/grafana"
# What Grafana puts in place of its variables.
VALUES: Final = {"$host": ".*", "$sink": ".*", "$__range": "1h", "$__rate_interval": "1m"}
OF_EVERY_TARGET: Final = {"instance", "job"}
EVENT_FIELDS: Final = {field.name for field in FIELDS} | {
    f"{end}{field.name}" for end in ("", "src_") for field in (*PLACE, *NETWORK)
}
STREAM_LABELS: Final = {*loki.LABELS, "service_name", "host"}
LOGQL_NAME: Final = re.compile(r"(?:by \(|, |\| |unwrap |\{)(\w+)(?=[,)]| ?[!=]|\}| \[)")


def load() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("make_dashboards", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE: Final = load()
dashboards = pytest.mark.parametrize("name", MAKE.NAMES)


def list_expressions(name: str) -> list[str]:
    described = MAKE.describe(name)
    panels = [query for panel in MAKE.list_panels(described) for query in MAKE.list_queries(panel).values()]
    return [*panels, *described["annotations"].values()]


@dashboards
def test_what_is_committed_is_what_the_descriptions_make(name: str) -> None:
    assert (FOLDER / f"conntrackd-{name}.json").read_text() == MAKE.write(name)


@dashboards
def test_panels_have_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    panels: list[dict[str, Any]] = json.loads(MAKE.write(name))["panels"]
    cells = [
        (x, y)
        for panel in panels
        for box in [panel["gridPos"]]
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(MAKE.COLUMNS))


def test_each_metric_and_each_of_its_labels_exists() -> None:
    labels = {metric.name: {*metric.labels, *OF_EVERY_TARGET} for metric in METRICS}
    for expression in list_expressions("health"):
        names = re.findall(r"conntrackd_\w+", expression)
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        matched = re.findall(r"(\w+)=~?\"", expression)

        assert names, expression
        for name in names:
            used = {label.strip() for group in grouped for label in group.split(",")} | set(matched)
            assert used <= labels[name], expression


def test_each_field_of_an_event_exists() -> None:
    seen = set()
    for expression in list_expressions("events"):
        assert expression.count("{") == expression.count("}")
        assert expression.count("(") == expression.count(")")
        names = set(LOGQL_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
        assert "service_name" in names
        assert names <= EVENT_FIELDS | STREAM_LABELS, expression
        seen |= names
    assert {"src", "dport", "bytes", "duration", "country", "nat_src"} <= seen


@pytest.mark.skipif(not PROMETHEUS.exists(), reason="prometheus is not unpacked: make .venv/prometheus")
def test_prometheus_runs_each_query(tmp_path: Path) -> None:
    with prometheus(tmp_path, []) as server:
        for expression in list_expressions("health"):
            asked = expression
            for name, value in VALUES.items():
                asked = asked.replace(name, value)
            assert "$" not in asked
            assert server.query(asked) == {}  # it scrapes nothing
