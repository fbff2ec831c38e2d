"""The example's Job, run for real: the real OpenAI SDK in one container, the sidecar in the other, localhost between
them. The containers are what Kustomize made of the example; podman plays the kubelet."""

import json
import pathlib
import sys

import pytest
from conftest import DEPLOY, documents, pod_spec, tool
from containers import LIMITS, build_python, hardened, names, python_mounts, reachable


@pytest.fixture(scope="module")
def example():
    return documents(tool("kubectl"), "kustomize", DEPLOY / "kubernetes/example")


def named(objects, kind, name):
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def options_of(objects, pod, container, directory):
    """What the kubelet would make of it: user, rights, environment, files."""
    options = hardened(container["securityContext"])
    for source in container.get("envFrom", []):
        for key, value in named(objects, "ConfigMap", source["configMapRef"]["name"])["data"].items():
            options += ["--env", f"{key}={value}"]
    for variable in container.get("env", []):
        options += ["--env", f"{variable['name']}={variable['value']}"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]} if "volumes" in pod else {}
    for mount in container.get("volumeMounts", []):
        volume = volumes[mount["name"]]
        if "emptyDir" in volume:
            options += ["--tmpfs", mount["mountPath"]]
            continue
        folder = directory / volume["configMap"]["name"]
        folder.mkdir(exist_ok=True)
        for file, text in named(objects, "ConfigMap", volume["configMap"]["name"])["data"].items():
            (folder / file).write_text(text)
        options += ["--volume", f"{folder}:{mount['mountPath']}:ro"]
    return options


def test_a_job_with_the_sidecar_runs_and_ends(example, image, podman, tmp_path, figures):
    reachable(tmp_path)
    (tmp_path / "python").mkdir()
    python = build_python(tmp_path / "python")
    pod = pod_spec(named(example, "Job", "burst"))
    sidecar, [app] = pod["initContainers"][0], pod["containers"]
    api = pod_spec(named(example, "Deployment", "mock"))["containers"][0]

    # The API stands for the rest of the cluster, and its network, which has nothing but localhost, for the pod's.
    podman.start("api", "--network", "none", image, *api["args"])
    options = options_of(example, pod, sidecar, tmp_path) + names(tmp_path, "mock")
    podman.start("sidecar", "--network", "container:api", *options, image, *sidecar["args"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = sidecar[probe]["httpGet"]["path"]
        podman.get("sidecar", f"http://127.0.0.1:9090{path}", host="10.244.1.7:9090")

    options = options_of(example, pod, app, tmp_path) + python_mounts()
    script = pathlib.PurePath(app["command"][-1].split()[-1])
    interpreter = pathlib.Path(sys.executable).resolve()
    said = podman("run", "--rm", *LIMITS, "--network", "container:api", *options, python, interpreter, script)

    assert said == "200 of 200 answered"
    ledger = json.loads(podman.get("api", "http://127.0.0.1:8081/__ledger"))
    figures(f"pod: {said}, {ledger['in_flight_max']} at most in flight, {ledger['refused']['ceiling']} refused")
    assert (ledger["in_flight_max"], sum(ledger["refused"].values()), ledger["duplicates_total"]) == (10, 0, 0)
    # The application has ended; the kubelet ends the sidecar, and the Job is done.
    assert podman.stop("sidecar", pod.get("terminationGracePeriodSeconds", 30)) == 0
