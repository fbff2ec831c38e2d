#!/usr/bin/env python3
"""Writes tidegate.json, the dashboard, next to itself. Change it here; a test compares the two."""

import json
import pathlib

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PROCESS = 'instance=~"$instance"'
# Others on the same machine have metrics of these names too.
JOB = 'job=~".*tidegate.*"'
ACCOUNT = f'{PROCESS},upstream=~"$upstream",account=~"$account"'
EACH = "{{instance}} {{upstream}} {{account}}"
BY = "by (instance, upstream, account)"


def rate(metric, more=""):
    return f"rate({metric}{{{ACCOUNT}{more}}}[$__rate_interval])"


def quantile(share, metric):
    return f"histogram_quantile({share}, sum by (le) ({rate(metric + '_bucket')}))"


def quantiles(metric, *shares):
    return [(f"p{share * 100:g}", quantile(share, metric)) for share in shares]


# What an allowance is taken up to: the ceiling where one is known, else the limit that was found.
ALLOWED = f"(tidegate_ceiling{{{ACCOUNT}}} or tidegate_limit{{{ACCOUNT}}})"

# Every request is an exchange, but those that reach no account: they are faults only.
STRAYS = rate("tidegate_faults_total", ',account=""')
REQUESTS = f"(sum({rate('tidegate_exchanges_total')}) or vector(0)) + (sum({STRAYS}) or vector(0))"


def stat(title, description, unit, expression, steps=None, width=4, **options):
    thresholds = [{"color": "green", "value": None}]
    thresholds += [{"color": color, "value": value} for value, color in (steps or [])]
    return {
        "type": "stat",
        "title": title,
        "description": description,
        "targets": [target("A", expression, "", instant=True)],
        "size": (width, 4),
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "noValue": "-",
                "color": {"mode": "thresholds"},
                "thresholds": {"mode": "absolute", "steps": thresholds},
                **options,
            },
            "overrides": [],
        },
        "options": {
            "colorMode": "value" if steps else "none",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
            "wideLayout": True,
        },
    }


def graph(title, description, unit, *series, width=8, stack=False, **defaults):
    """`series`: legend and expression."""
    custom = {"drawStyle": "line", "fillOpacity": 25 if stack else 5, "lineWidth": 1, "showPoints": "never"}
    if stack:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "targets": [
            target(chr(ord("A") + index), expression, legend) for index, (legend, expression) in enumerate(series)
        ],
        "size": (width, 8),
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "noValue": "none", "custom": custom, **defaults},
            "overrides": [],
        },
        "options": {
            "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def target(ref, expression, legend, instant=False):
    kind = {"instant": True} if instant else {"range": True}
    return {"refId": ref, "datasource": DATASOURCE, "expr": expression, "legendFormat": legend or "__auto", **kind}


def tokens(kind):
    return rate("tidegate_tokens_total", f',kind="{kind}"')


def by(label, metric, more=""):
    """The rates of a counter, one series for each value of a label."""
    return ("{{%s}}" % label, f"sum by ({label}) ({rate(metric, more)})")


ROWS = {
    "Overview": [
        stat("Running", "Processes that answer scrapes.", "short", f"count(tidegate_build_info{{{PROCESS}}})"),
        stat(
            "Answers",
            "Exchanges that ended per second, however they ended, and requests that reached no account.",
            "reqps",
            REQUESTS,
        ),
        stat("Waiting", "Requests in the queues now.", "short", f"sum(tidegate_queue_depth{{{ACCOUNT}}})"),
        stat(
            "Slots taken",
            "Attempts in flight as a share of what may be in flight. At 100 % the account's ceiling is what holds you back.",
            "percentunit",
            f"sum(tidegate_in_flight{{{ACCOUNT}}}) / sum{ALLOWED}",
            max=1,
        ),
        stat(
            "Attempts refused",
            "Share of attempts that the upstream refused. Clients see none of these but spent quotas. "
            "About 1 % is what finding a limit costs, 10 % what sharing one does.",
            "percentunit",
            f"sum({rate('tidegate_refusals_total')}) / (sum({rate('tidegate_attempts_total')}) > 0)",
            [(0.1, "orange"), (0.25, "red")],
        ),
        stat(
            "Faults",
            "Share of requests that Tidegate had to answer itself with an error. This is what clients see.",
            "percentunit",
            f"sum({rate('tidegate_faults_total')}) / ({REQUESTS} > 0)",
            [(0.001, "orange"), (0.05, "red")],
        ),
        graph(
            "Exchanges by end",
            "How requests ended: complete; fault (Tidegate answered with an error of its own); client_left (hung up); "
            "upstream_error and idle_timeout (broken off inside the answer); upgraded (WebSocket, closed).",
            "reqps",
            by("end", "tidegate_exchanges_total"),
            width=12,
            stack=True,
        ),
        graph(
            "Faults by kind",
            "Errors that Tidegate answered with. queue_full, queue_timeout, cannot_wait: too much is asked of the account. "
            "unreachable, first_byte_timeout, upstream_protocol: the upstream. no_route: a path that is no upstream's. The others: clients.",
            "reqps",
            ("{{kind}}", f"sum by (kind) ({rate('tidegate_faults_total')}) > 0"),
            width=12,
            stack=True,
        ),
    ],
    "Limiter": [
        graph(
            "In flight, limit, ceiling",
            "Attempts at the upstream now; how many the adaptive limit allows; the hard maximum where a tier or ceiling is "
            "configured. The first never exceeds the others.",
            "short",
            (f"in flight {EACH}", f"sum {BY} (tidegate_in_flight{{{ACCOUNT}}})"),
            (f"limit {EACH}", f"sum {BY} (tidegate_limit{{{ACCOUNT}}})"),
            (f"ceiling {EACH}", f"sum {BY} (tidegate_ceiling{{{ACCOUNT}}})"),
            width=12,
        ),
        graph(
            "Allowance used",
            "1 is all of it: slots taken of the ceiling (or of the limit that was found), and attempts of the tightest known "
            "rate. Near 1 all day, while requests wait: the tier is too small. No line of the rate where attempts are far "
            "more than the tightest allows: then that is one model's, and others have their own.",
            "percentunit",
            (f"slots {EACH}", f"sum {BY} (tidegate_in_flight{{{ACCOUNT}}}) / sum {BY} {ALLOWED}"),
            (
                f"rate {EACH}",
                f"sum {BY} ({rate('tidegate_attempts_total')}) / min {BY} (tidegate_pace_per_second{{{ACCOUNT}}}) <= 1.25",
            ),
            width=12,
        ),
        graph(
            "Attempts against the known rate",
            "Attempts per second, of all models, and what the tightest rate allows that is configured, reported or measured. "
            "Where each model has a rate of its own, attempts may be more.",
            "reqps",
            (f"attempts {EACH}", f"sum {BY} ({rate('tidegate_attempts_total')})"),
            (f"allowed {EACH}", f"min {BY} (tidegate_pace_per_second{{{ACCOUNT}}})"),
            width=12,
        ),
        graph(
            "Moves of the limit",
            "growth: one more is tried; refusal: the upstream refused; delay: answers got slower, the guard cut; overload: it "
            "said so; retune: the configuration changed.",
            "cps",
            by("reason", "tidegate_limit_changes_total"),
            width=12,
        ),
    ],
    "Queue": [
        graph(
            "Waiting by account",
            "Requests in the queue of each account.",
            "short",
            (EACH, f"sum {BY} (tidegate_queue_depth{{{ACCOUNT}}})"),
        ),
        graph(
            "Time waited",
            "How long requests waited for a slot, those included that did not have to.",
            "s",
            *quantiles("tidegate_queue_wait_seconds", 0.5, 0.95, 0.99),
        ),
        graph(
            "Pause left",
            "Time until a paused account reopens: the upstream's budget is spent, or it asked for the time.",
            "s",
            (EACH, f"max {BY} (tidegate_paused_seconds{{{ACCOUNT}}})"),
        ),
    ],
    "Upstream": [
        graph(
            "Time to first byte",
            "From sending an attempt to the head of its answer: the upstream's own time.",
            "s",
            *quantiles("tidegate_first_byte_seconds", 0.5, 0.95, 0.99),
        ),
        graph(
            "Attempts by outcome",
            "accepted: answered; bounced: refused with 429 or its like; overloaded: 503, 529, or no answer; failed: 500 or "
            "another server error; ignored: it tells nothing about the upstream.",
            "reqps",
            by("outcome", "tidegate_attempts_total"),
            stack=True,
        ),
        graph(
            "Refusals by cause",
            "What refused attempts were refused for: too many at once (ceiling), too many in a time (rate), money (quota), the "
            "upstream's own trouble (overload), or a 429 that does not say (unknown).",
            "reqps",
            by("attribution", "tidegate_refusals_total"),
            stack=True,
        ),
        graph(
            "Remaining budgets",
            "What the upstream last said is left, of requests or tokens.",
            "short",
            (
                EACH + " {{dimension}}",
                f"min by (instance, upstream, account, dimension) (tidegate_upstream_remaining{{{ACCOUNT}}})",
            ),
        ),
        graph(
            "Pauses",
            "Accounts that were paused, by reason: exhausted (a reported budget reached zero), retry_after (the upstream asked "
            "for the time), refused.",
            "cps",
            by("reason", "tidegate_pauses_total"),
        ),
        graph(
            "Bodies relayed",
            "Bytes of bodies passed on, counted when their exchange ends.",
            "Bps",
            by("direction", "tidegate_relayed_bytes_total"),
        ),
    ],
    "Retries": [
        graph(
            "Retries by reason",
            "Attempts made again, by what happened to the one before. refused waits at the gate and costs nobody anything; the "
            "others draw on the budget for failures.",
            "reqps",
            by("reason", "tidegate_retries_total"),
            width=12,
            stack=True,
        ),
        graph(
            "Attempts for each exchange",
            "1 is no retries at all. More than a few per cent above it for long is a limit that is not known well.",
            "short",
            (
                "attempts",
                f"sum({rate('tidegate_attempts_total')}) / (sum({rate('tidegate_exchanges_total')}) > 0)",
            ),
            width=12,
            decimals=2,
        ),
    ],
    "Money": [
        stat(
            "Tokens used",
            "Tokens in the chosen time, input and output, as far as answers tell.",
            "short",
            f"sum(increase(tidegate_tokens_total{{{ACCOUNT},kind=~\"input|output\"}}[$__range]))",
        ),
        stat(
            "Spent",
            "Dollars in the chosen time, at the prices in Tidegate's configuration, or as answers say. 0 without prices.",
            "currencyUSD",
            f"sum(increase(tidegate_spend_usd_total{{{ACCOUNT}}}[$__range]))",
            decimals=2,
        ),
        stat(
            "Spent per hour",
            "Dollars that an hour costs at the speed of now.",
            "currencyUSD",
            f"3600 * sum({rate('tidegate_spend_usd_total')})",
            decimals=2,
        ),
        stat(
            "Answers without a price",
            "Answers in the chosen time of models that none of the configured prices is for. They count as free.",
            "short",
            f"sum(increase(tidegate_unpriced_total{{{ACCOUNT}}}[$__range]))",
            [(1, "orange")],
        ),
        stat(
            "Balance",
            "Dollars that the account with the least has left, where the upstream says it in a header and `balance` "
            "names that. Not a sum: several keys, and every sidecar, may tell of the same money.",
            "currencyUSD",
            f"min(tidegate_balance_usd{{{ACCOUNT}}})",
            decimals=2,
        ),
        stat(
            "Input from cache",
            "Share of input tokens that the provider had cached, and charges less for.",
            "percentunit",
            f"sum({tokens('cached')}) / (sum({tokens('input')}) > 0)",
        ),
        graph(
            "Spent per hour by account",
            "Dollars, at the speed of each moment.",
            "currencyUSD",
            (EACH, f"3600 * sum {BY} ({rate('tidegate_spend_usd_total')})"),
            stack=True,
        ),
        graph(
            "Tokens by kind",
            "Tokens per second; input includes cached.",
            "short",
            by("kind", "tidegate_tokens_total"),
        ),
        graph(
            "Tokens for each exchange",
            "Mean of input and output of what ended just now.",
            "short",
            (
                "input",
                f"sum({tokens('input')}) / (sum({rate('tidegate_exchanges_total')}) > 0)",
            ),
            (
                "output",
                f"sum({tokens('output')}) / (sum({rate('tidegate_exchanges_total')}) > 0)",
            ),
        ),
    ],
    "Process": [
        graph(
            "Tidegate's own share",
            "Time to the head of an answer that is neither waiting nor the upstream.",
            "s",
            *quantiles("tidegate_overhead_seconds", 0.5, 0.99),
        ),
        graph(
            "Whole exchanges",
            "From the head of a request to the last byte of its answer, waiting included.",
            "s",
            *quantiles("tidegate_exchange_seconds", 0.5, 0.95, 0.99),
        ),
        graph(
            "Connections",
            "Open connections from clients (downstream) and to upstreams.",
            "short",
            ("{{side}}", f"sum by (side) (tidegate_connections{{{PROCESS}}})"),
        ),
        graph(
            "Held request bodies",
            "Bytes kept so that requests can be sent again, at most `buffers.total_max`.",
            "bytes",
            ("{{instance}}", f"sum by (instance) (tidegate_buffered_bytes{{{PROCESS}}})"),
        ),
        graph(
            "Processor time",
            "Of one core: user and system.",
            "percentunit",
            ("{{instance}}", f"sum by (instance) (rate(process_cpu_seconds_total{{{PROCESS},{JOB}}}[$__rate_interval]))"),
            width=6,
        ),
        graph(
            "Memory",
            "What the process takes: idle about 8 MiB, and what waits on top.",
            "bytes",
            ("{{instance}}", f"sum by (instance) (process_resident_memory_bytes{{{PROCESS},{JOB}}})"),
            width=6,
        ),
        graph(
            "File descriptors",
            "Open ones, nearly all of them connections, and how many there may be.",
            "short",
            ("open {{instance}}", f"sum by (instance) (process_open_fds{{{PROCESS},{JOB}}})"),
            ("at most {{instance}}", f"sum by (instance) (process_max_fds{{{PROCESS},{JOB}}})"),
            width=6,
        ),
        graph(
            "Running since",
            "Time since the process started.",
            "s",
            ("{{instance}}", f"time() - max by (instance) (process_start_time_seconds{{{PROCESS},{JOB}}})"),
            width=6,
        ),
        graph(
            "Reloads of the configuration",
            "Changed files that were taken or rejected, in the last hour. After a rejected one the old configuration goes on.",
            "short",
            ("{{result}}", f"sum by (result) (increase(tidegate_config_reloads_total{{{PROCESS}}}[1h]))"),
        ),
        graph(
            "Versions",
            "Processes of each version.",
            "short",
            ("{{version}}", f"count by (version) (tidegate_build_info{{{PROCESS}}})"),
        ),
    ],
}


def panels():
    identity, top = 0, 0
    for title, row in ROWS.items():
        identity += 1
        yield {
            "id": identity,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            "panels": [],
        }
        top += 1
        left = height = 0
        for panel in row:
            width, tall = panel["size"]
            if left + width > 24:
                left, top = 0, top + height
            height = tall
            identity += 1
            rest = {key: value for key, value in panel.items() if key != "size"}
            yield {
                "id": identity,
                **rest,
                "datasource": DATASOURCE,
                "gridPos": {"x": left, "y": top, "w": width, "h": tall},
            }
            left += width
        top += height


def query(name, label, metric):
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"qryType": 1, "query": f"label_values({metric},{name})", "refId": "PrometheusVariableQueryEditor"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
    }


DASHBOARD = {
    "uid": "tidegate",
    "title": "Tidegate",
    "description": "Rate-limited APIs behind Tidegate: what is let through, what waits and why, what it costs.",
    "tags": ["tidegate"],
    "schemaVersion": 41,
    "version": 1,
    "editable": True,
    "graphTooltip": 1,
    "refresh": "30s",
    "time": {"from": "now-1h", "to": "now"},
    "timezone": "browser",
    "fiscalYearStartMonth": 0,
    "links": [],
    "annotations": {"list": []},
    "templating": {
        "list": [
            {
                "type": "datasource",
                "name": "datasource",
                "label": "Data source",
                "query": "prometheus",
                "refresh": 1,
                "regex": "",
                "multi": False,
                "includeAll": False,
                "current": {},
                "options": [],
                "hide": 0,
            },
            query("instance", "Instance", "tidegate_build_info"),
            query("upstream", "Upstream", 'tidegate_limit{instance=~"$instance"}'),
            query("account", "Account", 'tidegate_limit{instance=~"$instance",upstream=~"$upstream"}'),
        ]
    },
    "panels": list(panels()),
}

if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("tidegate.json")
    path.write_text(json.dumps(DASHBOARD, indent=1, ensure_ascii=False) + "\n")
