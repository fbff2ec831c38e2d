"""Starts the real programs, and turns skips into failures where CI asks for it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("TIDEGATE_BINARY", ROOT / "target/release/tidegate"))


class Process:
    """One of our programs. It prints one line when it is ready."""

    def __init__(self, *args):
        env = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
        self.process = subprocess.Popen([BINARY, *args], stdout=subprocess.PIPE, text=True, env=env)
        self.ready = self.process.stdout.readline()
        assert " ready " in self.ready, f"{args}: {self.ready!r}"

    def url(self, name):
        return re.search(rf"\b{name}=(\S+)", self.ready)[1]

    def memory_kib(self, field="VmRSS"):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", status)[1])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()


class Stack:
    """A mock API with Tidegate in front of it."""

    def __init__(self, mock_args, tidegate_args):
        self.mock = Process("mock", "--listen", "127.0.0.1:0", *mock_args)
        api = self.mock.url("url")
        self.api = api
        self.proxy = Process(
            "--upstream", api, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *tidegate_args
        )
        self.base = self.proxy.url("proxy")
        self.admin = self.proxy.url("admin")

    def ledger(self):
        with urllib.request.urlopen(f"{self.api}/__ledger") as page:
            return json.load(page)

    def clear(self):
        urllib.request.urlopen(urllib.request.Request(f"{self.api}/__ledger", method="DELETE"))


@pytest.fixture
def stack():
    running = []

    def start(mock_args=(), tidegate_args=()):
        running.append(Stack(mock_args, tidegate_args))
        return running[-1]

    yield start
    for one in running:
        code = one.proxy.end()
        one.mock.end()
        assert code == 0, f"the proxy ended with {code}"


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
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
