"""What the proxy's memory is under attack, at its highest, and that honest requests go on meanwhile.

Bounds are about one and a half times what was measured; `python -m pytest -q tests/sdk/test_attacks.py` prints both.
"""

import asyncio
import hashlib
import json
import os
import resource
import socket
import time
import urllib.request

import pytest

import hostile
from conftest import Process
from hostile import CONTINUATION, END_HEADERS, END_STREAM, GET, HEADERS, RST_STREAM, frame

WAITING, IDLE = 9_000, 10_000
# The label of the key `k`.
KEY = hashlib.sha256(b"k").hexdigest()[:8]
FILES_WANTED = 10_600


@pytest.fixture(scope="module")
def upstream():
    return hostile.Upstream()


@pytest.fixture
def proxy(upstream, tmp_path):
    running = []

    def start(ceiling=200, url=None, header_timeout="2s"):
        file = tmp_path / "tidegate.yaml"
        file.write_text(
            f"listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nthreads: 2\nlimits: {{ header_timeout: {header_timeout} }}\n"
            f"upstreams: [{{ name: u, url: '{url or upstream.url}', ceiling: {ceiling}, retry: {{ attempts_max: 1 }} }}]\n"
        )
        running.append(Process("serve", "--config", str(file)))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


def address(process, name="proxy"):
    host, port = process.url(name).removeprefix("http://").split(":")
    return host, int(port)


def metrics(process):
    with urllib.request.urlopen(process.url("admin") + "/metrics") as page:
        return page.read().decode()


def look_at(process):
    began = time.monotonic()
    return metrics(process), time.monotonic() - began


def series(process):
    return sum(not line.startswith("#") for line in metrics(process).splitlines())


async def ask(to, request):
    """One request on a connection of its own: the first bytes of its answer."""
    reader, writer = await asyncio.open_connection(*to)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(4096), 30)
    except OSError:
        return b""
    finally:
        writer.close()


async def honest(to, waits):
    """Asks again and again on one connection."""
    reader, writer = await asyncio.open_connection(*to)
    while True:
        began = time.monotonic()
        writer.write(b"GET /good HTTP/1.1\r\nhost: h\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head and await reader.readexactly(4) == b"good"
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.02)


def under(process, attack):
    """Runs the attack next to honest requests. What it returned, the highest memory in MiB, and their longest wait."""

    async def both():
        waits, to = [], address(process)
        going_on = asyncio.ensure_future(honest(to, waits))
        try:
            said = await attack(to)
            # At least one comes afterwards.
            served = len(waits)
            while len(waits) == served and not going_on.done():
                await asyncio.sleep(0.01)
        finally:
            going_on.cancel()
            (end,) = await asyncio.gather(going_on, return_exceptions=True)
        assert isinstance(end, asyncio.CancelledError), f"an honest request failed: {end!r}"
        return said, max(waits)

    said, wait = asyncio.run(both())
    return said, process.memory_kib("VmHWM") / 1024, wait


@pytest.fixture
def measured(figures):
    def check(name, said, mib, wait, bound):
        figures(f"attack: {name:<28} {mib:6.1f} MiB highest, bound {bound}, honest ones waited {wait:.2f} s; {said}")
        assert mib <= bound, name

    return check


async def slow_heads(to):
    """500 heads, a byte at a time. Cut how many?"""

    async def one():
        reader, writer = await asyncio.open_connection(*to)
        gone = asyncio.ensure_future(reader.read())
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\nx-slow: ")
        for _ in range(40):
            writer.write(b"x")
            await asyncio.wait([gone], timeout=0.25)
            if gone.done():
                return True
        return False

    cut = sum(await asyncio.gather(*(one() for _ in range(500))))
    assert cut == 500
    return f"{cut} of 500 cut"


def small_socket(to):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.connect(to)
    sock.setblocking(False)
    return sock


async def slow_readers(to):
    """100 answers of 64 MiB, read at 10 KiB/s."""
    sockets = [small_socket(to) for _ in range(100)]
    for sock in sockets:
        sock.send(b"GET /big HTTP/1.1\r\nhost: h\r\n\r\n")
    for _ in range(30):
        await asyncio.sleep(0.1)
        for sock in sockets:
            try:
                sock.recv(1024)
            except BlockingIOError:
                pass
    for sock in sockets:
        sock.close()
    return "100 connections for 3 s"


async def slow_readers_http2(to):
    """The same over HTTP/2, with windows as large as can be, so that nothing but the proxy's own bounds hold."""
    largest = (0x7FFFFFFF).to_bytes(4, "big")
    opening = hostile.PREFACE + frame(hostile.SETTINGS, 0, 0, b"\x00\x04" + largest)
    opening += frame(hostile.WINDOW_UPDATE, 0, 0, (0x7FFF0000).to_bytes(4, "big"))
    sockets = [small_socket(to) for _ in range(10)]
    for sock in sockets:
        sock.send(opening)
        for nth in range(10):
            sock.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * nth + 1, hostile.GET_BIG))
    await asyncio.sleep(3)
    for sock in sockets:
        sock.close()
    return "100 streams for 3 s"


async def slow_uploads(to):
    """200 bodies of 4 MiB, of which 64 KiB come at once and a byte now and then."""
    connections = [await asyncio.open_connection(*to) for _ in range(200)]
    for _, writer in connections:
        writer.write(b"POST /good HTTP/1.1\r\nhost: h\r\ncontent-length: 4194304\r\n\r\n" + b"x" * 65536)
    for _ in range(20):
        await asyncio.sleep(0.1)
        for _, writer in connections:
            writer.write(b"x")
    for _, writer in connections:
        writer.close()
    return "200 for 2 s"


async def rapid_resets(to):
    reader, writer = await hostile.http2(to)
    pairs = (
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * nth + 1, GET) + frame(RST_STREAM, 0, 2 * nth + 1, b"\0\0\0\x08")
        for nth in range(20_000)
    )
    poured = await hostile.pour(reader, writer, pairs)
    return f"{poured // 28} of 20000 taken"


async def continuations(to):
    reader, writer = await hostile.http2(to)
    writer.write(frame(HEADERS, END_STREAM, 1, GET))
    filler = (b"\x00\x08x-filler\x64" + b"x" * 100) * 100
    poured = await hostile.pour(reader, writer, (frame(CONTINUATION, 0, 1, filler) for _ in range(6000)), False)
    assert poured < 16 << 20
    return f"{poured >> 10} KiB taken"


async def hpack_bombs(to):
    """Heads that stand for 4 MB each, and heads of 215 small fields each, for a byte a field."""
    reader, writer = await hostile.http2(to)
    writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, GET + hostile.entering(b"a", b"x" * 4000)))
    bombs = (frame(HEADERS, END_HEADERS | END_STREAM, 2 * nth + 1, GET + b"\xbe" * 1000) for nth in range(1, 900))
    large = await hostile.pour(reader, writer, bombs, False)
    reader, writer = await hostile.http2(to)
    writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, GET + hostile.entering(b"a", b"x" * 200)))
    bombs = (frame(HEADERS, END_HEADERS | END_STREAM, 2 * nth + 1, GET + b"\xbe" * 215) for nth in range(1, 900))
    small = await hostile.pour(reader, writer, bombs, False)
    return f"{(large + small) >> 10} KiB taken"


async def endless_requests(to):
    post = b"POST /good HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    taken = {}
    for name, start, piece in [
        ("zeros", post, b"0" * 16384),
        ("extension", post + b"5;", b"x" * 16384),
        ("trailers", post + b"0\r\n", b"x-trailer: 1\r\n" * 1000),
        ("head", b"GET / HTTP/1.1\r\nhost: h\r\n", b"x-header: 1\r\n" * 1000),
    ]:
        reader, writer = await asyncio.open_connection(*to)
        writer.write(start)
        taken[name] = await hostile.pour(reader, writer, (piece for _ in range(4096)))
    assert max(taken.values()) < 8 << 20, taken
    return f"at most {max(taken.values()) >> 10} KiB taken"


def endless_answers(upstream):
    async def attack(to):
        most = 0
        for path in ["/1xx", "/head", "/zeros", "/extension", "/trailers"]:
            upstream.taken = 0
            answers = [ask(to, f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode()) for _ in range(10)]
            await asyncio.gather(*answers)
            most = max(most, upstream.taken // 10)
        return f"at most {most >> 10} KiB of each taken"

    return attack


@pytest.mark.parametrize(
    ("attack", "bound"),
    [
        (slow_heads, 27),
        (slow_readers, 48),
        (slow_readers_http2, 52),
        (slow_uploads, 40),
        (rapid_resets, 14),
        (continuations, 14),
        # What is left of a bomb is honest: heads of 58 KiB, a thousand at once.
        (hpack_bombs, 120),
        (endless_requests, 14),
        (endless_answers, 16),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_attack_stays_small(attack, bound, proxy, upstream, measured):
    name = attack.__name__.replace("_", " ")
    attack = attack(upstream) if attack is endless_answers else attack
    measured(name, *under(proxy(), attack), bound)


def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_WANTED:
        pytest.skip(f"this machine allows {hard} open files, and the test needs {FILES_WANTED}")
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def test_idle_connections_cost_little(proxy, figures):
    many_files()
    # The client here may need seconds from a connection to its first byte: it has thousands to open.
    process = proxy(header_timeout="60s")

    async def idle():
        to, kept = address(process), []
        before = process.memory_kib()
        for _ in range(IDLE // 500):
            some = await asyncio.gather(*(asyncio.open_connection(*to) for _ in range(500)))
            for _, writer in some:
                writer.write(b"GET /good HTTP/1.1\r\nhost: h\r\n\r\n")
            await asyncio.gather(*(reader.readuntil(b"good") for reader, _ in some))
            kept += some
        after = process.memory_kib()
        assert f'tidegate_connections{{side="downstream"}} {IDLE}' in metrics(process)
        for _, writer in kept:
            writer.close()
        return (after - before) / IDLE

    each = asyncio.run(idle())
    figures(f"attack: {IDLE} idle connections      {each:.2f} KiB each, bound 7")
    assert each <= 7


def test_a_flood_of_waiting_requests_is_held_and_the_admin_page_answers(proxy, figures):
    many_files()
    mock = Process("mock", "--listen", "127.0.0.1:0", "--ceiling", "64", "--latency", "5ms")
    process = proxy(ceiling=64, url=mock.url("url"), header_timeout="60s")
    head = b"POST /v1/infer HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k\r\ncontent-length: 13\r\n"
    request = head + b'%s\r\n{"input":"x"}'

    async def flood():
        to = address(process)
        before, looks = process.memory_kib(), []
        first = [asyncio.ensure_future(ask(to, request % b"x-mock-latency: 15s\r\n")) for _ in range(64)]
        await asyncio.sleep(0.3)
        waiting = [asyncio.ensure_future(ask(to, request % b"")) for _ in range(WAITING)]
        while True:
            # From a thread of its own: this one has thousands of connections to open.
            page, took = await asyncio.to_thread(look_at, process)
            looks.append(took)
            if f'tidegate_queue_depth{{account="{KEY}",upstream="u"}} {WAITING}' in page or first[0].done():
                break
            await asyncio.sleep(0.2)
        held = process.memory_kib()
        answers = await asyncio.gather(*first, *waiting)
        return sum(b" 200 " in answer for answer in answers), (held - before) / WAITING, max(looks)

    try:
        answered, each, look = asyncio.run(flood())
        with urllib.request.urlopen(mock.url("url") + "/__ledger") as page:
            ledger = json.load(page)
    finally:
        mock.end()
    figures(f"attack: {WAITING} waiting behind 64       {each:.2f} KiB each, bound 17; admin page within {look:.2f} s")
    assert answered == WAITING + 64 and ledger["in_flight_max"] <= 64
    assert each <= 17
    assert look < 30


def test_aborted_exchanges_leave_nothing(proxy, figures):
    process = proxy()

    async def abort(count):
        to = address(process)
        for _ in range(count // 50):
            some = [await asyncio.open_connection(*to) for _ in range(50)]
            for nth, (_, writer) in enumerate(some):
                writer.write([b"GET /slow", b"GET /big", b"POST /held"][nth % 3] + b" HTTP/1.1\r\nhost: h\r\n")
                writer.write(b"content-length: 2\r\n\r\n{}" if nth % 3 == 2 else b"\r\n")
            await asyncio.sleep(0.02)
            for _, writer in some:
                writer.transport.abort()
        while 'tidegate_in_flight{account="default",upstream="u"} 0' not in metrics(process):
            await asyncio.sleep(0.05)

    sizes = []
    for count in (500, 500, 1500):
        asyncio.run(abort(count))
        sizes.append(process.memory_kib() / 1024)
    figures(f"attack: 1500 aborted exchanges       {sizes[1]:.1f} MiB before, {sizes[2]:.1f} MiB after")
    assert sizes[2] - sizes[1] <= 4


def test_odd_requests_add_no_series(proxy, figures):
    process = proxy()

    async def odd(count, credential):
        to = address(process)
        for start in range(0, count, 50):
            await asyncio.gather(*(
                ask(
                    to,
                    f"M{nth} /{os.urandom(4).hex()}?model={nth} HTTP/1.1\r\nhost: h{nth}\r\nx-{nth}: {nth}\r\n"
                    f"user-agent: {nth}\r\nx-tidegate-flow: {nth}\r\n{credential(nth)}connection: close\r\n\r\n".encode(),
                )
                for nth in range(start, start + 50)
            ))

    asyncio.run(odd(50, lambda _: ""))
    before = series(process)
    asyncio.run(odd(1500, lambda _: ""))
    after = series(process)
    asyncio.run(odd(1500, lambda nth: f"authorization: Bearer {nth}\r\n"))
    keys = series(process)
    asyncio.run(odd(1500, lambda nth: f"authorization: Bearer {nth + 5000}\r\n"))
    figures(f"attack: 1500 odd requests            +{after - before} of {before} series; with 1500 keys {keys} in all")
    assert after == before
    # Of those that are remembered, some with labels of their own give way to others.
    assert series(process) <= keys
