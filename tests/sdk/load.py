"""A crowd of clients: each sends its next request when the last one was answered. `load.py URL CLIENTS SECONDS`."""

import asyncio
import json
import sys
import threading
import urllib.parse


async def client(host, port, key, body, ended):
    while not ended.is_set():
        writer = None
        try:
            reader, writer = await asyncio.open_connection(host, port)
            while not ended.is_set():
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {key}\r\n"
                writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, IndexError):
            await asyncio.sleep(0.1)
        finally:
            # Left open, it would be closed when it is found to be garbage, and the proxy would wait for it until then.
            if writer:
                writer.close()


async def crowd(url, clients, ended, keys=("sk-one",)):
    address = urllib.parse.urlsplit(url)
    body = json.dumps({"model": "mock-1", "messages": [{"role": "user", "content": "hello " * 20}], "max_tokens": 50})
    tasks = [
        asyncio.create_task(client(address.hostname, address.port, keys[index % len(keys)], body.encode(), ended))
        for index in range(clients)
    ]
    while not ended.is_set():
        await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Load:
    """Runs in a thread until it is ended."""

    def __init__(self, url, clients, keys=("sk-one",)):
        self.ended = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(crowd(url, clients, self.ended, keys)), daemon=True)
        self.thread.start()

    def end(self):
        self.ended.set()
        self.thread.join(timeout=20)


if __name__ == "__main__":
    load = Load(sys.argv[1], int(sys.argv[2]), keys=tuple(sys.argv[4:]) or ("sk-one",))
    load.thread.join(timeout=float(sys.argv[3]))
    load.end()
