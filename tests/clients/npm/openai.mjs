// OpenAI's SDK: chat completions and responses, streamed.
import OpenAI from "openai";
import { hello, key, maxTokens, tell, url } from "./shared.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });

await tell(async (model) => {
  const messages = [{ role: "user", content: hello }];
  const stream = await client.chat.completions.create({
    model,
    messages,
    max_tokens: maxTokens,
    stream: true,
  });
  let said = "";
  for await (const chunk of stream) said += chunk.choices[0]?.delta?.content ?? "";
  const answer = await client.responses.create({
    model,
    input: hello,
    max_output_tokens: maxTokens,
  });
  return said && answer.output_text && `${said} | ${answer.output_text}`;
});
