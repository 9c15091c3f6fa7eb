// Code snippets that call this relay.

const UNSEEN = /[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/**
 * Snippets by language. `model` may be any text: it is quoted for the shell and each language.
 * `privateCa`: callers must be told to trust the relay's own authority, by its file.
 */
export function snippets(base: string, key: string, model: string, privateCa = false): Record<string, string> {
  const trust = privateCa ? "--cacert relay-ca.crt " : "";
  const run = (comment: string, variable: string, command: string) =>
    privateCa ? `${comment} run it as: ${variable}=relay-ca.crt ${command}\n` : "";
  // JSON strings are valid in Python and JavaScript too. Control characters and those that change
  // the direction of text are escaped, so that the line is what it looks like.
  const name = JSON.stringify(model).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return {
    curl: `curl -N ${trust}${base}/chat/completions \\
  -H "Authorization: Bearer ${key}" \\
  -H "Content-Type: application/json" \\
  -d '{"model": ${name.replaceAll("'", "'\\''")}, "stream": true,
       "messages": [{"role": "user", "content": "Hello"}]}'`,
    Python: `${run("#", "SSL_CERT_FILE", "python app.py")}from openai import OpenAI

client = OpenAI(base_url="${base}", api_key="${key}")
answer = client.chat.completions.create(
    model=${name},
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,
)
for chunk in answer:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`,
    JavaScript: `${run("//", "NODE_EXTRA_CA_CERTS", "node app.mjs")}import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${base}", apiKey: "${key}" });
const answer = await client.chat.completions.create({
  model: ${name},
  messages: [{ role: "user", content: "Hello" }],
  stream: true,
});
for await (const chunk of answer)
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`,
  };
}
