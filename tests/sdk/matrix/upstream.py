"""The shapes that `tidegate mock` does not speak, Gemini's and Cohere's, with a ledger that reads like the mock's."""

import asyncio
import collections
import json
import threading

from aiohttp import web

SLOW = 30
# Time of an answer, as the mock's.
LATENCY = 0.02


class Upstream:
    """`{url}/{behaviour}` is the base URL of an API: good, slow, or a status to fail with. Lives with the process."""

    def __init__(self):
        self.ledgers = collections.defaultdict(collections.Counter)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.url = asyncio.run_coroutine_threadsafe(self.start(), self.loop).result(20)

    async def start(self):
        app = web.Application()
        app.router.add_post("/{behaviour}/v2/chat", self.cohere)
        app.router.add_post("/{behaviour}/v1/models/{call}", self.gemini)
        # A client that leaves ends its handler: that is how a call that was given up shows here.
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return "http://127.0.0.1:%d" % runner.addresses[0][1]

    def counts(self, behaviour, key):
        return self.ledgers[behaviour, key]

    async def cohere(self, request):
        key = request.headers["authorization"].removeprefix("Bearer ")
        asked = await request.json()
        text = asked["messages"][-1]["content"]
        start = {"type": "message-start", "id": "1", "delta": {"message": {"role": "assistant", "content": []}}}
        pieces = [
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": piece}}}}
            for piece in echo(text)
        ]
        end = {"type": "message-end", "id": "1", "delta": {"finish_reason": "COMPLETE"}}
        content = [{"type": "text", "text": "".join(echo(text))}]
        whole = {"id": "1", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": content}}
        events = [start, *pieces, end] if asked.get("stream") else None
        return await self.answer(request, key, whole, events, {"id": "1", "message": "failed on purpose"})

    async def gemini(self, request):
        key = request.headers["x-goog-api-key"]
        text = (await request.json())["contents"][-1]["parts"][0]["text"]
        pieces = [candidate(piece) for piece in echo(text)]
        events = pieces if "streamGenerateContent" in request.match_info["call"] else None
        status = int(request.match_info["behaviour"]) if request.match_info["behaviour"].isdigit() else 0
        fault = {"error": {"code": status, "message": "failed on purpose", "status": "UNAVAILABLE"}}
        return await self.answer(request, key, candidate("".join(echo(text))), events, fault)

    async def answer(self, request, key, whole, events, fault):
        behaviour = request.match_info["behaviour"]
        counts = self.ledgers[behaviour, key]
        if behaviour.isdigit():
            counts["refused"] += 1
            return web.json_response(fault, status=int(behaviour))
        counts["in_flight"] += 1
        counts["in_flight_max"] = max(counts["in_flight"], counts["in_flight_max"])
        try:
            await asyncio.sleep(SLOW if behaviour == "slow" else LATENCY)
            response = await self.stream(request, events) if events else web.json_response(whole)
            counts["processed"] += 1
            return response
        except asyncio.CancelledError:
            counts["abandoned"] += 1
            raise
        finally:
            counts["in_flight"] -= 1

    async def stream(self, request, events):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            # Gemini names no events, and its SDK takes none.
            name = f"event: {event['type']}\n" if "type" in event else ""
            await response.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        await response.write_eof()
        return response


def echo(text):
    return [piece + " " for piece in f"echo: {text}".split(" ")[:-1]] + [text.split(" ")[-1]]


def candidate(text):
    content = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [{"content": content, "finishReason": "STOP", "index": 0}], "modelVersion": "mock-1"}
