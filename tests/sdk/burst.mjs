// A naive burst with the real OpenAI SDK for Node. Prints what became of it as one line of JSON.
import OpenAI from 'openai';

const [base, count, streamed] = [process.argv[2], Number(process.argv[3]), process.argv[4] === 'stream'];
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'sk-node', maxRetries: 0 });

async function ask(id) {
  const request = { model: 'mock-1', messages: [{ role: 'user', content: `question ${id}` }] };
  try {
    let text = '';
    if (streamed) {
      for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
        text += chunk.choices[0]?.delta?.content ?? '';
      }
    } else {
      text = (await client.chat.completions.create(request)).choices[0].message.content;
    }
    return text === `echo: question ${id}` ? 'own' : `other: ${text}`;
  } catch (error) {
    return `error ${error.status ?? ''} ${error.message}`;
  }
}

const answers = await Promise.all(Array.from({ length: count }, (_, id) => ask(id)));
const tally = {};
for (const answer of answers) tally[answer] = (tally[answer] ?? 0) + 1;
console.log(JSON.stringify(tally));
