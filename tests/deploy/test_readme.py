"""What deploy/README.md says, done: its commands, its snippets, its table."""

import os
import re
import subprocess
import urllib.request

import pytest
import yaml
from conftest import BINARY, DEPLOY, ROOT, Process, assert_valid, documents, run, tool
from test_kubernetes import sidecar_of, workload
from test_prometheus import ALERTS

README = (DEPLOY / "README.md").read_text()


def snippet(start):
    """The code block that has this in it."""
    return next(block for block in re.findall(r"```\w+\n(.*?)```", README, re.DOTALL) if start in block)


def test_paths_and_links_lead_somewhere():
    for path in re.findall(r"(?:deploy|config)/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path
    for link, anchor in re.findall(r"\]\(([^)#h][^)#]*)(?:#([^)]*))?\)", README):
        assert (DEPLOY / link).exists(), link
        assert not anchor or anchor in anchors((DEPLOY / link).read_text()), f"{link}#{anchor}"
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) <= anchors(README)


def anchors(text):
    return {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_the_one_line(tmp_path):
    (tmp_path / "tidegate").mkdir()
    run("cp", "-r", DEPLOY, tmp_path / "tidegate/deploy")
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(workload("Deployment", "app")))
    (tmp_path / "kustomization.yaml").write_text(snippet("the one line"))
    built = documents(tool("kubectl"), "kustomize", tmp_path)
    assert_valid(built)
    app = next(one for one in built if one["kind"] == "Deployment")
    assert sidecar_of(app)["image"] == "registry.example.com/tidegate:0.1.0"
    assert any(one.get("data", {}).get("CEILING") == "25" for one in built)


@pytest.mark.parametrize("split", [False, True])
def test_the_label_of_an_account_is_found_as_told(split, tmp_path):
    lines = re.findall(r'`([^`]*"\$KEY" [^`]* cut -c1-8)`', (ROOT / "README.md").read_text())
    command = next(line for line in lines if ("$MODEL" in line) == split)
    label = run("bash", "-euc", command, env={**os.environ, "KEY": "sk-one", "MODEL": "m"}).strip()
    mock = Process("mock", "--listen", "127.0.0.1:0", "--latency", "1ms")
    config = tmp_path / "tidegate.yaml"
    config.write_text(f"upstreams: [{{ url: '{mock.url('url')}', account: {{ split_by_model: {str(split).lower()} }} }}]\n")
    proxy = Process("--config", config, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    try:
        headers = {"content-type": "application/json", "authorization": "Bearer sk-one"}
        body = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
        urllib.request.urlopen(urllib.request.Request(proxy.url("proxy") + "/v1/chat/completions", body, headers)).read()
        metrics = urllib.request.urlopen(proxy.url("admin") + "/metrics").read().decode()
    finally:
        proxy.end()
        mock.end()
    assert set(re.findall(r'account="([^"]+)"', metrics)) == {label}


def test_the_gateway():
    command = snippet("helm install").replace("\\\n", "").split()
    assert command[:2] == ["helm", "install"]
    built = documents(tool("helm"), "template", *command[2:])
    assert_valid(built)
    service = next(one for one in built if one["kind"] == "Service")
    assert (service["metadata"]["name"], service["spec"]["ports"][0]["port"]) == ("tidegate", 8080)
    config = next(one for one in built if one["kind"] == "ConfigMap")["data"]["tidegate.yaml"]
    assert "ceiling: 25" in config, "50 over 2 replicas is 25 each"


def test_the_rules_for_the_operator():
    script = snippet("PrometheusRule").replace("kubectl apply --filename -", "cat")
    rules = list(yaml.safe_load_all(run("bash", "-euc", script, cwd=ROOT)))
    assert_valid(rules)
    names = [rule.get("alert") for one in rules for group in one["spec"]["groups"] for rule in group["rules"]]
    assert [name for name in names if name] == [alert["alert"] for alert in ALERTS]


def test_the_table_lists_every_alert():
    rows = dict(re.findall(r"^\| (Tidegate\w+) \| (\w+) \|", README, re.MULTILINE))
    assert rows == {alert["alert"]: alert["labels"]["severity"] for alert in ALERTS}


def test_the_service_is_installed_as_told(tmp_path):
    """In a root of its own; what needs a running systemd is left out."""
    for folder in ("usr/local/bin", "etc/systemd/system"):
        (tmp_path / folder).mkdir(parents=True)
    for line in snippet("sudo install").splitlines():
        if not line.startswith("sudo install"):
            assert line == "cargo build --release" or line.startswith("sudo systemctl"), line
            continue
        line = line.removeprefix("sudo ").replace("target/release/tidegate", str(BINARY))
        # Where it goes, not where it comes from.
        head, target = line.rsplit(" ", 1)
        subprocess.run(["bash", "-euc", f"{head} {tmp_path}{target}"], cwd=ROOT, check=True)
    unit = (tmp_path / "etc/systemd/system/tidegate.service").read_text()
    command = re.search(r"^ExecStart=(\S+) --config (\S+)", unit, re.MULTILINE)
    program = tmp_path / "usr/local/bin" / BINARY.name
    assert f"/{program.relative_to(tmp_path).parent}/tidegate" == command[1]
    run(program, "check", f"{tmp_path}{command[2]}")
