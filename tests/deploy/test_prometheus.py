"""Scrape configuration, rules and alerts: with promtool, and in a Prometheus that scrapes."""

import pathlib
import re

import pytest
import yaml
from conftest import DEPLOY, ROOT, run, tool

PROMETHEUS = DEPLOY / "prometheus"
STORIES = pathlib.Path(__file__).with_name("alerts.test.yml")


def rules(file):
    return [rule for group in yaml.safe_load((PROMETHEUS / "rules" / file).read_text())["groups"] for rule in group["rules"]]


ALERTS = rules("alerts.yml")
RECORDED = rules("recording.yml")


def metrics():
    """Names as the program gives them; histograms are asked for by their parts."""
    names = set(re.findall(r'"(tidegate_\w+)"', (ROOT / "src/metrics/mod.rs").read_text()))
    names |= set(re.findall(r'"(process_\w+)"', (ROOT / "src/metrics/process.rs").read_text()))
    parts = {f"{name}_{part}" for name in names if name.endswith("_seconds") for part in ("bucket", "count", "sum")}
    return names | parts


def selectors(expression):
    """The series an expression asks for, without the times it asks for."""
    return re.findall(r"\b(?:tidegate_\w+|process_\w+|(?:account|instance):[\w:]+|up)\b(?:\{[^}]*\})?", expression)


def test_configuration_and_rules_are_well_formed():
    run(tool("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    run(tool("promtool"), "check", "rules", *(PROMETHEUS / "rules").glob("*.yml"))


def test_every_alert_fires_when_it_should_and_not_when_not():
    run(tool("promtool"), "test", "rules", STORIES)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_its_story_and_its_runbook(alert):
    stories = [
        story
        for story in yaml.safe_load(STORIES.read_text())["tests"]
        if any(f'"{alert["alert"]}"' in question["expr"] for question in story["promql_expr_test"])
    ]
    assert stories, "no story of it"
    for story in stories:
        fired = [question["exp_samples"] for question in story["promql_expr_test"] if question["exp_samples"]]
        assert fired == [[{"labels": '{instance="a"}', "value": 1}]], "only the one in trouble fires"
        assert any('instance="b"' in series["series"] for series in story["input_series"]), "nobody it must not fire for"
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    assert len(alert["annotations"]["runbook"]) > 200, "what it means, where to look, what to do"


def test_rules_ask_for_metrics_that_exist():
    known = metrics() | {rule["record"] for rule in RECORDED} | {"up"}
    for rule in ALERTS + RECORDED:
        for selector in selectors(rule["expr"]):
            assert selector.split("{")[0] in known, rule


def test_every_expression_returns_data_under_load(live):
    wanted = {rule["record"] for rule in RECORDED} | {rule["expr"] for rule in RECORDED}
    for alert in ALERTS:
        # An alert's expression returns something only when it fires; what it looks at must be there.
        wanted |= set(selectors(alert["expr"]))
    assert not live.without_data(sorted(wanted))


def test_prometheus_evaluates_every_rule(live):
    assert not live.without_data(["account:tidegate_faults:ratio5m"])
    groups = live.ask("/api/v1/rules")["groups"]
    states = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert len(states) == len(ALERTS) + len(RECORDED)
    assert not {name: rule.get("lastError") for name, rule in states.items() if rule["health"] != "ok"}


def test_alerts_fire_in_earnest(live):
    """What waits for nothing fires here: its labels and its templates are filled."""
    assert not live.without_data(
        [f'ALERTS{{alertname="{name}",alertstate="firing"}}' for name in ("TidegateQuotaExhausted", "TidegateReloadRejected")]
    )
    for alert in live.ask("/api/v1/alerts")["alerts"]:
        assert "<no value>" not in alert["annotations"]["summary"], alert
