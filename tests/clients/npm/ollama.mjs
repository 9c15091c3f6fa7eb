// Ollama's client: list, show, chat.
import { Ollama } from "ollama";
import { hello, key, maxTokens, tell, url } from "./shared.mjs";

const client = new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });

await tell(async (model) => {
  const { models } = await client.list();
  if (!models.some((entry) => entry.name === model)) throw new Error("not listed");
  await client.show({ model });
  const messages = [{ role: "user", content: hello }];
  const options = { num_predict: maxTokens };
  let said = "";
  for await (const part of await client.chat({ model, messages, options, stream: true }))
    said += part.message.content;
  return said;
});
