"""Sends more requests at once than the API allows, with the OpenAI SDK. OPENAI_BASE_URL points at the sidecar."""

import asyncio
import os

import openai

COUNT = int(os.environ.get("COUNT", "200"))
PAUSE_S = float(os.environ.get("PAUSE_S", "0"))  # 0: once


async def ask(client, number):
    answer = await client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": f"Say {number}"}], max_completion_tokens=16
    )
    return answer.choices[0].message.content


async def burst():
    # Tidegate does the retries, and holds the requests until it is their turn.
    async with openai.AsyncOpenAI(max_retries=0, timeout=600) as client:
        answers = await asyncio.gather(*(ask(client, number) for number in range(COUNT)), return_exceptions=True)
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    print(f"{COUNT - len(failed)} of {COUNT} answered", *failed[:1], flush=True)
    return len(failed)


async def main():
    while PAUSE_S:
        await burst()
        await asyncio.sleep(PAUSE_S)
    raise SystemExit(min(await burst(), 1))


if __name__ == "__main__":
    asyncio.run(main())
