"""What an exchange costs, counted rather than timed: times mean nothing on a shared machine, counts repeat.

One connection, where no system call serves two requests and no allocation depends on who comes first. The figure of a
request is the difference of two runs of different length over the difference of their lengths.
"""

import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from conftest import BINARY

SHORT, LONG = 300, 900
# Recorded with the release binary; a change that moves one by more than 5 % says why in its commit, and records it anew.
RECORDED = {"instructions": 53_420, "system calls": 6.0}
TOLERANCE = 0.05


def padded(value, size, filler):
    room = size - len(json.dumps(value))
    return json.dumps(value).replace('"content": ""', f'"content": "{(filler * size)[:room]}"').encode()


MESSAGES = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": ""}]
QUESTION = padded({"model": "gpt-4o-mini", "max_tokens": 300, "messages": MESSAGES}, 1024, "some words of a question ")
CHOICE = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 200, "completion_tokens": 300, "total_tokens": 500}
ANSWER = padded({"id": "chatcmpl-1", "model": "gpt-4o-mini", "choices": [CHOICE], "usage": USAGE}, 2048, "and of an answer ")
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-1234\r\n"
    b"Content-Type: application/json\r\nUser-Agent: counts\r\nAccept: */*\r\nContent-Length: 1024\r\n\r\n" + QUESTION
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Length: 2048\r\n\r\n" + ANSWER
)


def read_message(stream, length):
    while stream.readline() not in (b"\r\n", b""):
        pass
    return stream.read(length)


def origin():
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection, connection.makefile("rb") as stream:
            while len(read_message(stream, len(QUESTION))) == len(QUESTION):
                connection.sendall(RESPONSE)

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def run(tool, requests, upstream):
    """Runs the proxy under a tool, sends so many requests one after another, and lets it end."""
    proxy = subprocess.Popen(
        [*tool, BINARY, "--upstream", upstream, "--listen", "127.0.0.1:0", "--admin", "off", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        port = int(re.search(r"proxy=http://127\.0\.0\.1:(\d+)", proxy.stdout.readline())[1])
        with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as stream:
            for _ in range(requests):
                client.sendall(REQUEST)
                assert read_message(stream, len(ANSWER)) == ANSWER
        # The tool passes no signal on; the program under it is its only child, or itself.
        children = pathlib.Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
        subprocess.run(["kill", "-TERM", *(children or [str(proxy.pid)])], check=True)
        assert proxy.wait(timeout=60) == 0
    finally:
        if proxy.poll() is None:
            proxy.send_signal(signal.SIGKILL)


def instructions(requests, upstream, folder):
    out = folder / f"callgrind.{requests}"
    run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"], requests, upstream)
    return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)[1])


def system_calls(requests, upstream, folder):
    out = folder / f"strace.{requests}"
    run(["strace", "-f", "-c", "-U", "calls,name", "-o", out], requests, upstream)
    return int(re.search(r"^\s*(\d+) total$", out.read_text(), re.MULTILINE)[1])


@pytest.mark.parametrize(("what", "tool", "count"), [
    ("instructions", "valgrind", instructions),
    ("system calls", "strace", system_calls),
])  # fmt: skip
def test_an_exchange_costs_what_it_did(what, tool, count, tmp_path, figures):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    with origin() as listener:
        upstream = "http://127.0.0.1:%d" % listener.getsockname()[1]
        counted = (count(LONG, upstream, tmp_path) - count(SHORT, upstream, tmp_path)) / (LONG - SHORT)
    recorded = RECORDED[what]
    figures(f"{what} of an exchange: {counted:,.1f}, recorded {recorded:,.1f}")
    assert abs(counted - recorded) <= TOLERANCE * recorded
