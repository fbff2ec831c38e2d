"""The dashboard: its form, and that every panel shows something."""

import json
import re
import sys

import pytest
import yaml
from conftest import DEPLOY, run, tool, unknown_keys
from test_prometheus import metrics, selectors

GRAFANA = DEPLOY / "grafana"
DASHBOARD = json.loads((GRAFANA / "tidegate.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
# Of @grafana/data's value formats.
UNITS = {"Bps", "bytes", "cps", "currencyUSD", "percentunit", "reqps", "s", "short"}
UNIT_OF = {"s": "_seconds", "bytes": "_bytes", "Bps": "_bytes_total"}


def test_it_is_what_its_source_says(monkeypatch):
    monkeypatch.syspath_prepend(GRAFANA)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import dashboard

    assert DASHBOARD == json.loads(json.dumps(dashboard.DASHBOARD)), "run deploy/grafana/dashboard.py"


def test_it_is_of_grafanas_schema():
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    kept = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    assert not unknown_keys(DASHBOARD, kept)


def test_rows_and_panels_have_their_place():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Limiter", "Queue", "Upstream", "Retries", "Money", "Process"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_says_what_it_shows_and_in_what():
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles))
    for panel in PANELS:
        assert len(panel["description"]) > 25, panel["title"]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS, panel["title"]
        for target in panel["targets"]:
            assert unit not in UNIT_OF or UNIT_OF[unit] in target["expr"], f"{panel['title']} is no {unit}"
            counts = re.search(r"rate\(\w+_total", target["expr"])
            assert unit != "reqps" or counts or "pace_per_second" in target["expr"], panel["title"]


def test_source_and_instance_are_variables():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("instance", "upstream", "account"):
        assert variables[name]["type"] == "query" and variables[name]["multi"]
    for panel in PANELS:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources), panel["title"]
        references = {ref for target in panel["targets"] for ref in (target["refId"],)}
        assert len(references) == len(panel["targets"])
    for expression in EXPRESSIONS:
        for selector in selectors(expression):
            assert 'instance=~"$instance"' in selector, expression
            assert selector.split("{")[0] in metrics(), expression
        for used in re.findall(r"\$(\w+)", expression):
            assert used in variables or used.startswith("__"), expression


def test_provisioning_finds_data_and_dashboard():
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]
    assert source["type"] == "prometheus" and source["isDefault"]
    assert source["url"].strip("${}") in compose["environment"]
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/tidegate.yml").read_text())["providers"][0]
    assert any(f":{provider['options']['path']}/tidegate.json" in volume for volume in compose["volumes"])


def filled(expression):
    """As Grafana would ask it, with everything chosen and a short time to look at."""
    for variable in DASHBOARD["templating"]["list"]:
        value = ".*" if variable["type"] == "query" else variable["query"]
        expression = expression.replace(f"${variable['name']}", value)
    return expression.replace("$__rate_interval", "30s").replace("$__range", "1m")


@pytest.fixture
def shows(tmp_path):
    """Holds a panel against what it shall show ten minutes into these series: labels and values."""

    def shows(title, series, wanted):
        [panel] = [panel for panel in PANELS if panel["title"] == title]
        series = {name: values if values.startswith("_") else f"{values}x20" for name, values in series.items()}
        story = {
            "interval": "30s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": filled(target["expr"]).replace("[30s]", "[2m]"),
                    "eval_time": "10m",
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
                }
                for target, samples in zip(panel["targets"], wanted, strict=True)
            ],
        }
        file = tmp_path / "panel.test.yml"
        file.write_text(yaml.safe_dump({"rule_files": [], "tests": [story]}))
        run(tool("promtool"), "test", "rules", file)

    return shows


OF = 'instance="a",upstream="api",account="k"'


def test_requests_that_reach_no_account_are_shown(shows):
    series = {'tidegate_faults_total{instance="a",upstream="",account="",kind="no_route"}': "0+60"}
    shows("Answers", series, [[("{}", 2)]])
    shows("Faults", series, [[("{}", 1)]])
    series[f'tidegate_exchanges_total{{{OF},end="complete"}}'] = "0+180"
    shows("Answers", series, [[("{}", 8)]])
    shows("Faults", series, [[("{}", 0.25)]])


def test_the_tightest_models_rate_is_not_held_against_all_attempts(shows):
    series = {
        f"tidegate_in_flight{{{OF}}}": "3+0",
        f"tidegate_limit{{{OF}}}": "6+0",
        f"tidegate_pace_per_second{{{OF}}}": "1+0",
        f'tidegate_attempts_total{{{OF},outcome="accepted"}}': "0+24",
    }
    labels = '{instance="a",upstream="api",account="k"}'
    shows("Allowance used", series, [[(labels, 0.5)], [(labels, 0.8)]])
    series[f'tidegate_attempts_total{{{OF},outcome="accepted"}}'] = "0+5460"
    shows("Allowance used", series, [[(labels, 0.5)], []])


@pytest.mark.parametrize("title", ["Attempts refused", "Faults", "Input from cache", "Attempts for each exchange"])
def test_without_traffic_there_is_no_share(title, shows):
    """0 of 0 is no number, which Grafana would show as such."""
    series = {
        f'tidegate_attempts_total{{{OF},outcome="accepted"}}': "5+0",
        f'tidegate_refusals_total{{{OF},attribution="ceiling"}}': "5+0",
        f'tidegate_exchanges_total{{{OF},end="complete"}}': "5+0",
        f'tidegate_faults_total{{{OF},kind="queue_full"}}': "5+0",
        f'tidegate_tokens_total{{{OF},kind="input"}}': "5+0",
        f'tidegate_tokens_total{{{OF},kind="cached"}}': "5+0",
    }
    shows(title, series, [[]])


def test_reloads_have_no_series_without_a_name(shows):
    series = {f'tidegate_config_reloads_total{{instance="a",result="{result}"}}': "3+0" for result in ("accepted", "rejected")}
    shows("Reloads of the configuration", series, [[(f'{{result="{result}"}}', 0) for result in ("accepted", "rejected")]])


def test_every_expression_returns_data_under_load(live):
    assert not live.without_data([filled(expression) for expression in EXPRESSIONS])
