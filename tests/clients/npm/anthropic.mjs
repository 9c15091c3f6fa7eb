// Anthropic's SDK: messages, streamed.
import Anthropic from "@anthropic-ai/sdk";
import { hello, key, maxTokens, tell, url } from "./shared.mjs";

const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });

await tell(async (model) => {
  const messages = [{ role: "user", content: hello }];
  const stream = client.messages.stream({ model, messages, max_tokens: maxTokens });
  return await stream.finalText();
});
