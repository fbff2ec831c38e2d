// The same as clients.py for Node: one SDK, a line of JSON for what to do, a line for what came of it.
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';

// Standard output carries nothing but answers.
console.log = console.info = console.error;

const said = (text) => [{ role: 'user', content: text }];
// Options that are not given are the SDK's own defaults.
const given = (options) => Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));

const SDKS = {
  async openai_node(base, apiKey, maxRetries, timeout) {
    const { default: OpenAI } = await import('openai');
    const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, ...given({ maxRetries, timeout }) });
    const request = (text) => ({ model: 'mock-1', messages: said(text) });
    return {
      whole: async (text, signal) =>
        (await client.chat.completions.create(request(text), { signal })).choices[0].message.content,
      async *pieces(text) {
        for await (const chunk of await client.chat.completions.create({ ...request(text), stream: true })) {
          yield chunk.choices[0].delta.content;
        }
      },
    };
  },

  async anthropic_node(baseURL, apiKey, maxRetries, timeout) {
    const { default: Anthropic } = await import('@anthropic-ai/sdk');
    const client = new Anthropic({ baseURL, apiKey, ...given({ maxRetries, timeout }) });
    const request = (text) => ({ model: 'mock-1', max_tokens: 16, messages: said(text) });
    return {
      whole: async (text, signal) => (await client.messages.create(request(text), { signal })).content[0].text,
      async *pieces(text) {
        for await (const event of client.messages.stream(request(text))) {
          if (event.type === 'content_block_delta') yield event.delta.text;
        }
      },
    };
  },

  async ai_sdk(base, apiKey, maxRetries, timeout) {
    const { generateText, streamText } = await import('ai');
    const { createOpenAI } = await import('@ai-sdk/openai');
    const model = createOpenAI({ baseURL: `${base}/v1`, apiKey })('mock-1');
    const request = (prompt) => ({ model, prompt, ...given({ maxRetries }) });
    return {
      whole: async (text, signal) => {
        const abortSignal = timeout ? AbortSignal.timeout(timeout) : signal;
        return (await generateText({ ...request(text), abortSignal })).text;
      },
      pieces: (text) => streamText(request(text)).textStream,
    };
  },

  async fetch(base, key, _retries, timeout) {
    const post = (text, stream, signal) =>
      fetch(`${base}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'mock-1', messages: said(text), stream }),
        signal: timeout ? AbortSignal.timeout(timeout) : signal,
      });
    return {
      whole: async (text, signal) => {
        const response = await post(text, false, signal);
        if (!response.ok) throw Object.assign(new Error(await response.text()), { status: response.status });
        return (await response.json()).choices[0].message.content;
      },
      async *pieces(text) {
        const response = await post(text, true);
        for await (const line of createInterface({ input: Readable.fromWeb(response.body) })) {
          if (line.startsWith('data: {')) yield JSON.parse(line.slice(6)).choices[0].delta.content;
        }
      },
    };
  },
};

async function run({ case: name, base, key, retries, timeout, count = 1 }, line) {
  const { whole, pieces } = await SDKS[process.argv[2]](base, key, retries, timeout && timeout * 1000);
  const texts = Array.from({ length: count }, (_, number) => `question ${number}`);
  try {
    if (name === 'stream') {
      const got = [];
      for await (const piece of pieces(texts[0])) if (piece) got.push(piece);
      return { pieces: got };
    }
    if (name === 'cancel') {
      const control = new AbortController();
      const call = whole(texts[0], control.signal).then(() => false, () => true);
      await line();
      control.abort();
      return { cancelled: await call };
    }
    return { texts: await Promise.all(texts.map((text) => whole(text))) };
  } catch (error) {
    const status = error.status ?? error.statusCode ?? error.lastError?.statusCode ?? null;
    const kind = error.constructor.name === 'DOMException' ? error.name : error.constructor.name;
    return { error: kind, status, text: String(error.message).slice(0, 500) };
  }
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const line = async () => (await lines.next()).value;
for (let command = await line(); command !== undefined; command = await line()) {
  process.stdout.write(`${JSON.stringify(await run(JSON.parse(command), line))}\n`);
}
process.exit(0);
