"""Ten thousand requests queued at once: all answered, and memory stays bounded."""

import asyncio
import json
import re
import resource
import time
import urllib.request

import pytest

WAITING = 10_000
CEILING = 10
RESIDENT_MAX_MIB = 150
FILES_WANTED = WAITING + 500
# That connect or send at once: more would wait in this process between the two, longer than a proxy waits for a head.
SENDING_MAX = 200
# Longer than the test takes: these fill the ceiling until all others wait, and are given up then.
HOLD = b"x-mock-latency: 1h\r\n"
PATIENCE = 300
HEADERS = (
    b"Host: x\r\nAuthorization: Bearer k\r\nUser-Agent: AsyncOpenAI/Python 3.52.0\r\nAccept: application/json\r\n"
    b"Content-Type: application/json\r\nX-Stainless-Lang: python\r\n"
)


async def ask(sending, address, number, extra=b""):
    body = json.dumps({"input": f"question {number}"}).encode()
    async with sending:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /v1/infer HTTP/1.1\r\n" + HEADERS + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        answer = await reader.readexactly(length)
    finally:
        writer.close()
    return head.split()[1] == b"200" and f'"echo: question {number}"'.encode() in answer


async def until(what):
    """From a thread: this one has thousands of connections to open."""
    end = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(what):
        assert time.monotonic() < end, "they do not all come"
        await asyncio.sleep(0.2)


def queued(running):
    with urllib.request.urlopen(f"{running.admin}/metrics") as page:
        return sum(int(depth) for depth in re.findall(rb"^tidegate_queue_depth\{.*\} (\d+)$", page.read(), re.MULTILINE))


async def crowd(running):
    host, port = running.base.removeprefix("http://").split(":")
    sending = asyncio.Semaphore(SENDING_MAX)
    holders = [asyncio.ensure_future(ask(sending, (host, int(port)), -1, HOLD)) for _ in range(CEILING)]
    await until(lambda: running.ledger()["in_flight"] == CEILING)
    waiting = [asyncio.ensure_future(ask(sending, (host, int(port)), number)) for number in range(WAITING)]
    await until(lambda: queued(running) == WAITING)
    for holder in holders:
        holder.cancel()
    return await asyncio.gather(*waiting)


def test_ten_thousand_waiting_stay_small(stack, figures):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_WANTED:
        pytest.skip(f"this machine allows {hard} open files, and the test needs {FILES_WANTED}")
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    running = stack(("--ceiling", str(CEILING), "--latency", "1ms"), ("--tier", "free"))
    idle = running.proxy.memory_kib()
    answers = asyncio.run(crowd(running))
    highest = running.proxy.memory_kib("VmHWM")
    figures(
        f"memory: idle {idle / 1024:.1f} MiB, highest with {WAITING} waiting {highest / 1024:.1f} MiB"
        f" ({(highest - idle) / WAITING:.1f} KiB each, its connection included)"
    )
    assert len(answers) == WAITING and all(answers)
    assert running.ledger()["in_flight_max"] <= CEILING
    assert highest <= RESIDENT_MAX_MIB * 1024
