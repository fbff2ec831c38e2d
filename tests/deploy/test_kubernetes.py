"""The sidecar component and its example."""

import json
import os
import subprocess
import urllib.request

import pytest
import yaml
from conftest import BINARY, DEPLOY, Process, assert_hardened, assert_valid, check, documents, pod_spec, run, seconds, tool

KUBERNETES = DEPLOY / "kubernetes"
WORKLOADS = ["CronJob", "DaemonSet", "Deployment", "Job", "StatefulSet"]


def kustomize(directory):
    return documents(tool("kubectl"), "kustomize", directory)


def sidecar_of(workload):
    found = [one for one in pod_spec(workload).get("initContainers", []) if one["name"] == "tidegate"]
    return found[0] if found else None


def workload(kind, name, **labels):
    """As small as it may be, with an init container of its own."""
    pod = {
        "spec": {
            "restartPolicy": "Never" if kind in ("CronJob", "Job") else "Always",
            "initContainers": [{"name": "first", "image": "first"}],
            "containers": [{"name": "app", "image": "app"}],
        }
    }
    if kind == "CronJob":
        spec = {"schedule": "@daily", "jobTemplate": {"spec": {"template": pod}}}
    elif kind == "Job":
        spec = {"template": pod}
    else:
        pod["metadata"] = {"labels": {"app": name}}
        spec = {"selector": {"matchLabels": {"app": name}}, "template": pod}
        spec |= {"serviceName": name} if kind == "StatefulSet" else {}
    version = "batch/v1" if kind in ("CronJob", "Job") else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": spec}


def in_style(style, objects):
    dumps = {"block": yaml.safe_dump, "flow": lambda one: yaml.safe_dump(one, default_flow_style=True), "json": json.dumps}
    return "\n---\n".join(dumps[style](one) for one in objects)


@pytest.mark.parametrize("style", ["block", "flow", "json"])
def test_one_line_gives_every_kind_of_workload_the_sidecar(style, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    objects = [workload(kind, kind.lower()) for kind in WORKLOADS]
    objects.append(workload("Deployment", "left-out", tidegate="none"))
    (app / "all.yaml").write_text(in_style(style, objects))
    for component in ("sidecar", "monitoring", "networkpolicy"):
        target = app / component
        run("cp", "-r", KUBERNETES / component, target)
    (app / "kustomization.yaml").write_text("resources: [all.yaml]\ncomponents: [sidecar, monitoring, networkpolicy]\n")

    built = kustomize(app)

    assert_valid(built)
    workloads = [one for one in built if one["kind"] in WORKLOADS]
    assert len(workloads) == len(WORKLOADS) + 1
    for one in workloads:
        sidecar = sidecar_of(one)
        if one["metadata"]["name"] == "left-out":
            assert sidecar is None
            continue
        names = [container["name"] for container in pod_spec(one)["initContainers"]]
        assert names == ["tidegate", "first"], "it is there before what else starts"
        assert sidecar["restartPolicy"] == "Always", "else it would be waited for"
        ports = {port["name"]: port["containerPort"] for port in sidecar["ports"]}
        assert ports == {"tidegate-admin": 9090}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert sidecar[probe]["httpGet"]["port"] == "tidegate-admin"
    monitor = next(one for one in built if one["kind"] == "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "tidegate-admin"


def test_two_applications_share_a_namespace(tmp_path):
    run("cp", "-r", *(KUBERNETES / component for component in ("sidecar", "monitoring", "networkpolicy")), tmp_path)
    for name, ceiling in (("one", "3"), ("two", "4")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "app.yaml").write_text(yaml.safe_dump(workload("Deployment", "app")))
        settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tidegate"}, "data": {"CEILING": ceiling}}
        own = {"nameSuffix": f"-{name}", "resources": ["app.yaml"], "components": ["../sidecar"]}
        own["patches"] = [{"patch": yaml.safe_dump(settings)}]
        (tmp_path / name / "kustomization.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "kustomization.yaml").write_text("resources: [one, two]\ncomponents: [monitoring, networkpolicy]\n")
    built = kustomize(tmp_path)
    assert_valid(built)
    data = {one["metadata"]["name"]: one["data"] for one in built if one["kind"] == "ConfigMap"}
    ceilings = {
        one["metadata"]["name"]: data[sidecar_of(one)["envFrom"][0]["configMapRef"]["name"]]["CEILING"]
        for one in built
        if one["kind"] == "Deployment"
    }
    assert ceilings == {"app-one": "3", "app-two": "4"}
    assert len([one for one in built if one["kind"] in ("PodMonitor", "NetworkPolicy")]) == 2


def test_the_patch_of_cron_jobs_is_the_other_one():
    pod = yaml.safe_load((KUBERNETES / "sidecar/pod.yaml").read_text())["spec"]["template"]
    cron = yaml.safe_load((KUBERNETES / "sidecar/cronjob.yaml").read_text())
    assert cron["spec"]["jobTemplate"]["spec"]["template"] == pod


def test_the_example_is_valid_and_hardened():
    built = kustomize(KUBERNETES / "example")
    assert_valid(built)
    workloads = [one for one in built if one["kind"] in WORKLOADS]
    assert [bool(sidecar_of(one)) for one in workloads] == [one["metadata"]["name"] != "mock" for one in workloads]
    for one in workloads:
        assert_hardened(pod_spec(one))
    settings = next(one for one in built if one["metadata"]["name"].startswith("tidegate-") and "CEILING" in one["data"])
    assert settings["data"] == {"CEILING": "10", "UPSTREAM": "http://mock:8081"}, "its patch, not the defaults"


def test_the_configuration_drains_within_the_time_a_pod_has(tmp_path):
    text = (KUBERNETES / "sidecar/tidegate.yaml").read_text()
    assert "ceiling" in check(text, tmp_path, UPSTREAM="https://api.openai.com", CEILING="10")
    drain = yaml.safe_load(text)["drain"]
    for one in kustomize(KUBERNETES / "example"):
        if one["kind"] in WORKLOADS:
            grace = pod_spec(one).get("terminationGracePeriodSeconds", 30)
            assert seconds(drain["delay"]) + seconds(drain["max"]) < grace


def test_the_policy_closes_the_admin_port_and_no_other():
    policy = yaml.safe_load((KUBERNETES / "networkpolicy/networkpolicy.yaml").read_text())["spec"]
    everybody, monitoring = policy["ingress"]
    assert "from" not in everybody and monitoring["from"]
    open_ports = {
        port
        for rule in everybody["ports"]
        if rule["protocol"] == "TCP"
        for port in range(rule["port"], rule["endPort"] + 1)
    }
    assert set(range(1, 65536)) - open_ports == {9090}
    assert [rule["port"] for rule in monitoring["ports"]] == [9090]


def test_the_sidecar_alone_opens_no_port_of_the_application():
    """A policy would be added to what the namespace has, which may deny all."""
    assert not [one for one in kustomize(KUBERNETES / "example") if one["kind"] == "NetworkPolicy"]


def test_probes_and_scrapes_by_the_pods_address_are_let_in(figures, monkeypatch):
    monkeypatch.setenv("UPSTREAM", "http://127.0.0.1:9")
    monkeypatch.setenv("CEILING", "10")
    config = KUBERNETES / "sidecar/tidegate.yaml"
    sidecar = Process("--config", config, "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0")
    try:
        admin = sidecar.url("admin").replace("0.0.0.0", "127.0.0.1")
        for path in ("/healthz", "/readyz", "/metrics"):
            for host in ("10.244.1.7:9090", "[fd00::7]:9090"):
                request = urllib.request.Request(admin + path, headers={"Host": host})
                with urllib.request.urlopen(request) as answer:
                    assert answer.status == 200, f"{path} at {host}"
        figures(f"idle memory of the sidecar: {sidecar.memory_kib() / 1024:.1f} MiB")
        assert sidecar.memory_kib() < 16 * 1024, "the request for memory in pod.yaml is twice this"
    finally:
        sidecar.end()


def test_the_proxys_port_is_moved_by_the_environment():
    """As the ConfigMap gives it, whatever the file says."""
    assert "TIDEGATE_LISTEN" in (DEPLOY / "README.md").read_text()
    command = [BINARY, "--config", KUBERNETES / "sidecar/tidegate.yaml", "--admin", "127.0.0.1:0"]
    env = {**os.environ, "UPSTREAM": "http://127.0.0.1:9", "CEILING": "10", "TIDEGATE_LISTEN": "127.0.0.1:0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as sidecar:
        ready = sidecar.stdout.readline()
        sidecar.terminate()
    assert " ready " in ready and "proxy=http://127.0.0.1:8080 " not in ready, ready


def test_pods_name_the_binarys_version():
    version = run(BINARY, "--version").split()[1]
    assert f"tidegate:{version}\n" in (KUBERNETES / "sidecar/pod.yaml").read_text()
    assert f"appVersion: {version}\n" in (DEPLOY / "helm/tidegate/Chart.yaml").read_text()
