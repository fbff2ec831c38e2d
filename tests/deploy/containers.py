"""Builds the image as the Dockerfile says and runs containers, with nothing but Debian's tools and what is here. No
base image is pulled: the stage that compiles is replaced by the release binary."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest
from conftest import BARE, BINARY, DEPLOY, ROOT, bare, run

HOME = ROOT / "target/deploy/containers"
STORE = ["--root", str(HOME / "root"), "--runroot", str(HOME / "run"), "--storage-driver", "vfs"]
IMAGE = "localhost/tidegate:tested"
PYTHON_IMAGE = "localhost/python:tested"
# No more than a container may have where limits cannot be raised, and no cgroup is asked for.
PODMAN = [*STORE, "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"]
# Health checks would be timers of systemd.
LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--no-healthcheck"]


def build(tag, *args):
    """The tag."""
    bare("buildah")
    if os.geteuid() != 0:
        pytest.skip(f"{BARE}building without root")
    run("buildah", *STORE, "build", "--isolation", "chroot", "--format", "docker", "--timestamp", "0", "--tag", tag, *args)
    return tag


def build_tidegate(directory, tag=IMAGE):
    """From what the Dockerfile's own script lays out."""
    run(DEPLOY / "image/rootfs", BINARY, directory / "rootfs")
    ignore = DEPLOY / "Dockerfile.dockerignore"
    return build(
        tag, "--no-cache", "--ignorefile", ignore, "--build-context", f"build={directory}", "--file",
        DEPLOY / "Dockerfile", ROOT,
    )  # fmt: skip


def inspect(tag):
    return json.loads(run("buildah", *STORE, "inspect", "--type", "image", tag))["Docker"]


def build_python(directory):
    """An image in which this machine's Python runs: it is mounted, not copied."""
    for name in ("bin", "lib", "lib64"):
        (directory / name).symlink_to(f"usr/{name}")
    (directory / "usr").mkdir()
    (directory / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    return build(PYTHON_IMAGE, "--file", directory / "Dockerfile", directory)


def python_mounts():
    """Options for PYTHON_IMAGE."""
    libraries = sysconfig.get_paths()["purelib"]
    folders = {"/usr", sys.base_prefix, str(pathlib.Path(libraries).resolve())} - {"/usr/local"}
    mounts = [arg for folder in sorted(folders) for arg in ("--volume", f"{folder}:{folder}:ro")]
    return [*mounts, "--env", f"PYTHONPATH={pathlib.Path(libraries).resolve()}"]


class Podman:
    """Containers in a store of our own, which is empty before and after."""

    def __init__(self):
        self.end()

    def start(self, name, *args):
        self("run", "--detach", "--name", name, *LIMITS, *args)
        return name

    def __call__(self, *args, **options):
        return run("podman", *PODMAN, *args, **options).strip()

    def stop(self, name, patience_s):
        """The exit code after SIGTERM."""
        self("stop", "--time", patience_s, name)
        return int(self("inspect", "--format", "{{.State.ExitCode}}", name))

    def get(self, name, url, host=None):
        """Asks inside the network of a container, for as long as it takes to start."""
        code = (
            "import sys, time, urllib.request as web\n"
            "end = time.monotonic() + 60\n"
            "while True:\n"
            "  try:\n"
            "    asked = web.Request(sys.argv[1], headers={'Host': sys.argv[2]} if sys.argv[2] else {})\n"
            "    sys.exit(print(web.urlopen(asked, timeout=10).read().decode()))\n"
            "  except OSError as error:\n"
            "    if time.monotonic() > end: raise\n"
            "    time.sleep(0.2)\n"
        )
        pid = self("inspect", "--format", "{{.State.Pid}}", name)
        assert pid != "0", f"{name} has ended: {self.logs(name)[-2000:]}"
        return run("nsenter", "--target", pid, "--net", sys.executable, "-c", code, url, host or "")

    def logs(self, name):
        done = subprocess.run(["podman", *PODMAN, "logs", name], capture_output=True, text=True)
        return done.stdout + done.stderr

    def end(self):
        for _ in range(3):  # one may live in another's network, and has to go first
            for one in self("ps", "--all", "--quiet").split():
                subprocess.run(["podman", *PODMAN, "rm", "--force", "--time", "0", one], capture_output=True)
        assert not self("ps", "--all", "--quiet")


@functools.cache
def trouble():
    """Why no container runs here, or None."""
    try:
        run("podman", *PODMAN, "run", "--rm", *LIMITS, "--network", "none", IMAGE, "--version")
    except AssertionError as error:
        return str(error).strip().splitlines()[-1]
    return None


def names(directory, *hosts):
    """Options for hosts that are localhost: there is no name service without a network."""
    file = directory / "hosts"
    file.write_text("".join(f"127.0.0.1 {host}\n" for host in ("localhost", *hosts)))
    return ["--volume", f"{file}:/etc/hosts:ro"]


def reachable(directory):
    """For the containers' users: pytest's folders are the owner's alone."""
    for folder in [directory, *directory.parents][:4]:
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(0o755)


def hardened(security):
    """The options that a Kubernetes security context means."""
    assert security["capabilities"] == {"drop": ["ALL"]}
    options = ["--user", f"{security['runAsUser']}:{security.get('runAsGroup', security['runAsUser'])}", "--cap-drop", "all"]
    options += ["--read-only", "--read-only-tmpfs=false"] if security["readOnlyRootFilesystem"] else []
    return options + (["--security-opt", "no-new-privileges"] if not security["allowPrivilegeEscalation"] else [])
