"""contrib/grafana: made from descriptions, of metrics and fields that exist; Prometheus runs its queries.

No Loki is to be had here: its queries are parsed by the grammar of Grafana's editor and held against the
fields. What a real one said to them is in docs/DECISIONS.md. Nor are the images of compose.yaml to be had,
which is held against the files that it mounts.
"""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from conntrackd.config.options import METRICS_LISTEN
from conntrackd.flow import EventType
from conntrackd.metrics.table import METRICS
from conntrackd.render import loki
from conntrackd.render.fields import FIELDS, NETWORK, PLACE
from tests.metrics.prometheus import PROMETHEUS, prometheus
from tests.metrics.test_alerts import promtool, with_promtool

FOLDER: Final = Path(__file__).parents[2] / "contrib/grafana"
# What Grafana puts in place of its variables.
VALUES: Final = {
    **dict.fromkeys(("$environment", "$host", "$sink", "$prot"), ".*"),
    "$opened": "NEW",
    "$ended": "DESTROY",
    "$__range": "1h",
    "$__rate_interval": "1m",
    "$__auto": "1m",
    "$where": '| src = "192.0.2.1" | dst = "192.0.2.2"',  # as a click on a bar writes it
}
# The parser that npm has, beside what calls it: `make` puts it there.
LOGQL: Final = Path(__file__).parents[2] / ".venv" / "logql"
OF_EVERY_TARGET: Final = {"environment", "instance", "job"}
EVENT_FIELDS: Final = {field.name for field in FIELDS} | {
    f"{end}{name}" for end in ("", "src_") for name in (*PLACE, *NETWORK)
}
STREAM_LABELS: Final = {*loki.LABELS, "service_name", "host", "environment"}
LOGQL_NAME: Final = re.compile(r"(?:by \(|, |\| |unwrap |\{)(\w+)(?=[,)]| ?[!=]|\}| \[)")
# The script, which is in no package.
MAKE: Final = SimpleNamespace(**runpy.run_path(os.fspath(FOLDER / "make.py")))
dashboards = pytest.mark.parametrize("name", MAKE.NAMES)


def list_expressions(name: str) -> list[str]:
    described = MAKE.describe(name)
    panels = [query for panel in MAKE.list_panels(described) for query in MAKE.list_queries(panel).values()]
    return [*panels, *described["annotations"].values()]


def replace_variables(expression: str) -> str:
    for name, value in VALUES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


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
            assert server.query(replace_variables(expression)) == {}  # it scrapes nothing


def parse(expressions: list[str]) -> list[list[str]]:
    """What is wrong with each of them."""
    done = subprocess.run(
        ["node", "errors.js"],
        cwd=LOGQL,
        input=json.dumps(expressions),
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors: list[list[str]] = json.loads(done.stdout)
    return errors


@pytest.mark.skipif(not LOGQL.exists(), reason="the parser of LogQL is not there: make .venv/logql")
def test_each_query_of_loki_is_logql() -> None:
    expressions = [replace_variables(expression) for expression in list_expressions("events")]
    damaged = [expression.replace(")", "", 1) for expression in expressions if ")" in expression]

    assert parse(expressions) == [[]] * len(expressions)
    assert all(parse(damaged))
    assert len(damaged) > 10


def test_panels_of_more_values_than_loki_allows_say_what_it_needs() -> None:
    """Loki ends at max_query_series what it divides and cannot group into few: addresses and ports."""
    unbounded = {"src", "dst", "sport", "dport", "nat_src"}
    for panel in MAKE.list_panels(MAKE.describe("events")):
        queries = " ".join(MAKE.list_queries(panel).values())
        names = {name for group in re.findall(r"by \(([^)]*)\)", queries) for name in group.split(", ")}
        is_limited = bool(names & unbounded) and "stddev_over_time" not in queries
        assert ("max_query_series" in panel.get("note", "")) == is_limited, panel["title"]


def test_the_map_looks_countries_up_by_a_field_of_its_query() -> None:
    panels = json.loads(MAKE.write("events"))["panels"]
    [panel] = [panel for panel in panels if panel["type"] == "geomap"]
    [layer], [target] = panel["options"]["layers"], panel["targets"]
    [reduce] = panel["transformations"]

    assert f"sum by ({layer['location']['lookup']}) (" in target["expr"]
    assert (target["instant"], reduce["options"]["labelsToFields"]) == (True, True)
    assert layer["config"]["style"]["size"]["field"] == "Last *"  # what reduce makes of lastNotNull


def test_a_click_on_a_bar_shows_what_it_counts_alone() -> None:
    made = json.loads(MAKE.write("events"))
    [text] = [item for item in made["templating"]["list"] if item["type"] == "textbox"]
    bars = [panel for panel in made["panels"] if panel["type"] == "bargauge"]

    assert len(bars) > 5
    for panel in bars:
        [target], [link] = panel["targets"], panel["fieldConfig"]["defaults"]["links"]
        address = urlsplit(link["url"])
        given = dict(word.partition("=")[::2] for word in address.query.split("&"))
        names = re.findall(r"{{(\w+)}}", target["legendFormat"])

        assert address.path == f"/d/{made['uid']}"
        assert unquote(given.pop(f"var-{text['name']}")) == " ".join(
            f'| {name} = "${{__field.labels.{name}}}"' for name in names
        )
        assert given == {
            "${__url_time_range}": "",
            **{f"${{{item['name']}:queryparam}}": "" for item in made["templating"]["list"] if item != text},
        }
        assert re.search(rf"by \({', '.join(names)}\)", target["expr"]), target["expr"]
    for panel in MAKE.list_panels(MAKE.describe("events")):
        for query in MAKE.list_queries(panel).values():
            assert ('"} $where' in query) == (panel["title"] != "Events that were lost"), query


def test_bars_begin_at_nothing_and_stand_in_order() -> None:
    """Grafana would begin at the least of them, which then looks like none; Loki's topk has no order."""
    for panel in json.loads(MAKE.write("events"))["panels"]:
        if panel["type"] == "bargauge":
            assert panel["fieldConfig"]["defaults"]["min"] == 0
            assert panel["targets"][0]["expr"].startswith("sort_desc(topk(10, ")


@dashboards
def test_each_line_and_bar_has_a_legend_of_its_own(name: str) -> None:
    for panel in MAKE.list_panels(MAKE.describe(name)):
        if panel.get("kind", "lines") in {"lines", "bars"}:
            queries = MAKE.list_queries(panel)
            for legend, query in queries.items():
                [labels] = re.findall(r"by \(([^)]*)\)", query)[:1] or [""]
                shown = set(re.findall(r"{{(\w+)}}", legend))

                assert shown >= set(filter(None, labels.split(", "))), panel["title"]
                assert shown or legend or len(queries) == 1


def test_rows_of_a_table_are_of_hosts_and_its_columns_have_units() -> None:
    """The name of a metric is a label, too, and would be a column."""
    for panel in MAKE.list_panels(MAKE.describe("health")):
        if panel.get("kind") == "table":
            queries = MAKE.list_queries(panel)
            keys = {query.partition("by (")[2].partition(")")[0] for query in queries.values()}

            assert keys in ({"environment, instance"}, {"instance, sink, state"}), panel["title"]
            assert set(panel.get("units", {})) <= set(queries)


@dashboards
def test_each_variable_chooses_in_each_query_that_has_its_label(name: str) -> None:
    described = MAKE.describe(name)
    label = {"health": {"host": "instance"}, "events": {}}[name]
    for variable in ("environment", "host"):
        assert all(
            f'{label.get(variable, variable)}=~"${variable}"' in text for text in list_expressions(name)
        )
    for expression in list_expressions(name):
        if "conntrackd_sink_" in expression:
            assert 'sink=~"$sink"' in expression, expression
    assert set(described["variables"]) <= {
        "environment",
        "host",
        "sink",
        "prot",
        "opened",
        "ended",
        MAKE.WHERE,
    }


def test_connections_are_counted_by_one_record_each_whichever_are_written() -> None:
    made = json.loads(MAKE.write("events"))
    chosen = {item["name"]: item for item in made["templating"]["list"]}
    for written, opened, ended in (
        ({EventType.NEW, EventType.UPDATE, EventType.DESTROY}, "NEW", "DESTROY"),
        ({EventType.FLOW}, "FLOW", "FLOW"),
        ({EventType.NEW, EventType.UPDATE, EventType.DESTROY, EventType.FLOW}, "NEW", "DESTROY"),
    ):
        for name, expected in (("opened", opened), ("ended", ended)):
            only = re.compile(chosen[name]["regex"].strip("/"))
            names = sorted((kind.name or "" for kind in written), reverse=chosen[name]["sort"] == 2)
            assert next(filter(only.match, names)) == expected
            assert "current" not in chosen[name]


# ---- compose.yaml -------------------------------------------------------------------------------------


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def list_mounts() -> dict[str, dict[str, Path]]:
    """Service -> path in its container -> file that is mounted there."""
    found: dict[str, dict[str, Path]] = {}
    for name, service in read("compose.yaml")["services"].items():
        parts = [volume.split(":") for volume in service["volumes"]]
        assert all(part[2:] == ["ro"] for part in parts if part[0].startswith("."))
        found[name] = {part[1]: FOLDER / part[0] for part in parts if part[0].startswith(".")}
    return found


def test_what_compose_mounts_is_there_and_where_it_is_looked_for() -> None:
    mounts = list_mounts()
    [provider] = read("provisioning.yaml")["providers"]

    assert all(path.is_file() for files in mounts.values() for path in files.values())
    assert "/etc/grafana/provisioning/dashboards/conntrackd.yaml" in mounts["grafana"]
    assert "/etc/grafana/provisioning/datasources/conntrackd.yaml" in mounts["grafana"]
    assert {
        path.name
        for inner, path in mounts["grafana"].items()
        if Path(inner).parent == Path(provider["options"]["path"])
    } == {f"conntrackd-{name}.json" for name in MAKE.NAMES}
    assert set(read("prometheus.yaml")["rule_files"]) < set(mounts["prometheus"])


def test_images_are_pinned_and_all_listen_where_they_are_looked_for_on_loopback() -> None:
    services = read("compose.yaml")["services"]
    sources = {source["type"]: source["url"] for source in read("datasources.yaml")["datasources"]}
    flags = {
        name: dict(flag.lstrip("-").split("=", 1) for flag in service.get("command", []))
        for name, service in services.items()
    }
    loki, grafana = flags["loki"], services["grafana"]["environment"]

    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]) for service in services.values())
    assert all(service["network_mode"] == "host" for service in services.values())
    assert sources == {
        "loki": f"http://{loki['server.http-listen-address']}:{loki['server.http-listen-port']}",
        "prometheus": f"http://{flags['prometheus']['web.listen-address']}",
    }
    assert set(sources) == {MAKE.describe(name)["source"] for name in MAKE.NAMES}
    limit = loki["querier.max-query-series"]
    assert f"max_query_series: {limit}" in (FOLDER / "events.yaml").read_text()
    assert loki["server.grpc-listen-address"] == grafana["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    # Those that conntrackd.yaml(5) and conntrackd-metrics(7) give as examples.
    assert (sources["loki"].rpartition(":")[2], METRICS_LISTEN.example) == ("3100", "127.0.0.1:9477")
    assert read("prometheus.yaml")["scrape_configs"][0]["static_configs"] == [
        {"targets": [METRICS_LISTEN.example], "labels": {"environment": "test"}}
    ]


@with_promtool
def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    inner, rules = next(item for item in list_mounts()["prometheus"].items() if "rules" in item[0])
    path = tmp_path / "prometheus.yml"
    path.write_text((FOLDER / "prometheus.yaml").read_text().replace(inner, str(rules.resolve())))

    assert "SUCCESS" in promtool("check", "config", str(path))
