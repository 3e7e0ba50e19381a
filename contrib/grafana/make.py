"""Dashboards for Grafana 10 and later, from health.yaml and events.yaml; run as a program it writes them.

A description has what a reader wants to know (titles, queries, units); what Grafana wants beside it is here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

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
GOOD, BAD, PLAIN = "green", "red", "blue"
# A second is too short for a rate: of a quiet network it is a row of peaks.
SHORTEST: Final = {"loki": "30s"}
HOST: Final = {"loki": "host", "prometheus": "instance"}
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "bars": {"orientation": "horizontal", "displayMode": "basic", "showUnfilled": True},
    "logs": {
        "showTime": True,
        "sortOrder": "Descending",
        "wrapLogMessage": True,
        "enableLogDetails": True,
    },
}
WHERE: Final = "where"  # the variable that is a text: conditions of LogQL
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
        "panels": list(_make_rows(described, source)),
    }


def _refer(source: str) -> dict[str, str]:
    return {"type": source, "uid": "${source}"}


def _make_source(source: str) -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": source}


def _make_variables(described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, query in described["variables"].items():
        if name == WHERE:
            yield {"name": name, "type": "textbox", "query": query}
            continue
        if isinstance(query, str):
            rest = {"query": query, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
        else:  # at first the first of these values that there is: by the alphabet or against it
            first, last = query["only"]
            order = 1 if first < last else 2
            rest = {"query": query["query"], "regex": f"/^({first}|{last})$/", "sort": order}
        yield {
            "name": name,
            "type": "query",
            "datasource": _refer(described["source"]),
            "refresh": 2,  # whenever the time changes
            "includeAll": "allValue" in rest,
            "multi": True,
            **rest,
        }


def _make_annotation(name: str, query: str, source: str) -> dict[str, Any]:
    """A mark in each panel of lines, which says what it is and of which host."""
    return {
        "name": name,
        "datasource": _refer(source),
        "enable": True,
        "expr": query,
        "iconColor": BAD,
        "titleFormat": name,
        "tagKeys": HOST[source],
    }


def _make_rows(described: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    """A heading over each row, whose panels share its width."""
    number, top = 0, 0
    for row in described["rows"]:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row["title"], "gridPos": place, "panels": []}
        top += 1
        width = COLUMNS // len(row["panels"])
        for column, panel in enumerate(row["panels"]):
            number += 1
            place = {"h": row["height"], "w": width, "x": column * width, "y": top}
            made = _make_panel(panel, source)
            if panel.get("kind") == "bars":
                made["fieldConfig"]["defaults"]["links"] = [_make_link(described, panel["legend"])]
            yield {"id": number, "gridPos": place, **made}
        top += row["height"]


def _make_link(described: Mapping[str, Any], legend: str) -> dict[str, str]:
    """From a bar to the same dashboard with what that bar counts, and to its lines."""
    names = re.findall(r"{{(\w+)}}", legend)
    conditions = " ".join(f'| {name} = "${{__field.labels.{name}}}"' for name in names)
    chosen = [name for name in ("source", *described["variables"]) if name != WHERE]
    words = ["${__url_time_range}", *(f"${{{name}:queryparam}}" for name in chosen)]
    words.append(f"var-{WHERE}={quote(conditions, safe='${}')}")
    return {"title": "Only these", "url": f"/d/{described['uid']}?{'&'.join(words)}"}


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
        "fieldConfig": {"defaults": _make_defaults(panel), "overrides": _make_units(panel)},
    }
    if kind == "lines" and source in SHORTEST:
        made["interval"] = SHORTEST[source]
    if kind in OPTIONS:
        made["options"] = OPTIONS[kind]
    if kind == "map":
        made |= _make_map(panel["key"])
    if kind == "table":
        names = {f"Value #{target['refId']}": target["legendFormat"] for target in targets}
        hidden = dict.fromkeys(("Time", *panel.get("without", ())), True)
        made["transformations"] = [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"renameByName": names, "excludeByName": hidden}},
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


def _make_units(panel: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a table's columns."""
    return [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in panel.get("units", {}).items()
    ]


def _make_defaults(panel: Mapping[str, Any]) -> dict[str, Any]:
    """Unit, and the colour of a value that is bad."""
    defaults: dict[str, Any] = {"unit": panel.get("unit", "short"), "color": {"mode": "palette-classic"}}
    if panel.get("kind") == "bars":  # as long as it is much; that it is another one its name says
        defaults |= {"color": {"mode": "fixed", "fixedColor": PLAIN}, "min": 0}
    if panel.get("kind") == "table":  # by itself 150: three columns would not fit beside three panels
        defaults["custom"] = {"minWidth": 60}
    if "empty" in panel:
        defaults["noValue"] = panel["empty"]
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
