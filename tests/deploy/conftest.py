"""What the tests of deploy/ share. A skip is a failure in CI, unless it is for what no bare machine can do."""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / "target/deploy/bin"

_spec = importlib.util.spec_from_file_location("tidegate_programs", ROOT / "tests/sdk/conftest.py")
programs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(programs)
BINARY = programs.BINARY
Process = programs.Process

BARE = "not on this machine: "


def tool(name):
    """The path of a program that `run` installs."""
    for path in (TOOLS / name, pathlib.Path(os.sys.executable).with_name(name)):
        if path.exists():
            return str(path)
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def bare(name):
    """The same for one that can only be had from Debian, by root."""
    return shutil.which(name) or pytest.skip(f"{BARE}{name}, and it cannot be installed")


def run(*args, **options):
    """Standard output; what went wrong is in the failure."""
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, f"{args[:6]}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def check(text, tmp_path, **env):
    """What `tidegate check` says of a configuration."""
    path = tmp_path / "tidegate.yaml"
    path.write_text(text)
    return run(BINARY, "check", path, env={"PATH": os.environ["PATH"], **env})


@functools.cache
def documents(*command):
    """The documents of a YAML stream that a program prints."""
    return [document for document in yaml.safe_load_all(run(*command)) if document]


def pod_spec(workload):
    template = workload["spec"]
    if workload["kind"] == "CronJob":
        template = template["jobTemplate"]["spec"]
    return template["template"]["spec"]


def seconds(text):
    return int(text.removesuffix("s"))


def assert_valid(objects):
    """Against the schemas of the three latest Kubernetes versions; the Prometheus operator's kinds against its own."""
    import kubernetes_validate
    from cloudcoil.models.prometheus_operator import v1

    operators = {"PodMonitor": v1.PodMonitor, "PrometheusRule": v1.PrometheusRule, "ServiceMonitor": v1.ServiceMonitor}
    for one in objects:
        if model := operators.get(one["kind"]):
            assert one["apiVersion"] == "monitoring.coreos.com/v1"
            lost = unknown_keys(one, json.loads(model.model_validate(one).model_dump_json(by_alias=True)))
            assert not lost, f"{one['kind']}: {lost}"
            continue
        for version in latest(kubernetes_validate.utils.all_versions(), 3):
            kubernetes_validate.validate(one, version, strict=True)


def latest(versions, count):
    """Of versions in order, some of which are listed more than once."""
    return list(dict.fromkeys(versions))[-count:]


def unknown_keys(given, kept, path=""):
    """What a schema lost: keys it does not know."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                return f"{path}/{key}"
            if lost := unknown_keys(value, kept[key], f"{path}/{key}"):
                return lost
    if isinstance(given, list) and isinstance(kept, list):
        if len(given) != len(kept):
            return f"{path}: {len(given)} became {len(kept)}"
        for index, pair in enumerate(zip(given, kept)):
            if lost := unknown_keys(*pair, f"{path}/{index}"):
                return lost
    return None


def assert_hardened(pod):
    """The restricted profile of the pod security standards, and a read-only root."""
    general = pod.get("securityContext", {})
    for container in pod.get("initContainers", []) + pod["containers"]:
        own = {**general, **container["securityContext"]}
        assert own["runAsNonRoot"] is True and own["runAsUser"] > 0
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]


FIGURES = []


@pytest.fixture
def figures():
    return FIGURES.append


def pytest_terminal_summary(terminalreporter):
    for line in FIGURES:
        terminalreporter.write_line(line)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and BARE not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    from live import Live

    tool("prometheus")
    one = Live(tmp_path_factory.mktemp("live"))
    try:
        one.start()
        yield one
    finally:
        one.end()


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The image, built."""
    from containers import build_tidegate

    return build_tidegate(tmp_path_factory.mktemp("image"))


@pytest.fixture
def podman(image):
    from containers import Podman, trouble

    bare("podman")
    if why := trouble():
        pytest.skip(f"{BARE}running containers: {why}")
    one = Podman()
    yield one
    one.end()
