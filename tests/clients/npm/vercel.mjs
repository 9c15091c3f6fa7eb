// The Vercel AI SDK, over OpenAI's and Anthropic's API.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { hello, key, maxTokens, tell, url } from "./shared.mjs";

const compatible = createOpenAICompatible({ name: "wai", baseURL: `${url}/v1`, apiKey: key });
const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey: key });

await tell(async (model) => {
  const said = [];
  for (const chosen of [compatible(model), anthropic(model)]) {
    const asked = { model: chosen, prompt: hello, maxOutputTokens: maxTokens, maxRetries: 0 };
    const { text } = await generateText(asked);
    const failures = [];
    const stream = streamText({ ...asked, onError: ({ error }) => failures.push(error) });
    let streamed = "";
    for await (const piece of stream.textStream) streamed += piece;
    if (failures.length) throw failures[0];
    said.push(text && streamed);
  }
  return said.every(Boolean) ? said.join(" | ") : "";
});
