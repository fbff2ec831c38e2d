"""The unit: what systemd says of it, and whether the program can live with it."""

import os
import re
import signal
import subprocess
import time
import urllib.request

from conftest import BARE, BINARY, DEPLOY, Process, bare, run

import pytest

UNIT = DEPLOY / "systemd/tidegate.service"


def settings():
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [tuple(line.split("=", 1)) for line in lines]


def test_systemd_understands_it(tmp_path):
    unit = tmp_path / "tidegate.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/tidegate", str(BINARY)))
    done = subprocess.run([bare("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True)
    assert done.returncode == 0 and "tidegate.service" not in done.stderr, done.stderr


def test_it_is_hardened(figures):
    said = run(bare("systemd-analyze"), "security", "--offline=true", "--no-pager", UNIT)
    score = float(re.search(r"exposure level for \S+: ([\d.]+)", said)[1])
    figures(f"systemd-analyze security: {score}")
    assert score <= 2.5


def test_it_stops_later_than_the_program_drains():
    stop = dict(settings())["TimeoutStopSec"]
    assert stop == "11min", "drain.max is ten minutes by default"


def test_the_program_does_nothing_that_the_unit_forbids(tmp_path):
    """Traced through start, traffic, reload and end: a forbidden call would fail there."""
    syscalls = allowed()
    trace = tmp_path / "trace"
    mock = Process("mock", "--listen", "127.0.0.1:0", "--latency", "1ms")
    config = tmp_path / "tidegate.yaml"
    config.write_text(f"upstreams: [{{ url: '{mock.url('url').replace('127.0.0.1', 'localhost')}' }}]\n")
    tracer = subprocess.Popen(
        [bare("strace"), "-f", "-q", "-o", trace, BINARY, "--config", config, "--listen", "127.0.0.1:0", "--admin",
         "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        ready = tracer.stdout.readline()
        if " ready " not in ready:
            pytest.skip(f"{BARE}tracing programs")
        proxy, admin = (re.search(rf"\b{name}=(\S+)", ready)[1] for name in ("proxy", "admin"))
        for _ in range(20):
            body = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
            request = urllib.request.Request(f"{proxy}/v1/chat/completions", body, {"content-type": "application/json"})
            urllib.request.urlopen(request).read()
        child = int(trace.read_text().split(maxsplit=1)[0])
        os.kill(child, signal.SIGHUP)
        deadline = time.monotonic() + 60
        while b'tidegate_config_reloads_total{result="accepted"} 1' not in urllib.request.urlopen(f"{admin}/metrics").read():
            assert time.monotonic() < deadline, "it does not reload"
            time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert tracer.wait(timeout=30) == 0
    finally:
        tracer.kill()
        mock.end()
    text = trace.read_text()
    made = set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
    assert {"epoll_wait", "accept4"} & made and "connect" in made, "the trace tells nothing"
    assert not made - syscalls
    families = set(re.findall(r"socket\((AF_\w+)", text))
    assert families <= set(dict(settings())["RestrictAddressFamilies"].split())
    assert not re.findall(r"(?:mmap|mprotect)\([^)]*PROT_WRITE\|PROT_EXEC", text), "MemoryDenyWriteExecute"
    # ProcSubset=pid hides all of /proc that is not of a process; the C library's malloc can do without what it looks for.
    read = set(re.findall(r'open(?:at)?\([^"]*"(/proc/[^"]*)"', text)) - {"/proc/sys/vm/overcommit_memory"}
    assert "/proc/self/stat" in read and all(path.startswith("/proc/self/") for path in read), read
    # A second look at what may be written: ProtectSystem=strict leaves nothing.
    assert not re.findall(r"openat\([^)]*O_(?:WRONLY|RDWR|CREAT)[^)]*\) = \d", text.replace('"/dev/null"', ""))


def allowed():
    """The system calls of the unit's filter."""
    calls = set()
    for key, value in settings():
        if key != "SystemCallFilter":
            continue
        for group in value.removeprefix("~").split():
            found = expand(group)
            calls = calls - found if value.startswith("~") else calls | found
    # systemd adds what is needed to start at all.
    return calls | expand("@default")


def expand(group):
    listed = run(bare("systemd-analyze"), "syscall-filter", "--no-pager", group)
    names = {line.strip() for line in listed.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
    return {call for name in names for call in (expand(name) if name.startswith("@") else [name])}
