"""A real Prometheus that scrapes Tidegate while it has a hard time: refusals, retries, pauses, faults, reloads."""

import concurrent.futures
import json
import math
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import httpx
import yaml
from conftest import DEPLOY, Process, tool

CONFIG = """
upstreams:
  - name: found # its limit has to be found
    url: {api}
    match: {{ path_prefix: /found, strip_prefix: true }}
    prices: [{{ model: m, input: 1.25, output: 10 }}]
  - name: known
    url: {api}
    match: {{ path_prefix: /known, strip_prefix: true }}
    ceiling: 3
    queue: {{ depth_max: 10 }}
    prices: [{{ model: "*", input: 1.25, output: 10 }}]
    balance: {{ header: x-ratelimit-remaining-requests }} # a number, which is all that matters here
    retry: {{ post: always, backoff: {{ base: 50ms, max: 100ms, jitter: 50ms }} }}
  - name: down
    url: http://127.0.0.1:1
    match: {{ path_prefix: /down, strip_prefix: true }}
    deadlines: {{ connect: 500ms }}
"""

# What is sent at once, again and again: upstream, and what the mock shall do with it (the first time only).
STREAMS = [
    [("found", None)] * 20,
    [("known", None)] * 20,
    [("known", "503"), ("found", "429")],
    [("found", "quota")],
    [("down", None)],
    [("nowhere", None)],
]
ROUNDS_MAX = 600


def post(client, number, upstream, fault):
    body = {"model": fault or "m", "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 4}
    headers = {"authorization": "Bearer key"}
    if fault:
        headers |= {"x-mock-fault": fault, "x-mock-fail-first": "1"}
    try:
        client.post(f"/{upstream}/v1/chat/completions", json=body, headers=headers)
    except httpx.HTTPError:
        pass  # the metrics tell


class Live:
    """Programs, load and questions."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = []
        self.stopped = threading.Event()
        self.load = [threading.Thread(target=self.send, args=[stream]) for stream in STREAMS]

    def start(self):
        mock = Process("mock", "--listen", "127.0.0.1:0", "--ceiling", "5", "--rpm", "1200", "--latency", "50ms")
        self.processes.append(mock)
        self.config = self.directory / "tidegate.yaml"
        self.config.write_text(CONFIG.format(api=mock.url("url")))
        self.proxy = Process(
            "--config", self.config, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "error"
        )
        self.processes.append(self.proxy)
        self.url = self.start_prometheus(self.proxy.url("admin").removeprefix("http://"))
        for thread in self.load:
            thread.start()
        self.reload("trace: headers", "accepted")
        self.reload("nonsense: 1", "rejected")

    def reload(self, line, result):
        """Changes the configuration, and waits until that was noticed."""
        with self.config.open("a") as file:
            file.write(f"{line}\n")
        deadline = time.monotonic() + 60
        while f'tidegate_config_reloads_total{{result="{result}"}} 1' not in self.metrics():
            assert time.monotonic() < deadline, f"not {result}"
            time.sleep(0.1)

    def metrics(self):
        with urllib.request.urlopen(f"{self.proxy.url('admin')}/metrics") as page:
            return page.read().decode()

    def start_prometheus(self, target):
        home = self.directory / "prometheus"
        shutil.copytree(DEPLOY / "prometheus", home)
        config = yaml.safe_load((home / "prometheus.yml").read_text())
        # All else stays as it is delivered; a test has no quarter of a minute for each look.
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (home / "prometheus.yml").write_text(yaml.safe_dump(config))
        (home / "targets.yml").write_text(yaml.safe_dump([{"targets": [target]}]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with (self.directory / "prometheus.log").open("w") as log:
            self.prometheus = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={home}/prometheus.yml",
                    f"--storage.tsdb.path={self.directory}/tsdb",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=log,
            )
        return f"http://{address}"

    def send(self, stream):
        """The same at once, again and again, until the tests are through."""
        base, timeout = self.proxy.url("proxy"), 10
        limits = httpx.Limits(max_connections=len(stream))
        with (
            httpx.Client(base_url=base, timeout=timeout, trust_env=False, limits=limits) as client,
            concurrent.futures.ThreadPoolExecutor(len(stream)) as pool,
        ):
            for number in range(ROUNDS_MAX):
                if self.stopped.wait(0.3):
                    return
                concurrent.futures.wait([pool.submit(post, client, number, *what) for what in stream])

    def ask(self, path, **query):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}") as page:
            return json.load(page)["data"]

    def has_data(self, expression):
        """It has a series with a number now. Raises where it is no expression at all."""
        series = self.ask("/api/v1/query", query=expression)["result"]
        return any(math.isfinite(float(one["value"][1])) for one in series)

    def without_data(self, expressions, patience_s=180):
        """Those that return nothing however long one waits."""
        deadline = time.monotonic() + patience_s
        missing = list(expressions)
        while missing and time.monotonic() < deadline:
            try:
                missing = [expression for expression in missing if not self.has_data(expression)]
            except (urllib.error.HTTPError, urllib.error.URLError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 400:
                    raise AssertionError(error.read().decode()) from error
            if missing:
                time.sleep(1)
        return missing

    def end(self):
        self.stopped.set()
        for thread in self.load:
            if thread.ident:
                thread.join()
        if prometheus := getattr(self, "prometheus", None):
            prometheus.terminate()
            prometheus.wait(timeout=30)
        for process in reversed(self.processes):
            process.end()


