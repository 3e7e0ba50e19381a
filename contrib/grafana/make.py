"""Dashboards for Grafana 10 and later, from health.yaml and events.yaml; run as a program it writes them.

A description has what a reader wants to know (titles, queries, units); what Grafana wants beside it is here.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent
NAMES: Final = ("health", "events")
COLUMNS: Final = 24  # of Grafana's grid
SCHEMA: Final = 39  # of Grafana 10.4; later versions convert it
PANELS: Final = {
    "stat": "stat",
    "table": "table",
    "bars": "bargauge",
    "logs": "logs",
    "map": "geomap",
    "lines": "timeseries",
}
GOOD, BAD = "green", "red"
# What the transformation `reduce` calls the last value of a series.
LAST: Final = "Last *"


def list_queries(panel: Mapping[str, Any]) -> dict[str, str]:
    """Legend -> expression; a panel of one query has its legend beside it."""
    queries = panel.get("queries")
    return dict(queries) if queries else {panel.get("legend", ""): panel["query"]}


def list_panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All of them, as they are described."""
    for row in dashboard["rows"]:
        yield from row["panels"]


def make_dashboard(described: Mapping[str, Any]) -> dict[str, Any]:
    """What Grafana imports."""
    source = described["source"]
    return {
        "uid": described["uid"],
        "title": described["title"],
        "tags": described["tags"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_make_source(source), *_make_variables(described)]},
        "annotations": {
            "list": [_make_annotation(*item, source) for item in described["annotations"].items()]
        },
        "panels": list(_make_rows(described["rows"], source)),
    }


def _refer(source: str) -> dict[str, str]:
    return {"type": source, "uid": "${source}"}


def _make_source(source: str) -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": source}


def _make_variables(described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, query in described["variables"].items():
        every = {"text": "All", "value": "$__all"}
        yield {
            "name": name,
            "type": "query",
            "datasource": _refer(described["source"]),
            "query": query,
            "refresh": 2,  # whenever the time changes
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": every,
        }


def _make_annotation(name: str, query: str, source: str) -> dict[str, Any]:
    return {"name": name, "datasource": _refer(source), "enable": True, "expr": query, "iconColor": BAD}


def _make_rows(rows: list[Mapping[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """A heading over each row, whose panels share its width."""
    number, top = 0, 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row["title"], "gridPos": place, "panels": []}
        top += 1
        width = COLUMNS // len(row["panels"])
        for column, panel in enumerate(row["panels"]):
            number += 1
            place = {"h": row["height"], "w": width, "x": column * width, "y": top}
            yield {"id": number, "gridPos": place, **_make_panel(panel, source)}
        top += row["height"]


def _make_panel(panel: Mapping[str, Any], source: str) -> dict[str, Any]:
    kind = panel.get("kind", "lines")
    is_of_a_moment = kind in {"stat", "table", "bars", "map"}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _refer(source),
            "expr": query,
            "legendFormat": legend,
            "instant": is_of_a_moment,
            "range": not is_of_a_moment,
            **({"queryType": "instant" if is_of_a_moment else "range"} if source == "loki" else {}),
            **({"format": "table"} if kind == "table" else {}),
        }
        for number, (legend, query) in enumerate(list_queries(panel).items())
    ]
    made: dict[str, Any] = {
        "title": panel["title"],
        **({"description": panel["note"]} if "note" in panel else {}),
        "type": PANELS[kind],
        "datasource": _refer(source),
        "targets": targets,
        "fieldConfig": {"defaults": _make_defaults(panel), "overrides": []},
    }
    if kind == "map":
        made |= _make_map(panel["key"])
    if kind == "table":
        names = {f"Value #{target['refId']}": target["legendFormat"] for target in targets}
        made["transformations"] = [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"renameByName": names, "excludeByName": {"Time": True, "job": True}},
            },
        ]
    return made


def _make_map(key: str) -> dict[str, Any]:
    """A circle on each country, by its code in a label; the larger, the more."""
    layer = {
        "type": "markers",
        "name": "Countries",
        "tooltip": True,
        # Grafana has where countries are; the tiles of the map come from the network, and know of no country.
        "location": {"mode": "lookup", "lookup": key, "gazetteer": "public/gazetteer/countries.json"},
        "config": {
            "showLegend": False,
            "style": {
                "size": {"field": LAST, "fixed": 5, "min": 4, "max": 30},
                "color": {"field": LAST, "fixed": "dark-green"},
                "opacity": 0.6,
                "symbol": {"mode": "fixed", "fixed": "img/icons/marker/circle.svg"},
            },
        },
    }
    return {
        "options": {
            "view": {"id": "zero", "lat": 25, "lon": 0, "zoom": 1.5, "allLayers": True},
            "basemap": {"type": "default", "name": "Map", "config": {}},
            "controls": {"showZoom": True, "mouseWheelZoom": False, "showAttribution": True},
            "tooltip": {"mode": "details"},
            "layers": [layer],
        },
        # A row for each series, with its labels as columns: what a place is looked up in.
        "transformations": [
            {
                "id": "reduce",
                "options": {"mode": "seriesToRows", "reducers": ["lastNotNull"], "labelsToFields": True},
            }
        ],
    }


def _make_defaults(panel: Mapping[str, Any]) -> dict[str, Any]:
    """Unit, and the colour of a value that is bad."""
    defaults: dict[str, Any] = {"unit": panel.get("unit", "short"), "color": {"mode": "palette-classic"}}
    steps: list[dict[str, Any]] = []
    if "bad_above" in panel:
        steps = [{"color": GOOD, "value": None}, {"color": BAD, "value": panel["bad_above"]}]
    elif "bad_below" in panel:
        steps = [{"color": BAD, "value": None}, {"color": GOOD, "value": panel["bad_below"]}]
    if steps:
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    return defaults


def describe(name: str) -> dict[str, Any]:
    """The description of one dashboard."""
    return dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def write(name: str) -> str:
    """Its JSON."""
    return json.dumps(make_dashboard(describe(name)), indent=2) + "\n"


if __name__ == "__main__":
    for name in NAMES:
        (FOLDER / f"conntrackd-{name}.json").write_text(write(name))
