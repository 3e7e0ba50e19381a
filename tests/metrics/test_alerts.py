"""contrib/prometheus/: alerts that promtool takes, each tried with a case and its opposite."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from conntrackd.metrics.table import METRICS
from tests.metrics.prometheus import PROMETHEUS

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "contrib/prometheus/conntrackd.rules.yml"
TESTS: Final = Path(__file__).parent / "alerts.test.yml"
PAGE: Final = Path(__file__).parent / "page.prom"

with_promtool = pytest.mark.skipif(
    not PROMETHEUS.exists(), reason="prometheus is not unpacked: make .venv/prometheus"
)


def promtool(*arguments: str, text: str = "") -> str:
    command = [str(PROMETHEUS / "usr/bin/promtool"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def list_alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@with_promtool
def test_promtool_has_nothing_against_the_metrics() -> None:
    assert promtool("check", "metrics", text=PAGE.read_text()) == ""


@with_promtool
def test_promtool_takes_the_rules() -> None:
    assert f"SUCCESS: {len(list_alerts())} rules found" in promtool("check", "rules", str(RULES))


@with_promtool
def test_each_alert_fires_where_it_has_to() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(TESTS))


def test_each_alert_is_tried_with_a_case_and_its_opposite() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]

    names = {alert["alert"] for alert in list_alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_alerts_know_only_metrics_that_there_are_and_say_what_to_do() -> None:
    known = {metric.name for metric in METRICS}

    for alert in list_alerts():
        used = set(re.findall(r"conntrackd_\w+", alert["expr"]))
        assert used <= known
        assert used or alert["alert"] == "ConntrackdDown"
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "description"}
