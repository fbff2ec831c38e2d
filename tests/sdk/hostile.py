"""Peers that mean harm: HTTP/2 frame by frame for clients, and an upstream that goes on about nothing."""

import asyncio
import threading

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
# GET http://h/ in HPACK, without a trace in the dynamic table.
GET = b"\x82\x84\x86\x01\x01h"
# The same for /big.
GET_BIG = b"\x82\x86\x04\x04/big\x01\x01h"


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def entering(name, value):
    """A field that enters the dynamic table at its front; its value is 127 to 16510 bytes long."""
    rest = len(value) - 127
    return b"\x40" + bytes([len(name)]) + name + bytes([127, rest % 128 | 128, rest // 128]) + value


async def http2(address, settings=b"", window=0):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(PREFACE + frame(SETTINGS, 0, 0, settings))
    if window:
        writer.write(frame(WINDOW_UPDATE, 0, 0, window.to_bytes(4, "big")))
    return reader, writer


async def pour(reader, writer, pieces, reads=True):
    """Writes until all is written or the other side has had enough. Bytes that went."""

    async def drain():
        while reads and await reader.read(65536):
            pass

    draining, poured = asyncio.ensure_future(drain()), 0
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 2)
            poured += len(piece)
            if reads and draining.done():
                break
    except (OSError, asyncio.TimeoutError):
        pass
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    writer.close()
    return poured


ENDLESS = {
    b"/1xx": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 400),
    b"/head": (b"HTTP/1.1 200 OK\r\n", b"x-header: 1\r\n" * 1000),
    b"/zeros": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0" * 16384),
    b"/extension": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;", b"x" * 16384),
    b"/trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x-trailer: 1\r\n" * 1000),
    b"/big": (b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n", b"x" * 65536),
}


class Upstream:
    """Answers in a thread of its own, until the process ends."""

    def __init__(self):
        self.loop, self.taken = asyncio.new_event_loop(), 0
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self.loop)
        self.url = "http://127.0.0.1:%d" % started.result(10)

    async def _start(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        return server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1]
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        await reader.readexactly(int(line.split(b":")[1]))
                if path in ENDLESS:
                    await self._endless(writer, *ENDLESS[path])
                    return
                if path == b"/slow":
                    await asyncio.sleep(0.2)
                if path == b"/held":
                    await asyncio.sleep(8)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _endless(self, writer, start, piece):
        writer.write(start)
        for _ in range(67108864 // len(piece)):
            writer.write(piece)
            await writer.drain()
            self.taken += len(piece)
