"""The chart of the shared gateway."""

import json
import re
import subprocess

import pytest
import yaml
from conftest import DEPLOY, ROOT, assert_hardened, assert_valid, check, documents, pod_spec, run, seconds, tool

CHART = DEPLOY / "helm/tidegate"
URL = "upstream.url=https://api.openai.com"


def template(*values):
    sets = [arg for value in values for arg in ("--set", value)]
    return documents(tool("helm"), "template", "api", CHART, "--namespace", "gateway", *sets)


def one(objects, kind):
    found = [each for each in objects if each["kind"] == kind]
    assert len(found) == 1, f"{kind}: {len(found)}"
    return found[0]


def config_of(objects):
    return one(objects, "ConfigMap")["data"]["tidegate.yaml"]


def refused(*values):
    sets = [arg for value in values for arg in ("--set", value)]
    done = subprocess.run([tool("helm"), "template", "api", CHART, *sets], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


def test_it_lints():
    run(tool("helm"), "lint", "--strict", CHART, "--set", URL)


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("replicas=1", "upstream.ceiling=10", "upstream.rpm=500", "upstream.tpm=200000"),
        ("monitor.enabled=true", "monitor.labels.release=prometheus"),
        ("monitor.enabled=true", "monitor.kind=ServiceMonitor"),
        ("networkPolicy.clients=null", "networkPolicy.upstreamPorts={443,8443}"),
        ("networkPolicy.enabled=false", "podDisruptionBudget.enabled=false"),
        ("envFrom[0].secretRef.name=keys", "env[0].name=A", "env[0].value=b", "imagePullSecrets[0].name=pull"),
        ("nodeSelector.disk=ssd", "podAnnotations.a=b", "podLabels.team=c", "service.annotations.d=e"),
    ],
)
def test_what_it_makes_is_valid_and_hardened(values, tmp_path):
    objects = template(URL, *values)
    assert_valid(objects)
    check(config_of(objects), tmp_path)
    deployment = one(objects, "Deployment")
    assert_hardened(pod_spec(deployment))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for service in (each for each in objects if each["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        ports = {port["name"] for port in pod_spec(deployment)["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_replicas_share_what_the_account_may(tmp_path):
    objects = template(URL, "replicas=3", "upstream.ceiling=50", "upstream.rpm=500")
    upstream = yaml.safe_load(config_of(objects))["upstreams"][0]
    assert (upstream["ceiling"], upstream["rpm"]) == (16, 166)
    strategy = one(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}, "a pod more would be a share too many"
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_a_single_replica_has_no_budget():
    assert not [each for each in template(URL, "replicas=1") if each["kind"] == "PodDisruptionBudget"]


def test_it_drains_within_the_time_a_pod_has():
    objects = template(URL, "drain.delaySeconds=7", "drain.maxSeconds=60")
    drain = yaml.safe_load(config_of(objects))["drain"]
    grace = pod_spec(one(objects, "Deployment"))["terminationGracePeriodSeconds"]
    assert seconds(drain["delay"]) + seconds(drain["max"]) < grace


def test_a_configuration_of_ones_own_goes_over_the_charts(tmp_path):
    own = tmp_path / "values.yaml"
    own.write_text("config: { trace: headers, upstreams: [{ url: 'https://a.example', ceiling: 7 }] }\n")
    objects = documents(tool("helm"), "template", "api", CHART, "--values", own)
    config = yaml.safe_load(config_of(objects))
    assert config["trace"] == "headers" and config["listen"] == "0.0.0.0:8080"
    assert config["upstreams"] == [{"url": "https://a.example", "ceiling": 7}]
    check(config_of(objects), tmp_path)


def test_pods_are_replaced_for_what_they_do_not_take_running(tmp_path):
    def pod(config):
        own = tmp_path / "values.yaml"
        own.write_text(yaml.safe_dump({"upstream": {"url": "https://api.openai.com"}, "config": config}))
        return one(list(yaml.safe_load_all(run(tool("helm"), "template", "api", CHART, "--values", own))), "Deployment")["spec"]

    before = pod({})
    for config in ({"trace": "headers"}, {"limits": {"accounts_max": 7}}, {"buffers": {"total_max": "1MiB"}}):
        assert pod(config) == before, config
    for config in ({"threads": 3}, {"limits": {"connections_max": 7}}, {"otlp": {"sample": 0.5}}, {"tls": {"cert": "/c", "key": "/k"}}):
        assert pod(config) != before, config
    tls = [pod({"tls": {"cert": path, "key": "/k"}}) for path in ("/c", "/d")]
    assert tls[0] == tls[1], "other certificates are taken"


def test_mistakes_are_told():
    assert "upstream.url is required" in refused()
    assert "lower `replicas`" in refused(URL, "upstream.ceiling=1")
    assert "nonsense" in refused(URL, "nonsense=1")
    assert "replicas" in refused(URL, "replicas=0")
    assert "config" in refused(URL, "config.drain.max=1s")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ("upstream: { preset: zzz }", "preset"),
        ("upstream: { url: 'https://a b' }", "url"),
        ("drain: null", "drain"),
        ("log: { level: loud }", "level"),
        ("service: { annotations: { n: 5 } }", "annotations"),
        ("podLabels: { app.kubernetes.io/name: mine }", "podLabels"),
        ("monitor: { labels: { app.kubernetes.io/instance: mine } }", "labels"),
        ("upstream: { url: '', ceiling: 5 }\nconfig: { upstreams: [{ url: 'https://a.example' }] }", "upstream.ceiling"),
        ("config: { upstreams: [{ url: 'https://a.example' }] }", "upstream.url"),
    ],
)
def test_what_would_fail_later_is_refused(values, word, tmp_path):
    own = tmp_path / "values.yaml"
    own.write_text(values)
    address = [] if "url:" in values.split("config")[0] else ["--set", URL]
    done = subprocess.run([tool("helm"), "template", "api", CHART, "--values", own, *address], capture_output=True, text=True)
    assert done.returncode != 0 and word in done.stderr, done.stderr or done.stdout


def test_numbers_in_a_file_are_whole(tmp_path):
    """Helm reads those as floating point, and would print a million as 1e+06."""
    own = tmp_path / "values.yaml"
    own.write_text(f"upstream: {{ {URL.replace('upstream.', '').replace('=', ': ')}, tpm: 20000000 }}\ndrain: {{ maxSeconds: 1000000 }}\nconfig: null\n")
    objects = documents(tool("helm"), "template", "api", CHART, "--values", own)
    assert_valid(objects)
    config = yaml.safe_load(config_of(objects))
    assert (config["drain"]["max"], config["upstreams"][0]["tpm"]) == ("1000000s", 10_000_000)
    assert pod_spec(one(objects, "Deployment"))["terminationGracePeriodSeconds"] == 1_000_015


def test_the_presets_are_the_programs(tmp_path):
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    listed = schema["upstream"]["properties"]["preset"]["enum"]
    for preset in listed:
        check(f"upstreams: [{{ url: 'https://a.example', preset: {preset} }}]", tmp_path)
    names = re.findall(r"Self::\w+ => \"(\w+)\",", (ROOT / "src/provider/presets.rs").read_text())
    assert set(listed) == {"auto", *names}


@pytest.mark.parametrize("release", ["a.b", "1st", "x" * 53, "1" * 53, "my-tidegate"])
def test_every_release_gives_names_that_services_may_have(release):
    objects = documents(tool("helm"), "template", release, CHART, "--set", URL)
    assert_valid(objects)
    names = {each["metadata"]["name"] for each in objects if each["kind"] == "Service"}
    assert len(names) == 2 and all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names), names


def test_it_may_connect_to_what_it_is_told_to(tmp_path):
    def ports(values):
        own = tmp_path / "values.yaml"
        own.write_text(values)
        objects = list(yaml.safe_load_all(run(tool("helm"), "template", "api", CHART, "--values", own)))
        dns, *others = one(objects, "NetworkPolicy")["spec"]["egress"]
        return {port["port"] for rule in others for port in rule["ports"]}

    assert ports("upstream: { url: https://a.example }") == {443}
    assert ports("upstream: { url: http://api:8000/v1 }\nnetworkPolicy: { upstreamPorts: [8443] }") == {8000, 8443}
    assert ports("upstream: { url: http://a.example }\nnetworkPolicy: { upstreamPorts: [] }") == {80}
    two = "config: { otlp: { endpoint: 'http://otel:4318' }, upstreams: [{ url: 'https://[fd00::1]:8001' }, { url: '${URL}' }] }"
    assert ports(two) == {443, 4318, 8001}
    otel = "env: [{ name: OTEL_EXPORTER_OTLP_ENDPOINT, value: http://otel:4319 }, { name: OTHER, valueFrom: {} }]"
    assert ports(f"upstream: {{ url: https://a.example }}\n{otel}") == {443, 4319}


def test_certificates_are_mounted_from_secrets(tmp_path):
    example = re.search(r"for example certificates:\n((?:#   .*\n)+)", (CHART / "values.yaml").read_text())[1]
    own = tmp_path / "values.yaml"
    own.write_text(example.replace("#   ", "") + "upstream: { url: https://a.example }\n")
    given = ["api", CHART, "--namespace", "gateway", "--values", own]
    objects = documents(tool("helm"), "template", *given)
    assert_valid(objects)
    pod = pod_spec(one(objects, "Deployment"))
    [container] = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    config = yaml.safe_load(config_of(objects))
    for path in config["tls"].values():
        assert volumes[mounts[path.rsplit("/", 1)[0]]]["secret"]["secretName"] == "tidegate-tls"
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(probe["port"] == "admin" and probe.get("scheme", "HTTP") == "HTTP" for probe in probes), "the admin port is plain"
    protocols = {port["name"]: port["appProtocol"] for each in objects if each["kind"] == "Service" for port in each["spec"]["ports"]}
    assert protocols == {"proxy": "https", "admin": "http"}
    notes = run(tool("helm"), "install", *given, "--dry-run=client")
    assert "OPENAI_BASE_URL=https://api-tidegate.gateway.svc:8080/v1" in notes and "http://api-tidegate" not in notes


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_the_alerts_find_the_job_whatever_the_release_is_called(kind):
    values = ("--set", URL, "--set", "monitor.enabled=true", "--set", f"monitor.kind={kind}")
    objects = documents(tool("helm"), "template", "x" * 53, CHART, *values)
    assert_valid(objects)
    monitor = one(objects, kind)["spec"]
    sources = [each["metadata"]["labels"] for each in objects if each["kind"] == "Service"]
    if kind == "PodMonitor":
        sources = [one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]]
    [labels] = [labels for labels in sources if monitor["selector"]["matchLabels"].items() <= labels.items()]
    assert "tidegate" in labels[monitor["jobLabel"]]


def test_nobody_means_nobody():
    policy = one(template(URL, "networkPolicy.clients=null", "networkPolicy.monitoring=null"), "NetworkPolicy")
    assert not policy["spec"]["ingress"], "a rule without `from` lets everybody in"


def test_the_notes_tell_the_address_and_the_shares():
    notes = run(
        tool("helm"), "install", "api", CHART, "--namespace", "gateway", "--dry-run=client", "--set", URL, "--set",
        "upstream.ceiling=50",
    )
    assert "OPENAI_BASE_URL=http://api-tidegate.gateway.svc:8080/v1" in notes
    assert "ceiling 25" in notes
