"""The status page in headless Chromium: with nothing going on and under load, light and dark, wide and narrow."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

from load import Load

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = pathlib.Path(os.environ.get("TIDEGATE_NODE", ROOT / "target/sdk/node"))
SHOTS = ROOT / "target/page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.skipif(not (MODULES / "node_modules/playwright-core").is_dir(), reason="npm could not install playwright-core"),
]

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 800}


def look(url, shots, wait_ms=1500):
    SHOTS.mkdir(parents=True, exist_ok=True)
    shots = {name if name.startswith("-") else str(SHOTS / name): shot for name, shot in shots.items()}
    job = {"url": url, "modules": str(MODULES), "browser": CHROMIUM, "shots": shots, "wait": wait_ms}
    ran = subprocess.run(
        ["node", ROOT / "tests/sdk/page.mjs", json.dumps(job)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["errors"] == []
    assert all(request.startswith(url) for request in told["requests"]), "it talks to nobody but this port"
    told["shots"] = {name.removeprefix(f"{SHOTS}/"): shows for name, shows in told["shots"].items()}
    return told


def metrics(admin):
    with urllib.request.urlopen(f"{admin}/metrics") as page:
        lines = page.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        series, value = line.rsplit(" ", 1)
        name, _, labels = series.partition("{")
        account = re.search(r'account="([^"]*)"', labels)
        of = (name, account[1] if account else "")
        found[of] = found.get(of, 0) + float(value)
    return found


def test_a_page_with_nothing_to_show(stack):
    running = stack(["--ceiling", "10"])
    told = look(f"{running.admin}/", {"idle.png": WIDE, "idle-dark.png": WIDE | {"dark": True}, "idle-phone.png": NARROW})
    for name, shows in told["shots"].items():
        assert shows["state"] == "Healthy: idle", name
        assert shows["accounts"] == {} and shows["events"] == [], name
        assert len(shows["charts"]) == 8 and shows["wider"] == 0, name


def test_money_is_counted_where_there_are_prices_and_else_it_says_so(stack, tmp_path):
    config = tmp_path / "tidegate.yaml"
    config.write_text("upstreams: [{ url: http://h, prices: [{ model: mock-1, input: 3, output: 15 }] }]")
    for args, paid in [((), False), (("--config", config), True)]:
        running = stack(["--ceiling", "4"], args)
        load = Load(running.base, 4)
        time.sleep(11)
        load.end()
        shows = look(f"{running.admin}/", {f"money-{paid}.png": WIDE})["shots"][f"money-{paid}.png"]
        (account,) = shows["accounts"].values()
        spent = sum(value for (name, _), value in metrics(running.admin).items() if name == "tidegate_spend_usd_total")
        assert ("No prices configured" in shows["text"]) != paid and (spent > 0) == paid
        assert account["spent"] == (f"${spent:.2f}" if paid else "–") and (shows["drawn"][7] > 20) == paid


def test_a_long_name_fits_a_small_phone(stack, tmp_path):
    config = tmp_path / "tidegate.yaml"
    config.write_text("upstreams: [{ name: bedrock-runtime.ap-southeast-2.amazonaws.com, url: http://h }]")
    running = stack(["--ceiling", "4"], ["--config", config])
    load = Load(running.base, 1)
    until = time.monotonic() + 60
    while not any(value for (name, _), value in metrics(running.admin).items() if name == "tidegate_exchanges_total"):
        assert time.monotonic() < until, "the account is known"
    load.end()
    shows = look(f"{running.admin}/", {"small.png": {"width": 360, "height": 800}})["shots"]["small.png"]
    assert len(shows["accounts"]) == 1 and (shows["wider"], shows["cut"]) == (0, [0, 0])


def test_its_numbers_are_those_of_the_metrics(stack):
    # Answers take so long that nothing moves while page and metrics are compared.
    running = stack(["--latency", "2m", "--ceiling", "4"], ["--ceiling", "4"])
    load = Load(running.base, 12, keys=("sk-one", "sk-two", "sk-one"))
    until = time.monotonic() + 60
    while sum(value for (name, _), value in metrics(running.admin).items() if name == "tidegate_queue_depth") != 4:
        assert time.monotonic() < until, "four of the first account wait"
        time.sleep(0.1)
    told = look(f"{running.admin}/", {"-": WIDE})
    found = metrics(running.admin)
    load.end()
    accounts = told["shots"]["-"]["accounts"]
    assert len(accounts) == 2
    for key, shown in accounts.items():
        account = key.split()[1]
        for field, name in [
            ("in_flight", "tidegate_in_flight"),
            ("limit", "tidegate_limit"),
            ("ceiling", "tidegate_ceiling"),
            ("queued", "tidegate_queue_depth"),
            ("refused", "tidegate_refusals_total"),
            ("retried", "tidegate_retries_total"),
            ("faults", "tidegate_faults_total"),
        ]:
            assert float(shown[field].replace(",", "")) == found[name, account], (key, field)
    held = [shown["says"] for shown in accounts.values() if shown["queued"] != "0"]
    assert held == ["the ceiling: 4 of 4 in flight; 4 waiting"]
    assert told["shots"]["-"]["state"] == "Working at the ceiling"


def test_under_load_everything_is_drawn(stack):
    running = stack(["--ceiling", "10", "--latency", "lognormal:300ms:0.5", "--error-rate", "0.02"])
    load = Load(running.base, 40, keys=("sk-one", "sk-one", "sk-two"))
    time.sleep(13)
    told = look(
        f"{running.admin}/",
        {"load.png": WIDE, "load-dark.png": WIDE | {"dark": True, "act": "keyboard"}, "load-phone.png": NARROW},
    )
    load.end()
    for name, shows in told["shots"].items():
        assert shows["wider"] == 0, f"{name} scrolls sideways"
        assert len(shows["accounts"]) == 2 and shows["events"], name
        assert "ceiling at most –" in shows["charts"][0], "nobody knows of one"
        # In flight, waiting, answers, both times and tokens have lines.
        # The last is of money, and there are no prices.
        assert [index for index, drawn in enumerate(shows["drawn"]) if drawn > 20] == [0, 1, 2, 4, 5, 6], (name, shows["drawn"])
    assert told["keyboard"][-1] == "svg" and "minutes ago" in told["read"], "charts are read with the keyboard"
    shown = sum(int(account["answered"].replace(",", "")) for account in told["shots"]["load.png"]["accounts"].values())
    assert 0 < shown <= sum(value for (name, _), value in metrics(running.admin).items() if name == "tidegate_exchanges_total")


def test_nothing_of_it_costs_an_idle_process_much(stack, figures):
    running = stack(["--ceiling", "10"])
    load = Load(running.base, 4)
    time.sleep(2)
    load.end()
    time.sleep(3)
    kib = running.proxy.memory_kib()
    figures(f"idle, with the history of one account: {kib / 1024:.1f} MiB resident")
    if "release" in str(os.environ.get("TIDEGATE_BINARY", "release")):
        assert kib <= 12 * 1024
