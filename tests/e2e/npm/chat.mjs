// Calls a chat model with the npm `openai` SDK, whole and streamed, and prints what came as JSON.
// Base URL and key come by environment; the package is found over NODE_PATH.
import { createRequire } from "node:module";

const { default: OpenAI } = createRequire(import.meta.url)("openai");
const client = new OpenAI({ maxRetries: 0 });
const ask = {
  model: "tiny",
  messages: [{ role: "user", content: "hello" }],
  max_tokens: 60,
  temperature: 0,
};

const whole = await client.chat.completions.create(ask);

let streamed = "";
let chunks = 0;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
  chunks += 1;
}

const wrongModel = await client.chat.completions
  .create({ ...ask, model: "no-such-model" })
  .then(() => null, (error) => ({ status: error.status, code: error.code }));

console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, chunks, wrongModel }));
