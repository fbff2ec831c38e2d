"""Every SDK, the real one, through Tidegate: plain, streaming, error, timeout, cancel, burst, and refused for ever.

Each SDK runs in a process of its own (matrix/clients.py, matrix/clients.mjs) with a key of its own, and all of them at
the same time: what is judged is counted per key, and no time is.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import pytest

from conftest import Process

HERE = pathlib.Path(__file__).resolve().parent
SDK = HERE.parents[1] / "target/sdk"
README = (HERE.parents[1] / "README.md").read_text()

CEILING = 4
BURST = 40
# The first attempt and three retries, which is all that one call may cost the upstream.
ATTEMPTS_MAX = 4
# Far longer than the cases need; nothing waits for their ends.
SLOW = "30s"
PATIENCE = 60


@dataclasses.dataclass
class Sdk:
    """One row: what the README says of it, and what comes of each case."""

    package: str
    # Base URL, and its own retries switched off, where it has any: as the README has it.
    recipe: str
    # What it raises for a status of 400, and when its own timeout is over.
    error: str
    timeout: str
    # It has retries of its own, which `recipe` switches off.
    retries: bool = True
    # Requests it sends for one call when every answer is a refusal, with its own retries as they come.
    requests: int = 1
    status: int = 400
    runs: str = "venv"
    other_shape: bool = False


# Those that obey `x-should-retry: false` leave it at one request. The others try three times what was tried already.
STUBBORN = 3

SDKS = {
    "openai_python": Sdk(
        "openai", 'AsyncOpenAI(base_url="P/v1", max_retries=0)', "BadRequestError", "APITimeoutError"
    ),
    "anthropic_python": Sdk(
        "anthropic", 'AsyncAnthropic(base_url="P", max_retries=0)', "BadRequestError", "APITimeoutError"
    ),
    "google_genai": Sdk(
        "google-genai",
        'genai.Client(http_options=HttpOptions(base_url="P"))',
        "ClientError",
        "TimeoutError",
        retries=False,
        other_shape=True,
    ),
    "mistral_python": Sdk("mistralai", 'Mistral(server_url="P")', "SDKError", "ReadTimeout", retries=False),
    "groq_python": Sdk(
        "groq", 'AsyncGroq(base_url="P", max_retries=0, timeout=600)', "BadRequestError", "APITimeoutError"
    ),
    "cohere_python": Sdk(
        "cohere",
        'AsyncClientV2(base_url="P", max_retries=0)',
        "BadRequestError",
        "ReadTimeout",
        requests=STUBBORN,
        other_shape=True,
    ),
    "langchain": Sdk(
        "langchain-openai",
        'ChatOpenAI(base_url="P/v1", max_retries=0)',
        "OpenAIInvalidRequestError",
        "OpenAITimeoutError",
    ),
    "llama_index": Sdk(
        "llama-index-llms-openai",
        'OpenAI(api_base="P/v1", max_retries=0, timeout=600)',
        "BadRequestError",
        "APITimeoutError",
        requests=STUBBORN,
        runs="frameworks",
    ),
    "litellm": Sdk(
        "litellm",
        'acompletion(…, api_base="P/v1", max_retries=0)',
        "BadRequestError",
        "Timeout",
        runs="frameworks",
    ),
    "httpx_client": Sdk(
        "httpx", 'AsyncClient(base_url="P", timeout=600)', "HTTPStatusError", "ReadTimeout", retries=False
    ),
    "aiohttp_client": Sdk(
        "aiohttp",
        'ClientSession("P", timeout=ClientTimeout(total=600))',
        "ClientResponseError",
        "TimeoutError",
        retries=False,
    ),
    "requests_client": Sdk("requests", 'requests.post("P/v1/…")', "HTTPError", "ReadTimeout", retries=False),
    "curl": Sdk("curl", "curl P/v1/…", "Curl", "Curl", retries=False, status=22),
    "openai_node": Sdk(
        "openai",
        'new OpenAI({ baseURL: "P/v1", maxRetries: 0 })',
        "BadRequestError",
        "APIConnectionTimeoutError",
        runs="node",
    ),
    "anthropic_node": Sdk(
        "@anthropic-ai/sdk",
        'new Anthropic({ baseURL: "P", maxRetries: 0 })',
        "BadRequestError",
        "APIConnectionTimeoutError",
        runs="node",
    ),
    "ai_sdk": Sdk(
        "ai",
        'createOpenAI({ baseURL: "P/v1" })',
        "APICallError",
        "TimeoutError",
        requests=STUBBORN,
        runs="node",
    ),
    "fetch": Sdk("fetch", 'fetch("P/v1/…")', "Error", "TimeoutError", retries=False, runs="node"),
}

# How the upstreams behave: arguments of the mock, the name for it at the upstream of the other shapes, and how long a
# request may wait. Only where all are refused does one wait for that long; elsewhere it is not to end for a slow machine.
BEHAVIOURS = {
    "good": (("--latency", "20ms", "--ceiling", str(CEILING)), "good", "60s"),
    "slow": (("--latency", SLOW), "slow", "60s"),
    "bad": (("--error-rate", "1", "--error-status", "400"), "400", "60s"),
    "down": (("--error-rate", "1", "--error-status", "503"), "503", "60s"),
    "full": (("--error-rate", "1", "--error-status", "429"), "429", "1s"),
}

# The retries' own waits are not what is tested.
UPSTREAM = "ceiling: %d, retry: { backoff: { base: 10ms, max: 10ms, jitter: 0s } }, queue: { wait_max: %s }"
CONFIG = """\
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  - {{ name: mock, url: {mock}, {upstream} }}
  - {{ name: groq, url: {mock}, match: {{ path_prefix: /openai, strip_prefix: true }}, {upstream} }}
  - {{ name: gemini, url: {other}, match: {{ path_prefix: /v1/models }}, preset: gemini, {upstream} }}
  - {{ name: cohere, url: {other}, match: {{ path_prefix: /v2 }}, preset: cohere, {upstream} }}
"""


class Way:
    """Tidegate in front of upstreams that all behave in one way."""

    def __init__(self, behaviour, other, folder):
        args, self.name, wait_max = BEHAVIOURS[behaviour]
        self.other = other
        self.mock = Process("mock", "--listen", "127.0.0.1:0", *args)
        config = folder / f"{behaviour}.yaml"
        upstream = UPSTREAM % (CEILING, wait_max)
        config.write_text(CONFIG.format(mock=self.mock.url("url"), other=f"{other.url}/{self.name}", upstream=upstream))
        self.proxy = Process("--config", str(config))
        self.base = self.proxy.url("proxy")

    def seen(self, sdk, key):
        """What the upstream saw of a key."""
        if SDKS[sdk].other_shape:
            return collections.Counter(self.other.counts(self.name, key))
        with urllib.request.urlopen(f"{self.mock.url('url')}/__ledger") as page:
            per_key = json.load(page)["per_key"]
        digest = hashlib.sha256(key.encode()).hexdigest()
        counts = next((counts for label, counts in per_key.items() if digest.startswith(label.split(":")[1])), {})
        return collections.Counter({**counts, "refused": sum(counts.get("refused", {}).values())})

    def sample(self, name, key):
        """A metric of a key's account, added up."""
        account = hashlib.sha256(key.encode()).hexdigest()[:8]
        with urllib.request.urlopen(f"{self.proxy.url('admin')}/metrics") as page:
            lines = page.read().decode().splitlines()
        mine = [line for line in lines if re.match(rf"{name}[{{ ]", line) and f'account="{account}"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in mine)

    def end(self):
        code = self.proxy.end()
        self.mock.end()
        return code


class Client:
    """An SDK's process."""

    def __init__(self, sdk, folder):
        runs = SDKS[sdk].runs
        self.log = (folder / f"{sdk}.log").open("w+")
        if runs == "node":
            # Next to the packages it imports.
            script = SDK / "node/matrix.mjs"
            command = ["node", script, sdk]
        else:
            python = SDK / runs / "bin/python" if runs != "venv" else sys.executable
            command = [python, HERE / "matrix/clients.py", sdk]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        self.process = subprocess.Popen(command, **pipes)
        # An SDK that hangs is to fail its tests, not to stop the run.
        self.bound = threading.Timer(3 * PATIENCE, self.process.kill)
        self.bound.start()

    def say(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise AssertionError(f"the client ended: {self.log.read()[-2000:]}")
        return json.loads(line)

    def ask(self, **command):
        self.say(**command)
        return self.answer()

    def end(self):
        self.bound.cancel()
        self.process.kill()
        self.process.wait()


def eventually(what):
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def all_cases(sdk, ways, folder):
    """Runs every case of one SDK. What came of them, by name."""
    client, key, off = Client(sdk, folder), f"key-{sdk}", {"retries": 0} if SDKS[sdk].retries else {}
    try:
        good, slow, ends = ways["good"], ways["slow"], {}
        ends["plain"] = client.ask(case="plain", base=good.base, key=key, **off)
        ends["stream"] = client.ask(case="stream", base=good.base, key=key, **off)
        ends["burst"] = client.ask(case="burst", base=good.base, key=f"{key}-b", count=BURST, **off)
        ends["burst seen"] = good.seen(sdk, f"{key}-b")
        ends["error"] = client.ask(case="error", base=ways["bad"].base, key=key, **off)
        ends["error seen"] = ways["bad"].seen(sdk, key)
        ends["timeout"] = client.ask(case="timeout", base=slow.base, key=key, timeout=1, **off)
        eventually(lambda: slow.seen(sdk, key)["abandoned"] == 1)
        # An answer that is being read can be closed; its head comes after three tenths of its time.
        client.say(case="cancel", base=slow.base, key=f"{key}-c", **off)
        eventually(lambda: slow.seen(sdk, f"{key}-c")["in_flight"] == 1)
        client.say(go=True)
        ends["cancel"] = client.answer()
        eventually(lambda: slow.seen(sdk, f"{key}-c")["abandoned"] == 1)
        eventually(lambda: slow.sample("tidegate_in_flight", f"{key}-c") == 0)
        ends["left"] = [slow.seen(sdk, one)["in_flight"] for one in (key, f"{key}-c")]
        for behaviour in ("down", "full"):
            ends[behaviour] = refused(client, ways[behaviour], sdk, f"{key}-default", {})
            if off:
                ends[f"{behaviour}, off"] = refused(client, ways[behaviour], sdk, f"{key}-off", off)
        return ends
    finally:
        client.end()


def refused(client, way, sdk, key, options):
    """One call to an upstream that always refuses: requests to Tidegate, attempts at the upstream, the end of it."""
    end = client.ask(case="refused", base=way.base, key=key, **options)
    eventually(lambda: way.sample("tidegate_in_flight", key) == 0)
    return int(way.sample("tidegate_exchanges_total", key)), way.seen(sdk, key)["refused"], end


def missing(sdk):
    runs = SDKS[sdk].runs
    if sdk == "curl" and not shutil.which("curl"):
        return "there is no curl"
    if runs == "venv":
        return None
    there = {"node": SDK / "node/node_modules" / SDKS[sdk].package, "frameworks": SDK / "frameworks/bin/python"}
    fine = there[runs].exists() or (sdk == "fetch" and shutil.which("node") and (SDK / "node").is_dir())
    return None if fine else f"{SDKS[sdk].package} is not installed; tests/run does that"


@pytest.fixture(scope="module")
def matrix(request):
    from matrix.upstream import Upstream

    if (SDK / "node").is_dir():
        (SDK / "node/matrix.mjs").write_bytes((HERE / "matrix/clients.mjs").read_bytes())
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(9) as pool:
        folder, other = pathlib.Path(folder), Upstream()
        ways = {behaviour: Way(behaviour, other, folder) for behaviour in BEHAVIOURS}
        try:
            asked = {item.callspec.params["sdk"] for item in request.session.items if item.module is request.module}
            there = [sdk for sdk in SDKS if sdk in asked and not missing(sdk)]
            yield {sdk: pool.submit(all_cases, sdk, ways, folder) for sdk in there}
        finally:
            codes = {behaviour: way.end() for behaviour, way in ways.items()}
    assert set(codes.values()) == {0}, codes


@pytest.fixture
def ends(matrix, sdk):
    if why := missing(sdk):
        pytest.skip(why)
    return matrix[sdk].result()


pytestmark = pytest.mark.parametrize("sdk", SDKS)


def test_plain(sdk, ends):
    assert ends["plain"] == {"texts": ["echo: question 0"]}


def test_stream(sdk, ends):
    pieces = ends["stream"].get("pieces", [])
    assert "".join(pieces) == "echo: question 0", ends["stream"]
    assert len(pieces) == 3


def test_error(sdk, ends):
    end = ends["error"]
    assert (end.get("error"), end.get("status")) == (SDKS[sdk].error, SDKS[sdk].status), end
    assert ends["error seen"]["refused"] == 1, "asked once"


def test_timeout(sdk, ends):
    assert ends["timeout"].get("error") == SDKS[sdk].timeout, ends["timeout"]


def test_cancel(sdk, ends):
    assert ends["cancel"] == {"cancelled": True}
    assert ends["left"] == [0, 0], "no slot is held for a client that is gone"


def test_burst(sdk, ends):
    assert ends["burst"] == {"texts": [f"echo: question {number}" for number in range(BURST)]}
    seen = ends["burst seen"]
    assert seen["in_flight_max"] <= CEILING and seen["refused"] == 0 and seen["processed"] == BURST, seen


def test_failing_for_ever(sdk, ends, figures):
    """503 and its kin are tried again by Tidegate, at most three times a call, and that is all."""
    requests, attempts, end = ends["down"]
    figures(f"{sdk:<18} every answer is 503: requests for one call {requests}, attempts {attempts}")
    assert "error" in end
    assert (requests, attempts) == (SDKS[sdk].requests, SDKS[sdk].requests * ATTEMPTS_MAX)
    assert ends.get("down, off", ends["down"])[:2] == (1, ATTEMPTS_MAX)


def test_refused_for_ever(sdk, ends):
    """429s wait at the gate for as long as a request may wait. That too is done once."""
    requests, attempts, end = ends["full"]
    assert "error" in end and attempts >= 1
    assert requests == SDKS[sdk].requests
    assert ends.get("full, off", ends["full"])[0] == 1


def test_the_readme_has_the_recipe(sdk):
    rows = [line for line in README.splitlines() if SDKS[sdk].recipe in line]
    assert len(rows) == 1, f"{SDKS[sdk].recipe} once"
    assert f"| {SDKS[sdk].requests * ATTEMPTS_MAX} |" in rows[0], "attempts for one call, by default"
