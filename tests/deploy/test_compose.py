"""The compose file: its form, and its services run together."""

import json
import os
import re
import time

import yaml
from conftest import DEPLOY, check, tool
from containers import names, reachable

FILE = DEPLOY / "compose.yaml"


def interpolated():
    """With every variable at its default."""
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text()))


COMPOSE = interpolated()
SERVICES = COMPOSE["services"]


def test_it_is_of_the_compose_specification():
    from compose_spec import ComposeSpecification

    ComposeSpecification.model_validate(COMPOSE, extra="forbid")


def test_what_it_refers_to_is_there():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (FILE.parent / source).exists(), volume
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
        for other in service.get("depends_on", []):
            assert other in SERVICES
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "nobody but this machine"
    build = SERVICES["tidegate"]["build"]
    assert (FILE.parent / build["context"] / build["dockerfile"]).exists()
    assert SERVICES["api"]["image"] == SERVICES["tidegate"]["image"], "built once"


def test_a_read_only_service_has_its_files_from_files():
    """Compose writes inline content into the container, and refuses to start one whose root is read-only."""
    for name, service in SERVICES.items():
        for config in service.get("configs", []):
            assert not service.get("read_only") or "file" in COMPOSE["configs"][config["source"]], name


def test_its_configuration_is_valid(tmp_path):
    text = (FILE.parent / "compose/tidegate.yaml").read_text()
    environment = {name: str(value) for name, value in SERVICES["tidegate"]["environment"].items()}
    assert "http://api:8081" in check(text, tmp_path, **environment)
    config = yaml.safe_load(text)
    grace = SERVICES["tidegate"]["stop_grace_period"]
    assert (config["drain"]["max"], grace) == ("50s", "1m")


def test_its_services_find_each_other(image, podman, tmp_path):
    """All names are localhost here, where each service has a port of its own but Prometheus, which gets one."""
    reachable(tmp_path)
    for name, config in COMPOSE["configs"].items():
        (tmp_path / name).write_text(config["content"])

    def options(service):
        given = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", *names(tmp_path, *SERVICES)]
        for config in service.get("configs", []):
            given += ["--volume", f"{tmp_path / config['source']}:{config['target']}:ro"]
        for volume in service.get("volumes", []):
            source, *rest = volume.split(":")
            if source not in COMPOSE["volumes"]:
                given += ["--volume", ":".join([str((FILE.parent / source).resolve()), *rest])]
        for variable, value in service.get("environment", {}).items():
            given += ["--env", f"{variable}={value}"]
        return given

    api, tidegate, prometheus = SERVICES["api"], SERVICES["tidegate"], SERVICES["prometheus"]
    podman.start("api", "--network", "none", *options(api), image, *api["command"])
    inside = ["--network", "container:api"]
    podman.start("tidegate", *inside, *options(tidegate), image, *tidegate["command"])
    assert json.loads(podman.get("tidegate", "http://127.0.0.1:8080/v1/models"))["data"]
    # Debian's Prometheus instead of its image: it takes the same arguments and files.
    podman.start(
        "prometheus", *inside, *options(prometheus), "--tmpfs", "/prometheus:rw,mode=777", "--volume",
        f"{os.path.realpath(tool('prometheus'))}:/bin/prometheus:ro", "--entrypoint", "/bin/prometheus", image,
        *prometheus["command"], "--web.listen-address=:9091",
    )  # fmt: skip
    for _ in range(100):
        targets = json.loads(podman.get("prometheus", "http://127.0.0.1:9091/api/v1/targets"))["data"]["activeTargets"]
        if targets and targets[0]["health"] != "unknown":
            break
        time.sleep(0.2)
    assert [(one["labels"]["job"], one["health"], one["lastError"]) for one in targets] == [("tidegate", "up", "")]
    rules = json.loads(podman.get("prometheus", "http://127.0.0.1:9091/api/v1/rules"))["data"]["groups"]
    assert {group["name"] for group in rules} == {"tidegate", "tidegate-recording"}


def test_another_api_can_be_named():
    text = FILE.read_text()
    assert set(re.findall(r"\$\{(\w+):-", text)) == {"UPSTREAM", "CEILING"}
