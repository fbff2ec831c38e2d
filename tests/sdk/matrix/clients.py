"""One SDK in a process of its own: reads what to do from standard input, a line of JSON each, and says what came of it.

Every SDK is a function of a few lines. It makes a client with the base URL, the key, and, where they are given, the
number of retries and the timeout; the rest are the SDK's own defaults. It gives back two functions: one answers whole,
one gives the pieces of a stream.
"""

import asyncio
import json
import os
import sys


def given(**options):
    return {name: value for name, value in options.items() if value is not None}


def said(text):
    return [{"role": "user", "content": text}]


def openai_python(base, key, retries, timeout):
    import openai

    client = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, **given(max_retries=retries, timeout=timeout))
    return openai_like(client)


def groq_python(base, key, retries, timeout):
    import groq

    client = groq.AsyncGroq(base_url=base, api_key=key, **given(max_retries=retries, timeout=timeout))
    return openai_like(client)


def openai_like(client):
    async def whole(text):
        answer = await client.chat.completions.create(model="mock-1", messages=said(text))
        return answer.choices[0].message.content

    async def pieces(text):
        async for chunk in await client.chat.completions.create(model="mock-1", messages=said(text), stream=True):
            yield chunk.choices[0].delta.content

    return whole, pieces


def anthropic_python(base, key, retries, timeout):
    import anthropic

    client = anthropic.AsyncAnthropic(base_url=base, api_key=key, **given(max_retries=retries, timeout=timeout))
    request = {"model": "mock-1", "max_tokens": 16}

    async def whole(text):
        return (await client.messages.create(**request, messages=said(text))).content[0].text

    async def pieces(text):
        async with client.messages.stream(**request, messages=said(text)) as stream:
            async for piece in stream.text_stream:
                yield piece

    return whole, pieces


def google_genai(base, key, retries, timeout):
    from google import genai
    from google.genai.types import HttpOptions

    # It makes no retries unless it is given retry_options.
    options = given(timeout=timeout and int(timeout * 1000))
    client = genai.Client(api_key=key, http_options=HttpOptions(base_url=base, **options))

    async def whole(text):
        return (await client.aio.models.generate_content(model="mock-1", contents=text)).text

    async def pieces(text):
        async for chunk in await client.aio.models.generate_content_stream(model="mock-1", contents=text):
            yield chunk.text

    return whole, pieces


def mistral_python(base, key, retries, timeout):
    from mistralai.client import Mistral

    # It makes no retries unless it is given a retry_config.
    client = Mistral(api_key=key, server_url=base, **given(timeout_ms=timeout and int(timeout * 1000)))

    async def whole(text):
        answer = await client.chat.complete_async(model="mock-1", messages=said(text))
        return answer.choices[0].message.content

    async def pieces(text):
        async with await client.chat.stream_async(model="mock-1", messages=said(text)) as stream:
            async for event in stream:
                yield event.data.choices[0].delta.content

    return whole, pieces


def cohere_python(base, key, retries, timeout):
    import cohere

    client = cohere.AsyncClientV2(base_url=base, api_key=key, **given(max_retries=retries, timeout=timeout))

    async def whole(text):
        return (await client.chat(model="mock-1", messages=said(text))).message.content[0].text

    async def pieces(text):
        async for event in client.chat_stream(model="mock-1", messages=said(text)):
            if event.type == "content-delta":
                yield event.delta.message.content.text

    return whole, pieces


def langchain(base, key, retries, timeout):
    from langchain_openai import ChatOpenAI

    options = given(max_retries=retries, timeout=timeout)
    chat = ChatOpenAI(model="mock-1", base_url=f"{base}/v1", api_key=key, **options)

    async def whole(text):
        return (await chat.ainvoke(text)).content

    async def pieces(text):
        async for chunk in chat.astream(text):
            yield chunk.content

    return whole, pieces


def llama_index(base, key, retries, timeout):
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    # A model it does not know is an error before anything is sent.
    options = given(max_retries=retries, timeout=timeout)
    llm = OpenAI(model="gpt-4o-mini", api_base=f"{base}/v1", api_key=key, **options)

    async def whole(text):
        return (await llm.achat([ChatMessage(content=text)])).message.content

    async def pieces(text):
        async for chunk in await llm.astream_chat([ChatMessage(content=text)]):
            yield chunk.delta

    return whole, pieces


def litellm(base, key, retries, timeout):
    # Otherwise it asks the network for its price list.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    request = {"model": "openai/mock-1", "api_base": f"{base}/v1", "api_key": key}
    request |= given(max_retries=retries, timeout=timeout)

    async def whole(text):
        return (await litellm.acompletion(**request, messages=said(text))).choices[0].message.content

    async def pieces(text):
        async for chunk in await litellm.acompletion(**request, messages=said(text), stream=True):
            yield chunk.choices[0].delta.content

    return whole, pieces


def httpx_client(base, key, retries, timeout):
    import httpx

    client = httpx.AsyncClient(base_url=base, headers=bearer(key), timeout=timeout or 600)

    async def whole(text):
        response = await client.post("/v1/chat/completions", json=chat(text))
        response.raise_for_status()
        return answer_of(response.json())

    async def pieces(text):
        async with client.stream("POST", "/v1/chat/completions", json=chat(text, stream=True)) as response:
            async for line in response.aiter_lines():
                yield delta_of(line)

    return whole, pieces


def aiohttp_client(base, key, retries, timeout):
    import aiohttp

    def session():
        return aiohttp.ClientSession(base, headers=bearer(key), timeout=aiohttp.ClientTimeout(total=timeout or 600))

    async def whole(text):
        async with session() as client, client.post("/v1/chat/completions", json=chat(text)) as response:
            response.raise_for_status()
            return answer_of(await response.json())

    async def pieces(text):
        async with session() as client, client.post("/v1/chat/completions", json=chat(text, stream=True)) as response:
            async for line in response.content:
                yield delta_of(line.decode())

    return whole, pieces


def requests_client(base, key, retries, timeout):
    import requests

    url, headers = f"{base}/v1/chat/completions", bearer(key)

    def post(text):
        response = requests.post(url, headers=headers, json=chat(text), timeout=timeout or 600)
        response.raise_for_status()
        return answer_of(response.json())

    async def whole(text):
        return await asyncio.to_thread(post, text)

    async def pieces(text):
        request = {"headers": headers, "json": chat(text, stream=True), "timeout": 600, "stream": True}
        with await asyncio.to_thread(requests.post, url, **request) as response:
            lines = response.iter_lines(decode_unicode=True)
            while (line := await asyncio.to_thread(next, lines, None)) is not None:
                yield delta_of(line)

    # A thread in the middle of a call cannot be stopped: what can be closed is an answer that is being read.
    whole.cancelled_in_stream = True
    return whole, pieces


def curl(base, key, retries, timeout):
    command = ["curl", "-sS", "--fail-with-body", "-N", f"{base}/v1/chat/completions", *given_curl(key, timeout)]

    async def start(body):
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        return await asyncio.create_subprocess_exec(*command, "-d", json.dumps(body), **pipes)

    async def whole(text):
        process = await start(chat(text))
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.terminate()
            raise
        if process.returncode:
            raise Curl(process.returncode, f"{out.decode()} {err.decode()}")
        return answer_of(json.loads(out))

    async def pieces(text):
        process = await start(chat(text, stream=True))
        async for line in process.stdout:
            yield delta_of(line.decode())
        await process.wait()

    return whole, pieces


def given_curl(key, timeout):
    limit = ["--max-time", str(timeout)] if timeout else []
    return ["-H", f"Authorization: Bearer {key}", "-H", "content-type: application/json", *limit]


class Curl(Exception):
    """curl's exit code: 22 is a status of 400 or more, 28 a timeout."""

    def __init__(self, code, text):
        super().__init__(text)
        self.status = code


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def chat(text, **more):
    return {"model": "mock-1", "messages": said(text), **more}


def answer_of(body):
    return body["choices"][0]["message"]["content"]


def delta_of(line):
    """The text in one line of a stream; nothing in those that carry none."""
    data = line.strip().removeprefix("data: ")
    return json.loads(data)["choices"][0]["delta"].get("content") if data.startswith("{") else ""


def error(error):
    status = next((getattr(error, name) for name in ("status_code", "code", "status") if hasattr(error, name)), None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    return {"error": type(error).__name__, "status": status, "text": str(error)[:500]}


async def run(sdk, command, line):
    """One case. `line` waits for the next line of standard input."""
    settings = (command["base"], command["key"], command.get("retries"), command.get("timeout"))
    whole, pieces = sdk(*settings)
    texts = [f"question {number}" for number in range(command.get("count", 1))]
    try:
        match command["case"]:
            case "stream":
                return {"pieces": [piece async for piece in pieces(texts[0]) if piece]}
            case "cancel":
                return await cancelled(whole, pieces, line)
            case _:
                return {"texts": await asyncio.gather(*map(whole, texts))}
    except Exception as caught:  # noqa: BLE001 - whatever the SDK raises is what the test wants to see
        return error(caught)


async def cancelled(whole, pieces, line):
    """Leaves a call in the middle, once it is known to have arrived."""
    if getattr(whole, "cancelled_in_stream", False):
        stream = pieces("question")
        await anext(stream)
        await line()
        await stream.aclose()
        return {"cancelled": True}
    call = asyncio.ensure_future(whole("question"))
    await line()
    call.cancel()
    try:
        await call
    except asyncio.CancelledError:
        return {"cancelled": True}
    return {"cancelled": False}


async def main(name):
    sdk = globals()[name]
    # Some SDKs print to standard output, which carries nothing but answers here.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    async def line():
        return await asyncio.to_thread(sys.stdin.readline)

    while command := await line():
        answer = await run(sdk, json.loads(command), line)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
