"""Ten thousand requests queued at once: all answered, and memory stays bounded."""

import asyncio
import json
import resource

import pytest

WAITING = 10_000
RESIDENT_MAX_MIB = 150
FILES_WANTED = WAITING + 500
# Holds the ten slots while the others arrive.
HOLD = b"x-mock-latency: 8s\r\n"
HEADERS = (
    b"Host: x\r\nAuthorization: Bearer k\r\nUser-Agent: AsyncOpenAI/Python 3.52.0\r\nAccept: application/json\r\n"
    b"Content-Type: application/json\r\nX-Stainless-Lang: python\r\n"
)


async def ask(address, number, extra=b""):
    reader, writer = await asyncio.open_connection(*address)
    body = json.dumps({"input": f"question {number}"}).encode()
    writer.write(b"POST /v1/infer HTTP/1.1\r\n" + HEADERS + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    answer = await reader.readexactly(length)
    writer.close()
    return head.split()[1] == b"200" and f'"echo: question {number}"'.encode() in answer


async def crowd(address):
    first = [asyncio.ensure_future(ask(address, WAITING + number, HOLD)) for number in range(10)]
    await asyncio.sleep(0.5)
    return await asyncio.gather(*first, *(ask(address, number) for number in range(WAITING)))


def test_ten_thousand_waiting_stay_small(stack, figures):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_WANTED:
        pytest.skip(f"this machine allows {hard} open files, and the test needs {FILES_WANTED}")
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    running = stack(("--ceiling", "10", "--latency", "1ms"), ("--tier", "free"))
    idle = running.proxy.memory_kib()
    host, port = running.base.removeprefix("http://").split(":")
    answers = asyncio.run(crowd((host, int(port))))
    highest = running.proxy.memory_kib("VmHWM")
    figures(
        f"memory: idle {idle / 1024:.1f} MiB, highest with {WAITING} waiting {highest / 1024:.1f} MiB"
        f" ({(highest - idle) / WAITING:.1f} KiB each, its connection included)"
    )
    assert len(answers) == WAITING + 10 and all(answers)
    assert running.ledger()["in_flight_max"] <= 10
    assert highest <= RESIDENT_MAX_MIB * 1024
