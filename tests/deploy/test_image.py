"""The Dockerfile, and the image it makes."""

import re
import subprocess
import tarfile

import pytest
from conftest import BINARY, DEPLOY, bare, run, tool
from containers import PODMAN, STORE, build_tidegate, hardened, inspect

RESTRICTED = hardened(
    {
        "runAsUser": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
)


def knows(command):
    return subprocess.run([BINARY, command, "--help"], capture_output=True).returncode == 0


def test_linters_find_nothing():
    run(tool("hadolint"), DEPLOY / "Dockerfile")
    run(tool("shellcheck"), DEPLOY / "image/rootfs", DEPLOY.parent / "tests/deploy/run")


def test_it_is_small_and_holds_nothing_it_does_not_need(image, tmp_path, figures):
    archive = tmp_path / "image.tar"
    run("buildah", *STORE, "push", image, f"docker-archive:{archive}")
    with tarfile.open(archive) as outer:
        layers = [one.name for one in outer if one.isfile() and one.name.endswith(".tar")]
        assert len(layers) == 1
        size = outer.getmember(layers[0]).size
        with tarfile.open(fileobj=outer.extractfile(layers[0])) as layer:
            files = {one.name: one for one in layer if one.isfile()}
    figures(f"image: {size / 1e6:.1f} MB, the program {files['tidegate'].size / 1e6:.1f} MB of it")
    assert size <= 25e6
    etc = {name for name in files if name.startswith("etc/")}
    assert etc == {"etc/group", "etc/nsswitch.conf", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"}
    others = set(files) - etc - {"tidegate"}
    assert all(".so." in name for name in others), "the C library and nothing else"
    assert not [name for name, one in files.items() if one.mode & 0o6022], "nothing set-uid, nothing others may write"


def test_it_runs_as_nobody_and_asks_after_its_health(image):
    config = inspect(image)["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/tidegate"]
    assert config["Healthcheck"]["Test"] == ["CMD", "/tidegate", "healthcheck"]
    # They would override what a configuration file says, for example that a sidecar listens on localhost only.
    assert not [one for one in config["Env"] if one.startswith("TIDEGATE_")]


def test_the_same_program_gives_the_same_image(image, tmp_path):
    again = build_tidegate(tmp_path, "localhost/tidegate:again")
    assert inspect(again)["rootfs"]["diff_ids"] == inspect(image)["rootfs"]["diff_ids"]


def test_what_the_build_needs_is_in_its_context(tmp_path):
    """The compiling stage is left out in tests; that it would find everything can be told all the same."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    for kept in ignored[1:]:
        target = tmp_path / kept.removeprefix("!")
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-r", DEPLOY.parent / kept.removeprefix("!"), target)
    run(bare("cargo"), "metadata", "--locked", "--no-deps", "--offline", "--format-version", "1", cwd=tmp_path)
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (tmp_path / source).exists(), line
    for source in (tmp_path / "src").rglob("*.rs"):
        for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            assert (source.parent / included).exists(), f"{source.name} includes {included}"
    assert not (DEPLOY.parent / "build.rs").exists() or (tmp_path / "build.rs").exists()


def test_it_starts_restricted_is_healthy_and_drains(image, podman):
    name = podman.start("whole", "--network", "none", *RESTRICTED, "--env", "TIDEGATE_UPSTREAM=https://api.openai.com", image)
    assert podman.get(name, "http://127.0.0.1:9090/readyz", host="10.88.0.2:9090")
    if knows("healthcheck"):
        podman("exec", name, "/tidegate", "healthcheck")
    assert podman.stop(name, 20) == 0


@pytest.mark.skipif(not knows("healthcheck"), reason="this binary has no healthcheck yet")
def test_the_healthcheck_tells_a_sick_one(image, podman):
    name = podman.start("sick", "--network", "none", *RESTRICTED, image, "mock")
    done = subprocess.run(["podman", *PODMAN, "exec", name, "/tidegate", "healthcheck"], capture_output=True)
    assert done.returncode == 1
